"""A SavedModel on the C API: every type both ways, errors in the runtime's words, deadlines, closing, memory."""

import shutil
import subprocess
import sys
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import RequestError, ServingError, Unavailable
from serving.server import bundle as bundle_module
from serving.server import c_api, runtime
from serving.server.bundle import Bundle
from serving.warmup import WARMUP, write_warmup

DTYPES = [
    *("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bool", "complex64", "complex128", "bfloat16"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A signature a type that gives its input back, and some that fail, count, wait and make texts."""
    import tensorflow as tf

    class Kinds(tf.Module):
        def __init__(self):
            super().__init__()
            self.runs = tf.Variable(0, dtype=tf.int64)

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
        def count(self, x):
            return {"runs": self.runs.assign_add(1), "x": x}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="a"), tf.TensorSpec(None, tf.string)])
        def texts(self, a, b):
            return {"joined": tf.strings.join([a, b]), "same": a}

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64, name="n")])
        def slow(self, n):
            zero = tf.zeros([], tf.int64)
            return {"y": tf.while_loop(lambda i: i < n, lambda i: i + 1, [zero], parallel_iterations=1)[0]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def positive(self, x):
            with tf.control_dependencies([tf.debugging.assert_positive(x, "`x` should be positive")]):
                return {"y": tf.identity(x)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def parts(self, x):
            return {f"y{number}": x + number for number in range(8)}

    module = Kinds()
    signatures = {name: getattr(module, name) for name in ("count", "texts", "slow", "positive", "parts")}
    for name in DTYPES:
        spec = tf.TensorSpec(None, getattr(tf, name), name="x")
        signatures[name] = tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[spec])
    path = tmp_path_factory.mktemp("kinds") / "1"
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


@pytest.fixture(scope="module")
def kinds(folder):
    return Bundle(folder)


def values(name):
    """The ends of a type's range, and what is special in it."""
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array([info.min, 0, 1, 2, 3, info.max], dtype)
    if dtype.kind == "b":
        return np.array([True, False, False, True, True, False])
    if dtype.kind == "c":
        return np.array([0, complex(-0.0, 1.5), complex(np.nan, np.inf), 1j, -1e30 + 2j, 3], dtype)
    return np.array([0.0, -0.0, np.nan, np.inf, -1.5, 65504.0], np.float64).astype(dtype)


@pytest.mark.parametrize("name", DTYPES)
def test_numbers_come_back_bit_by_bit(kinds, name):
    flat = values(name)
    for shape in ((6,), (2, 3), (1, 6, 1)):
        array = flat.reshape(shape)
        found = kinds.predict({"x": array}, signature=name)["y"]
        assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, shape, array.tobytes())
    found = kinds.predict({"x": flat[::2]}, signature=name)["y"]  # values that do not lie side by side
    assert found.tobytes() == flat[::2].tobytes()
    assert kinds.predict({"x": flat[2]}, signature=name)["y"].shape == ()
    assert kinds.predict({"x": np.zeros((2, 0, 3), flat.dtype)}, signature=name)["y"].shape == (2, 0, 3)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.binary(max_size=60), max_size=30), st.binary(max_size=40))
def test_texts_of_any_bytes_and_length(kinds, texts, end):
    # Up to 8 texts are laid out in one way and more in another; up to 22 bytes come back in one way and more in
    # another: `same` is what went in, `joined` what the runtime made.
    array = np.empty(len(texts), object)
    array[:] = texts
    found = kinds.predict({"a": array, "b": np.array(end, object)}, signature="texts")
    assert found["same"].tolist() == texts
    assert found["joined"].tolist() == [text + end for text in texts]


def test_texts_as_str_and_as_arrays_of_text(kinds):
    for array in (np.array(["ä", "b"], object), np.array(["ä", "b"]), np.array(["ä".encode(), b"b"])):
        found = kinds.predict({"a": array, "b": np.array(b"!", object)}, signature="texts")["joined"]
        assert found.tolist() == ["ä!".encode(), b"b!"]
    many = np.array([f"{number:06}" for number in range(5000)], object).reshape(50, 100)
    found = kinds.predict({"a": many.reshape(-1), "b": np.array(b"x" * 30, object)}, signature="texts")["joined"]
    assert found.tolist() == [f"{number:06}".encode() + b"x" * 30 for number in range(5000)]


