"""What a hostile or broken client sends over REST: refused with a 4xx that says why; the server goes on."""

import functools
import gzip
import json
import resource
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import pytest

from serving.server import Server, body, json_text, rest
from serving.server.admission import MAX_REQUEST_BYTES

PREDICT = "/v1/models/half:predict"
GOOD = b'{"instances": [2.0]}'
SLACK = 200 << 20  # of memory beyond what a request may take: allocators, the sanitizer of a busy test run


@pytest.fixture(scope="module")
def server(conformance_models):
    patch = pytest.MonkeyPatch()
    patch.setattr(rest, "IDLE_SECONDS", 0.5)
    with Server(conformance_models, rest_port=0, grpc_port=0, poll_seconds=3600) as server:
        yield server
    patch.undo()


@pytest.fixture(autouse=True)
def still_answers(server):
    yield
    assert predict(server, GOOD) == (200, b'{\n    "predictions": [3.0\n    ]\n}')


def connect(server):
    return socket.create_connection(("127.0.0.1", server.rest_port), timeout=30)


def answer(link):
    """Status and body of the next reply; (0, b"") for a connection closed without one."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = link.recv(65536)
        if not piece:
            return 0, b""
        data += piece
    head, _, rest_of_it = data.partition(b"\r\n\r\n")
    sizes = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while sizes and len(rest_of_it) < int(sizes[0].split(b":")[1]):
        rest_of_it += link.recv(65536)
    return int(head.split(b" ")[1]), rest_of_it


def send(server, raw):
    with connect(server) as link:
        try:
            link.sendall(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before the end
        return answer(link)


def predict(server, content, path=PREDICT, **headers):
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return send(server, "\r\n".join(lines).encode() + b"\r\n\r\n" + content)


def refusal(reply):
    return reply[0], json.loads(reply[1])["error"]


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def deflated(size):
    """`size` zeros in one gzip member, packed a thousand times smaller."""
    zeros = bytes(1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)  # stands alone: packed once, and repeated
    packed = gzip.compress(b"")[:10] + piece * (size >> 20) + packer.flush()
    return packed + struct.pack(
        "<II", functools.reduce(lambda crc, _: zlib.crc32(zeros, crc), range(size >> 20), 0), size
    )


@pytest.fixture(scope="module")
def bomb():
    return deflated(1 << 30)


def test_gzip_bomb(server, bomb):
    before = peak()
    too_large = (413, f"The request body is larger than {MAX_REQUEST_BYTES} bytes.")
    assert refusal(predict(server, bomb, Content_Encoding="gzip")) == too_large
    assert peak() - before < 2 * MAX_REQUEST_BYTES + SLACK


def test_deflate_bomb_with_and_without_header(server):
    for bits in (15, -15):
        packer = zlib.compressobj(9, zlib.DEFLATED, bits)
        packed = packer.compress(bytes(MAX_REQUEST_BYTES + 1)) + packer.flush()
        assert predict(server, packed, Content_Encoding="deflate")[0] == 413
        packer = zlib.compressobj(9, zlib.DEFLATED, bits)
        assert predict(server, packer.compress(GOOD) + packer.flush(), Content_Encoding="deflate")[0] == 200


def test_bomb_in_many_members(server):
    member = gzip.compress(bytes(1 << 20))
    assert predict(server, member * 15, Content_Encoding="gzip")[0] == 400  # 15 MiB of zeros are no JSON
    assert predict(server, member * 17, Content_Encoding="gzip")[0] in (400, 413)
    assert predict(server, gzip.compress(b"") * 100_000, Content_Encoding="gzip")[0] == 400
    assert predict(server, gzip.compress(GOOD[:5]) + gzip.compress(GOOD[5:]), Content_Encoding="gzip")[0] == 200


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "compress", "gzip;q=1", "\x7fgzip"])
def test_other_encodings(server, encoding):
    status, _ = predict(server, gzip.compress(gzip.compress(GOOD)), Content_Encoding=encoding)
    assert status in (400, 415)


def test_broken_packing(server):
    packed = gzip.compress(GOOD)
    for content in (b"no gzip", packed[:-1], packed[:15], b"", packed[:-8] + bytes(8)):
        status, message = refusal(predict(server, content, Content_Encoding="gzip"))
        assert (status, message[:29]) == (400, "The request body can not be u"), content


def test_body_over_the_limit(server):
    content = b" " * (MAX_REQUEST_BYTES + 1)
    assert refusal(predict(server, content)) == (
        413, f"The request body is larger than {MAX_REQUEST_BYTES} bytes."
    )  # fmt: skip
    assert predict(server, GOOD + b" " * (MAX_REQUEST_BYTES - len(GOOD)))[0] == 200


def test_length_claimed_but_not_sent(server, monkeypatch):
    monkeypatch.setattr(body, "BODY_SECONDS", 0.5)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: h\r\nContent-Length: ".encode()
    assert send(server, head + b"1099511627776\r\n\r\n" + GOOD)[0] == 413
    assert send(server, head + b"1000\r\n\r\n" + GOOD)[0] == 408
    for length in (b"-1", b"1e3", b"0x10", b"+5", b"9" * 400, b"5\r\nContent-Length: 6"):
        assert 400 <= send(server, head + length + b"\r\n\r\n" + GOOD)[0] < 500, length


def test_length_shorter_than_sent(server):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
    with connect(server) as link:
        link.sendall(head + GOOD + b"and more\r\n\r\n")
        statuses = [answer(link)[0], answer(link)[0]]
    assert statuses in ([200, 400], [200, 0], [400, 0])  # what is left is no request


def test_endless_chunks(server):
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    before = peak()
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with connect(server) as link:
        link.sendall(head)
        sent = 0
        try:
            while sent < 40:  # unless the server hangs up before
                link.sendall(chunk)
                sent += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert sent >= MAX_REQUEST_BYTES >> 20
        try:
            assert answer(link)[0] in (0, 413)
        except ConnectionResetError:
            pass
    assert peak() - before < 2 * MAX_REQUEST_BYTES + SLACK
    assert send(server, head + b"xyz\r\n")[0] == 400


def test_slow_body(server, monkeypatch):
    monkeypatch.setattr(body, "BODY_SECONDS", 0.5)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n".encode()
    with connect(server) as link:
        link.sendall(head)
        done = threading.Event()

        def drip():
            while not done.wait(0.05):
                try:
                    link.send(b" ")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        status, _ = answer(link)
        done.set()
        thread.join()
    assert status == 408


def test_slow_headers(server):
    with connect(server) as link:
        for piece in (b"POST ", PREDICT.encode(), b" HTTP/1.1\r\n"):
            link.sendall(piece)
        begun = time.monotonic()
        assert link.recv(100) == b""  # closed by the server
        assert time.monotonic() - begun < 20


def test_a_thousand_idle_connections(server):
    wanted = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 3)
    before = peak()
    links = [connect(server) for _ in range(wanted)]
    assert predict(server, GOOD)[0] == 200
    for link in links:
        assert link.recv(1) == b""  # none of them is kept
        link.close()
    assert peak() - before < wanted * (256 << 10) + SLACK


DEEP = 250_000
BODIES = {
    "250,000 lists": b"[" * DEEP,
    "250,000 lists closed": b'{"instances": ' + b"[" * DEEP + b"]" * DEEP + b"}",
    "50,000 lists": b"[" * 50_000,
    "250,000 objects": b'{"a":' * DEEP,
    "lists to the limit": b"[" * (MAX_REQUEST_BYTES - 1),
    "a number to the limit": b'{"inputs": [' + b"9" * (MAX_REQUEST_BYTES - 20) + b"]}",
    "a key twice": b'{"inputs": [1.0], "inputs": [2.0]}',
    "a row's key twice": b'{"instances": [{"x": 1.0, "x": 2.0}]}',
    "half a surrogate pair as signature": b'{"signature_name": "\\ud800", "inputs": [1.0]}',
    "NUL": b"\0",
    "NUL in a list": b'{"inputs": [1.0\0]}',
    "NUL as signature": b'{"signature_name": "\\u0000", "inputs": [1.0]}',
    "no UTF-8": b'{"inputs": ["\xff\xfe"]}',
    "UTF-16": '{"inputs": [1.0]}'.encode("utf-16"),
    "a word": b"nonsense",
    "null": b"null",
    "a million empty lists": b'{"inputs": [' + b"[]," * 1_000_000 + b"1]}",
    "three million values": b'{"inputs": [' + b"1," * 3_000_000 + b"1]}",
    "wrong rows by the thousand": b'{"instances": [' + b"1," * 200_000 + b'"x"]}',
    "ragged at the end": b'{"inputs": [' + b"[1.0]," * 200_000 + b"[1.0, 2.0]]}",
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(server, name):
    before = peak()
    status, message = refusal(predict(server, BODIES[name]))
    assert status == 400
    assert 0 < len(message) < 1500
    assert peak() - before < json_text.MAX_VALUES * 300 + SLACK


def test_nan_is_a_number_here_as_in_tensorflow_serving(server):
    assert b"NaN" in predict(server, b'{"instances": [NaN]}')[1]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/../half:predict", 400),
        ("/v1/models/..%2fhalf:predict", 404),
        ("/v1/models/%2e%2e:predict", 404),
        ("/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd:predict", 404),
        ("/v1/models//etc/passwd:predict", 400),
        ("/v1/models/%2fetc%2fpasswd:predict", 404),
        ("/v1/models/half%00:predict", 404),
        ("/v1/models/%ff%fe:predict", 404),
        ("/v1/models/a%0d%0ab:predict", 404),
        ("/v1/models/half/versions/-1:predict", 400),
        ("/v1/models/half/versions/1e3:predict", 400),
        ("/v1/models/half/versions/9223372036854775808:predict", 400),
        ("/v1/models/half/versions/" + "9" * 6000 + ":predict", 400),
        ("/v1/models/half/versions/0000000000000000000000000000000000123:predict", 200),
        ("/v1/models/half/versions/%31%32%33:predict", 400),
        ("/v1/models/half/versions/:predict", 400),
        ("/v1/models/half/labels/..:predict", 400),
        ("/v1/models/:predict", 400),
        ("/v1/models/half:predict?x=1", 400),
        ("/v1/" + "a" * 20_000, 400),
        ("/v1/models/" + "a" * 7000 + ":predict", 404),
    ],
)
def test_paths(server, path, status):
    assert predict(server, GOOD, path)[0] == status


@pytest.mark.parametrize("path", ["/v1/models/%2e%2e", "/v1/models/../..", "/v1/models/half/versions/-1/metadata"])
def test_paths_of_questions(server, path):
    assert send(server, f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())[0] in (400, 404)


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\1\2\3\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",  # the start of TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/models/half HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\n\r\n",
        b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    ],
)
def test_no_http(server, raw):
    assert send(server, raw)[0] in (0, 400, 404, 431)


def test_nothing_of_a_request_is_logged(server, caplog):
    caplog.set_level("DEBUG")
    for content in (b'{"instances": ["secret-vector"]}', b'{"secret-vector"', b'{"instances": [{"secret-vector": 1}]}'):
        assert predict(server, content, "/v1/models/half:predict")[0] == 400
    predict(server, GOOD, "/v1/models/secret-vector:predict")
    assert "secret-vector" not in caplog.text


def test_metrics_do_not_grow_with_names(server):
    def lines():
        return send(server, b"GET /monitoring/prometheus/metrics HTTP/1.1\r\nHost: h\r\n\r\n")[1].decode()

    predict(server, GOOD)
    assert ':tensorflow:serving:request_count{model_name="half",status="OK"}' in lines()
    before = len(lines().splitlines())
    for number in range(50):
        predict(server, GOOD, f"/v1/models/made-up-{number}:predict")
    assert len(lines().splitlines()) <= before + 1
    assert "made-up" not in lines()


def test_no_file_is_opened_for_a_name(server, tmp_path):
    Path(tmp_path / "1").mkdir()
    assert predict(server, GOOD, f"/v1/models/{str(tmp_path).replace('/', '%2F')}:predict")[0] == 404
