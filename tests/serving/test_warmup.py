"""Warm-up records: TensorFlow reads what we write, we refuse what TensorFlow Serving refuses, in its words."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import warmup
from serving.errors import InvalidArgument, RequestError, ServingError
from serving.protos import messages
from serving.warmup import WARMUP, read_warmup, write_warmup

ROOT = Path(__file__).resolve().parents[2]
REQUEST = {
    "signature": "rank",
    "inputs": {"user_id": [7], "item_id": np.array([2**53 + 1, 5]), "tab": [1], "price": [1.5, float("nan")]},
}


@pytest.fixture
def folder(tmp_path, ranker) -> Path:
    """A version folder that has only its graph."""
    (tmp_path / "saved_model.pb").write_bytes((ranker / "seedrank" / "7" / "saved_model.pb").read_bytes())
    return tmp_path


def parsed(serialised: bytes):
    return messages("tensorflow_serving/apis/predict.proto").PredictRequest.FromString(serialised)


def test_checksums():
    # RFC 3720, B.4: crc32c of 32 zero bytes is 0x8a9136aa, of "123456789" 0xe3069283.
    # Masked: ((crc >> 15) | (crc << 17)) + 0xa282ead8, in 32 bits.
    for data, crc in ((bytes(32), 0x8A9136AA), (b"123456789", 0xE3069283)):
        rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
        assert warmup._masked_crc(data) == (rotated + 0xA282EAD8) % 2**32


def test_tensorflow_reads_what_is_written(folder):
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    path = write_warmup(folder, [REQUEST, REQUEST], model="m")
    assert path == folder / "assets.extra" / "tf_serving_warmup_requests"
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    assert len(records) == 2
    request = PredictionLog.FromString(records[1]).predict_log.request
    assert (request.model_spec.name, request.model_spec.signature_name) == ("m", "rank")
    assert tf.make_ndarray(request.inputs["item_id"]).tolist() == [9007199254740993, 5]
    assert tf.make_ndarray(request.inputs["price"]).dtype == np.float32
    assert request.inputs["item_id"].tensor_content  # packed


def test_what_tensorflow_writes_is_read(tmp_path):
    import tensorflow as tf
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    log = PredictionLog()
    log.predict_log.request.model_spec.signature_name = "rank"
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(["a", "b"]))
    passed_over = PredictionLog()
    passed_over.classify_log.request.model_spec.name = "m"
    (tmp_path / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / WARMUP)) as writer:
        writer.write(passed_over.SerializeToString())
        writer.write(log.SerializeToString())
    (only,) = read_warmup(tmp_path)
    assert only == log.predict_log.request.SerializeToString()


def test_round_trip(folder):
    assert read_warmup(folder) == []
    write_warmup(folder, [REQUEST, {**REQUEST, "outputs": ["score"]}])
    only, part = map(parsed, read_warmup(folder))
    assert not only.output_filter and list(part.output_filter) == ["score"]
    assert only.inputs["user_id"].tensor_content == struct.pack("<q", 7)
    assert [size.size for size in only.inputs["item_id"].tensor_shape.dim] == [2]


@given(records=st.lists(st.binary(max_size=40), max_size=5))
def test_framing_round_trip(records):
    assert list(warmup._records(b"".join(map(warmup._framed, records)))) == records


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(place, bit):
    content = bytearray(warmup._framed(b"what a server replays") + warmup._framed(b"while it loads"))
    content[place % len(content)] ^= 1 << bit
    with pytest.raises(RequestError, match=r"record at \d+.*Please verify your warmup data is in TFRecord format\."):
        list(warmup._records(bytes(content)))


def _file(folder: Path, content: bytes) -> Path:
    (folder / "assets.extra").mkdir()
    (folder / WARMUP).write_bytes(content)
    return folder


def test_a_file_that_is_no_tfrecord(tmp_path):
    _file(tmp_path, b"this is a text, not records")
    with pytest.raises(RequestError) as caught:
        read_warmup(tmp_path)
    assert caught.value.code == "DATA_LOSS"
    assert str(caught.value) == (
        "corrupted record at 0 (Is this even a TFRecord file?). Please verify your warmup data is in TFRecord format."
    )


@pytest.mark.parametrize("cut", [1, 4, 5, 20])
def test_a_truncated_file(tmp_path, cut):
    _file(tmp_path, warmup._framed(b"0123456789abcdef")[:-cut])
    with pytest.raises(
        RequestError, match="truncated record at 0' failed with Read less bytes than requested"
    ) as caught:
        read_warmup(tmp_path)
    assert caught.value.code == "DATA_LOSS"


def test_a_later_record_that_is_corrupt():
    first, second = warmup._framed(b"0123456789"), bytearray(warmup._framed(b"0123456789abcdef"))
    second[15] ^= 1  # the first has 12 + 10 + 4 = 26 bytes, then come the 12 of the second's header
    with pytest.raises(RequestError, match=r"^corrupted record at 38\. Please verify"):
        list(warmup._records(first + bytes(second)))


def test_records_that_are_none(tmp_path):
    _file(tmp_path, warmup._framed(b"\xff\xff\xff"))
    with pytest.raises(InvalidArgument, match="Failed to parse warmup record: "):
        read_warmup(tmp_path)
    log = messages("tensorflow_serving/apis/prediction_log.proto").PredictionLog()
    log.session_run_log.SetInParent()
    for content in (log.SerializeToString(), b""):
        (tmp_path / WARMUP).write_bytes(warmup._framed(content))
        with pytest.raises(RequestError, match="Unsupported log_type for warmup: ") as caught:
            read_warmup(tmp_path)
        assert caught.value.code == "UNIMPLEMENTED"


def test_too_many_records(tmp_path):
    log = messages("tensorflow_serving/apis/prediction_log.proto").PredictionLog()
    log.predict_log.request.model_spec.name = "m"
    framed = warmup._framed(log.SerializeToString())
    _file(tmp_path, framed * 1000)
    assert len(read_warmup(tmp_path)) == 1000
    (tmp_path / WARMUP).write_bytes(framed * 1001)
    message = f"Number of warmup records exceeds the maximum (1000) at {tmp_path / WARMUP}"
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        read_warmup(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"signature": "rnk"}, "`signature` should be one of the model's. Received: 'rnk'."),
        ({"inputs": {"user_id": [1]}}, "`inputs` of 'rank' should be item_id, price, tab, user_id. Received: user_id."),
        ({"inputs": {**REQUEST["inputs"], "item_id": ["a"]}}, "`item_id` can not be sent as int64: values are str"),
        ({"inputs": {**REQUEST["inputs"], "item_id": [1.0]}}, "`item_id` can not be sent as int64: values are float"),
    ],
)
def test_rejected_requests(folder, change, message):
    with pytest.raises(ServingError, match=message):
        write_warmup(folder, [{**REQUEST, **change}])
    assert not (folder / WARMUP).exists()


def test_rejected_number(folder):
    with pytest.raises(ServingError, match="`requests` should be at most 1000. Received: 1001."):
        write_warmup(folder, [REQUEST] * 1001)


def test_no_tensorflow(folder):
    write_warmup(folder, [REQUEST])
    code = (
        "import sys; from serving.warmup import read_warmup;"
        f"assert len(read_warmup({str(folder)!r})) == 1; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_messages_are_the_official_ones():
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    from tensorflow_serving.config import model_server_config_pb2

    for module in (predict_pb2, prediction_log_pb2, model_server_config_pb2, saved_model_pb2):
        name = module.DESCRIPTOR.name
        from google.protobuf.descriptor_pb2 import FileDescriptorProto

        ours, official = FileDescriptorProto(), FileDescriptorProto()
        found = messages(name)
        some = next(iter(module.DESCRIPTOR.message_types_by_name))
        getattr(found, some).DESCRIPTOR.file.CopyToProto(ours)
        module.DESCRIPTOR.CopyToProto(official)
        assert ours == official
        assert set(module.DESCRIPTOR.message_types_by_name) <= vars(found).keys()
    assert messages("google/protobuf/wrappers.proto").Int64Value(value=3).value == 3