@pytest.mark.parametrize(
    ("signature", "inputs", "code", "words"),
    [
        ("nope", {}, "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        ("float32", {}, "INVALID_ARGUMENT", "input size does not match signature: 0!=1 len({}) != len({x})."),
        ("float32", {"y": np.zeros(1, "f4")}, "INVALID_ARGUMENT", "Signature input alias: x(feed name: float32_x:0)"),
        ("float32", {"x": np.zeros(1)}, "INVALID_ARGUMENT", "to be float but double is provided"),
        ("float32", {"x": np.array([b"a"], object)}, "INVALID_ARGUMENT", "to be float but string is provided"),
        ("float32", {"x": np.array(["2025-01-01"], "M8[D]")}, "INVALID_ARGUMENT", "datetime64[D] can not be fed"),
        ("texts", {"a": np.array([1], object), "b": np.array(b"", object)}, "INVALID_ARGUMENT", "can not hold 1"),
        ("positive", {"x": np.zeros(2, "f4")}, "INVALID_ARGUMENT", "`x` should be positive"),
    ],
)
def test_refusals(kinds, signature, inputs, code, words):
    with pytest.raises(RequestError) as caught:
        kinds.predict(inputs, signature=signature)
    assert caught.value.code == code
    assert words in caught.value.message


def test_output_filter(kinds, monkeypatch):
    x = {"x": np.array([1.0], "f4")}
    found = kinds.predict(x, signature="parts", output_filter=["y3", "y1"])
    assert [(name, value.tolist()) for name, value in found.items()] == [("y3", [4.0]), ("y1", [2.0])]
    assert list(kinds.predict(x, signature="parts")) == [f"y{number}" for number in range(8)]
    for wrong, words in ((["y8"], "output tensor alias not found in signature: y8"), (["y1", "y1"], "duplicate")):
        with pytest.raises(RequestError, match=words):
            kinds.predict(x, signature="parts", output_filter=wrong)
    # Each selection costs memory for good: their number is bounded, the answers stay.
    monkeypatch.setattr(bundle_module, "MAX_PLANS", len(kinds._plans) + 2)
    for bits in range(1, 256):
        names = [f"y{number}" for number in range(8) if bits >> number & 1]
        found = kinds.predict(x, signature="parts", output_filter=names)
        assert {name: float(value[0]) for name, value in found.items()} == {name: 1.0 + int(name[1]) for name in names}
    assert len(kinds._plans) <= bundle_module.MAX_PLANS + 1  # and all outputs


def test_deadline(kinds):
    with pytest.raises(RequestError) as caught:
        kinds.predict({"n": np.int64(1 << 40) * np.ones((), np.int64)}, signature="slow", timeout=0.05)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert kinds.predict({"n": np.array(7)}, signature="slow", timeout=60.0)["y"] == 7


def test_python_goes_on_while_the_runtime_works(kinds):
    done = threading.Event()

    def work():
        kinds.predict({"n": np.array(20_000)}, signature="slow", timeout=60.0)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    steps = 0
    while not done.is_set():
        steps += 1
    thread.join()
    assert steps > 100  # with the lock held it would be a handful


def test_closing_under_use(folder):
    for _ in range(5):
        bundle = Bundle(folder)
        started, results = threading.Barrier(5), []

        def ask(bundle=bundle, started=started, results=results):
            x = np.arange(100, dtype=np.float32)
            started.wait()
            for _ in range(100_000):
                try:
                    assert (bundle.predict({"x": x}, signature="float32")["y"] == x).all()
                except RequestError as error:
                    results.append(error.code)
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        started.wait()
        bundle.close()
        for thread in threads:
            thread.join()
        assert set(results) <= {"UNAVAILABLE", "CANCELLED"}
        assert len(results) == 4
        bundle.close()  # a second time does nothing
        with pytest.raises(Unavailable):
            bundle.predict({"x": np.zeros(1, "f4")}, signature="parts")


def test_closing_ends_a_run_without_a_deadline(folder):
    bundle, codes = Bundle(folder), []

    def ask():
        try:
            bundle.predict({"n": np.array(1 << 40)}, signature="slow")
        except RequestError as error:
            codes.append(error.code)

    thread = threading.Thread(target=ask)
    thread.start()
    while bundle._session._users == 0:
        pass
    bundle.close()
    thread.join(60)
    assert codes in (["CANCELLED"], ["UNAVAILABLE"])


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_runs_leak_nothing(kinds):
    texts = np.array([b"%064d" % number for number in range(40)], object)
    inputs = {"a": texts, "b": np.array(b"x" * 30, object)}

    def run(times):
        for number in range(times):
            kinds.predict(inputs, signature="texts")
            if number % 50 == 0:
                with pytest.raises(RequestError):
                    kinds.predict({"x": texts}, signature="float32")
                with pytest.raises(RequestError):
                    kinds.predict({**inputs, "b": np.array([3], object)}, signature="texts")

    run(2000)
    before = resident()
    run(20_000)
    # One tensor of 40 texts forgotten a run would be 20,000 * 40 * (24 + 64) bytes = 70 MB.
    assert resident() - before < 2e7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_swaps_leak_nothing(folder):
    current, sizes = Bundle(folder), []
    for _ in range(24):
        new = Bundle(folder)
        current.close()
        current = new
        sizes.append(resident())
    current.close()
    assert max(sizes[12:]) < 1.05 * max(sizes[:6])


def warm(folder, tmp_path, *requests):
    shutil.copytree(folder, tmp_path / "1")
    write_warmup(tmp_path / "1", requests)
    return tmp_path / "1"


def test_warm_up_runs_every_record_before_the_first_request(folder, tmp_path):
    x = {"x": np.zeros(3, "f4")}
    path = warm(folder, tmp_path, *[{"signature": "count", "inputs": x}] * 4)
    # The variable counts runs, and the graph has no other state: 4 records and this run, or this run alone.
    assert Bundle(path).predict(x, signature="count")["runs"] == 5
    assert Bundle(path, warm_up=False).predict(x, signature="count")["runs"] == 1


def test_warm_up_of_one_signature_leaves_records_for_less_than_all_outputs_out(folder, tmp_path):
    x = {"x": np.zeros(3, "f4")}
    record = {"signature": "count", "inputs": x}
    path = warm(folder, tmp_path, record, {**record, "outputs": ["runs"]}, {**record, "signature": "parts"})
    assert Bundle(path, warm_up=True).predict(x, signature="count")["runs"] == 3
    for signature, runs in (("count", 2), ("parts", 1)):
        bundle = Bundle(path, warm_up=False)
        bundle.warm_up(path, signature)
        assert bundle.predict(x, signature="count")["runs"] == runs


def test_warm_up_that_fails_fails_the_load(folder, tmp_path):
    good = {"signature": "parts", "inputs": {"x": np.ones(2, "f4")}}
    path = warm(folder, tmp_path, good, {"signature": "positive", "inputs": {"x": np.zeros(2, "f4")}}, good)
    with pytest.raises(RequestError, match="`x` should be positive"):
        Bundle(path)
    Bundle(path, warm_up=False).close()
    (path / WARMUP).write_bytes(b"no records")
    with pytest.raises(RequestError, match="corrupted record|truncated record") as caught:
        Bundle(path)
    assert caught.value.code == "DATA_LOSS"


def test_folders_that_are_no_model(folder, tmp_path):
    def broken(name, change):
        shutil.copytree(folder, tmp_path / name)
        change(tmp_path / name)
        with pytest.raises(RequestError) as caught:
            Bundle(tmp_path / name)
        return caught.value

    data = "variables/variables.data-00000-of-00001"
    assert broken("no graph", lambda path: (path / "saved_model.pb").unlink()).code == "NOT_FOUND"
    error = broken("no index", lambda path: (path / "variables" / "variables.index").unlink())
    assert (error.code, "there is no variables/variables.index" in error.message) == ("NOT_FOUND", True)
    assert broken("no variables", lambda path: shutil.rmtree(path / "variables")).code == "NOT_FOUND"
    assert broken("no data", lambda path: (path / data).unlink()).code == "NOT_FOUND"
    assert broken("empty data", lambda path: (path / data).write_bytes(b"")).code in ("OUT_OF_RANGE", "DATA_LOSS")
    half = broken("half a graph", lambda path: (path / "saved_model.pb").write_bytes(b"\x08\x01\x12\xff\xff\x03\x0a"))
    assert half.code in ("DATA_LOSS", "OUT_OF_RANGE", "INTERNAL")


def test_a_model_without_variables_loads(tmp_path):
    import tensorflow as tf

    module = tf.Module()
    twice = tf.function(lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=twice)
    shutil.rmtree(tmp_path / "1" / "variables")
    assert Bundle(tmp_path / "1").predict({"x": np.array([1.5], "f4")})["y"].tolist() == [3.0]


def test_without_tensorflow_installed(monkeypatch):
    monkeypatch.setattr(c_api.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServingError, match="the package tensorflow is not installed"):
        c_api._loaded.__wrapped__()


AT_ONCE = """
import os, threading
from serving.server.c_api import library
before = os.fstat(2)
together = threading.Barrier(2)
threads = [threading.Thread(target=lambda: (together.wait(), library())) for _ in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert os.path.samestat(os.fstat(2), before)
os.write(2, b"heard")
"""


def test_two_threads_that_load_it_at_once_leave_the_terminal_as_it_was():
    done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "heard")


