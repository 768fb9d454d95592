"""Predict's messages: read as TensorFlow reads them, written as the official classes parse them, lies refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import InvalidArgument
from serving.protos import messages
from serving.server import predict_wire
from serving.server.predict_wire import MAX_FIELDS, check_fields, read_inputs, write_response
from serving.tensors import unpack

PREDICT = messages("tensorflow_serving/apis/predict.proto")
FLOAT, INT32, UINT8, STRING, COMPLEX64, INT64, BOOL, HALF = 1, 3, 4, 7, 8, 9, 10, 19


def request(*, shape=(), unknown_rank=False, **fields):
    message = PREDICT.PredictRequest()
    tensor = message.inputs["x"]
    tensor.tensor_shape.unknown_rank = unknown_rank
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    for name, value in fields.items():
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return message


def read(**fields):
    return read_inputs(request(**fields))["x"]


def test_both_ways_of_giving_values():
    numbers = np.array([[1, -2], [3, 4]])
    for dtype, kind, field in ((FLOAT, np.float32, "float_val"), (INT64, np.int64, "int64_val")):
        packed = read(dtype=dtype, shape=[2, 2], tensor_content=numbers.astype(kind).tobytes())
        typed = read(dtype=dtype, shape=[2, 2], **{field: numbers.ravel().tolist()})
        for array in (packed, typed):
            assert array.dtype == kind
            np.testing.assert_array_equal(array, numbers)
    assert read(dtype=STRING, shape=[2], string_val=[b"a", b"\xff\x00"]).tolist() == [b"a", b"\xff\x00"]
    assert read(dtype=BOOL, shape=[3], tensor_content=b"\0\1\x07").tolist() == [False, True, True]
    assert read(dtype=UINT8, shape=[2], int_val=[255, 256]).tolist() == [255, 0]  # wraps, as TensorFlow does
    assert read(dtype=HALF, shape=[1], half_val=[0x3C00]).tolist() == [1.0]  # the bits of 1 in half precision
    assert read(dtype=COMPLEX64, shape=[1], scomplex_val=[1.0, 2.0]).tolist() == [1 + 2j]
    assert read(dtype=FLOAT, float_val=[7.5]).shape == ()
    assert read(dtype=FLOAT, shape=[0, 5]).shape == (0, 5)


def test_the_last_value_stands_for_the_rest():
    assert read(dtype=INT64, shape=[2, 2], int64_val=[1, 2]).tolist() == [[1, 2], [2, 2]]
    assert read(dtype=FLOAT, shape=[3]).tolist() == [0, 0, 0]
    assert read(dtype=STRING, shape=[2], string_val=[b"a"]).tolist() == [b"a", b"a"]
    assert read(dtype=STRING, shape=[2]).tolist() == [b"", b""]


LIES = {
    "negative size": {"dtype": FLOAT, "shape": [-1], "float_val": [1.0]},
    "two negative sizes": {"dtype": FLOAT, "shape": [-1, -1], "float_val": [1.0]},
    "product overflows to 0": {"dtype": FLOAT, "shape": [1 << 32, 1 << 32], "float_val": [1.0]},
    "product overflows to 1": {"dtype": FLOAT, "shape": [3, 12297829382473034411], "float_val": [1.0]},
    "2 GB claimed": {"dtype": FLOAT, "shape": [1 << 29], "float_val": [1.0]},
    "2 GB of texts claimed": {"dtype": STRING, "shape": [1 << 28], "string_val": [b""]},
    "largest size and none": {"dtype": FLOAT, "shape": [(1 << 63) - 1, 0]},
    "no values in a shape that overflows": {"dtype": FLOAT, "shape": [0, 1 << 31, 1 << 31]},
    "content too short": {"dtype": FLOAT, "shape": [2], "tensor_content": b"\0" * 7},
    "content too long": {"dtype": FLOAT, "shape": [2], "tensor_content": b"\0" * 9},
    "content of another type": {"dtype": INT64, "shape": [2], "tensor_content": b"\0" * 8},
    "content of texts": {"dtype": STRING, "shape": [1], "tensor_content": b"a"},
    "too many values": {"dtype": FLOAT, "shape": [2], "float_val": [1.0] * 3},
    "too many texts": {"dtype": STRING, "shape": [1], "string_val": [b"a", b"b"]},
    "half a complex number": {"dtype": COMPLEX64, "shape": [1], "scomplex_val": [1.0]},
    "no type": {"shape": [1], "float_val": [1.0]},
    "a type of resources": {"dtype": 20, "shape": [1]},
    "a type that there is not": {"dtype": 99, "shape": [1]},
    "a reference type": {"dtype": 101, "shape": [1], "float_val": [1.0]},
    "65 dimensions": {"dtype": FLOAT, "shape": [1] * 65, "float_val": [1.0]},
    "a million dimensions": {"dtype": FLOAT, "shape": [1] * 1_000_000, "float_val": [1.0]},
    "unknown rank": {"dtype": FLOAT, "unknown_rank": True, "float_val": [1.0]},
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_by_name(name):
    fields = {**LIES[name]}
    if "shape" in fields:  # as a client that computes in 64 bits writes it
        fields["shape"] = [size - (1 << 64) if size >= 1 << 63 else size for size in fields["shape"]]
    with pytest.raises(InvalidArgument, match="^tensor parsing error: x$"):
        read(**fields)


def test_what_all_inputs_claim_is_bounded(monkeypatch):
    monkeypatch.setattr(predict_wire, "MAX_REQUEST_BYTES", 4000)
    message = request(dtype=FLOAT, shape=[900], float_val=[1.0])  # 3,600 bytes
    assert read_inputs(message)["x"].shape == (900,)
    message.inputs["y"].CopyFrom(message.inputs["x"])
    with pytest.raises(InvalidArgument, match="tensor parsing error: [xy]"):
        read_inputs(message)


def test_parts_are_counted_without_parsing():
    message = PREDICT.PredictRequest(output_filter=["y"] * MAX_FIELDS)
    check_fields(message.SerializeToString())
    for more in (b"\x1a\x01y", b"\xf8\x3f\x01", b"\xf9\x3f" + bytes(8), b"\xfd\x3f" + bytes(4)):
        with pytest.raises(InvalidArgument, match="more than 4096 inputs and outputs"):
            check_fields(message.SerializeToString() + more)
        check_fields(more)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes_are_counted(message):
    check_fields(message)


ARRAYS = [
    np.array([[0.1, np.nan], [-np.inf, 3]], np.float32),
    np.array([0.1, -2.0]),
    np.array([True, False, True]),
    np.array([0, 1, 127, 128, 300, -1, 2**63 - 1, -(2**63)]),
    np.full(7, 1763880000123),
    np.array([0, 2**64 - 1], np.uint64),
    np.array([2**32 - 1], np.uint32),
    np.array([-1, 5], np.int32),
    np.array([-3, 4], np.int8),
    np.array([255, 0], np.uint8),
    np.array([65535], np.uint16),
    np.array([1.5, -2], np.float16),
    np.array([b"", b"\xff\x00", "é".encode()], object),
    np.zeros((0, 3), np.float32),
    np.float32(2.5).reshape(()),
    np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{list(array.shape)}")
def test_written_and_parsed_again(array):
    response = PREDICT.PredictResponse.FromString(write_response("m", 7, "rank", {"a": array, "b": array}))
    assert (response.model_spec.name, response.model_spec.version.value) == ("m", 7)
    assert response.model_spec.signature_name == "rank"
    for alias in ("a", "b"):
        assert not response.outputs[alias].tensor_content
        back = unpack(response.outputs[alias])
        assert back.dtype == array.dtype
        np.testing.assert_array_equal(back, array)


def test_written_as_the_official_class_writes():
    response = PREDICT.PredictResponse()
    response.outputs["y"].dtype = INT64
    response.outputs["y"].tensor_shape.dim.add(size=3)
    response.outputs["y"].int64_val.extend([1, -300, 300])
    response.model_spec.name, response.model_spec.signature_name = "m", "rank"
    response.model_spec.version.value = 1763880000123
    ours = PREDICT.PredictResponse.FromString(
        write_response("m", 1763880000123, "rank", {"y": np.array([1, -300, 300])})
    )
    assert ours == response


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_any_integers(numbers):
    array = np.array(numbers, np.int64)
    response = PREDICT.PredictResponse.FromString(write_response("m", 1, "s", {"y": array}))
    assert list(response.outputs["y"].int64_val) == numbers