BOTH = """
import sys
import numpy as np
from serving.server.bundle import Bundle

def ask(bundle):
    found = bundle.predict({"a": np.array([b"a" * 40], object), "b": np.array(b"!", object)}, signature="texts")
    assert found["joined"].tolist() == [b"a" * 40 + b"!"]

first = Bundle(sys.argv[1])
ask(first)
print("tensorflow" in sys.modules)
import tensorflow as tf
assert tf.reduce_sum(tf.constant([1.0, 2.0])).numpy() == 3.0
ask(first)
second = Bundle(sys.argv[1])
loaded = tf.saved_model.load(sys.argv[1]).signatures["texts"]
ask(second)
first.close()
assert loaded(a=tf.constant([b"c"]), b=tf.constant(b"d"))["joined"].numpy().tolist() == [b"cd"]
ask(second)
"""


@pytest.mark.slow
def test_before_and_beside_an_imported_tensorflow(folder):
    done = subprocess.run([sys.executable, "-c", BOTH, str(folder)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_a_load_stands_behind_requests_only_where_there_are_some(folder, monkeypatch):
    aside, real = [], runtime._aside
    monkeypatch.setattr(runtime, "_aside", lambda work: aside.append(work) or real(work))
    monkeypatch.setattr(runtime, "_open", weakref.WeakSet())
    first = Bundle(folder)
    assert not aside  # nobody is served yet
    second = Bundle(folder)
    assert aside
    first.close(), second.close()
    aside.clear()
    Bundle(folder).close()
    assert not aside
