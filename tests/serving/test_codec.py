"""JSON in and out: exact numbers, exact error texts, nothing that crashes."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidArgument, RequestError
from serving.server import json_text
from serving.server.decode import columns_to_arrays, parse_predict
from serving.server.encode import columnar_reply, row_reply
from serving.server.json_text import _Reader, describe, parse

FLOAT, DOUBLE, INT32, UINT8, STRING, INT64, BOOL, HALF = 1, 2, 3, 4, 7, 9, 10, 19


def infos(**dtypes):
    return {name: SimpleNamespace(dtype=dtype) for name, dtype in dtypes.items()}


def read(text, **dtypes):
    body = text if isinstance(text, bytes) else text.encode()
    return parse_predict(body, lambda signature: infos(**(dtypes or {"x": FLOAT})))


def refusal(text, **dtypes):
    with pytest.raises(RequestError) as caught:
        read(text, **dtypes)
    return caught.value.message


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(values, st.sampled_from([None, 1]))
def test_both_readers_agree_with_the_standard_library(value, indent):
    text = json.dumps(value, indent=indent)
    assert parse(text.encode()) == value
    assert _Reader(text).document(0) == value


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:0123456789.eE+-naNIfity \\u', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(body):
    try:
        describe(parse(body))
    except InvalidArgument as error:
        assert "JSON Parse error: " in error.message


def test_depth_is_bounded():
    depth = 5_000
    body = b'{"instances": [1.0], "nested": ' + b"[" * depth + b"]" * depth + b"}"
    assert read(body).inputs["x"].tolist() == [1.0]
    assert refusal(b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}").endswith(" has more than 64 dimensions.")
    assert refusal(b"[" * depth).startswith("JSON Parse error: Invalid value. at offset: 5000")
    assert refusal(b"[" * 50_000) == "JSON Parse error: Nested deeper than 10000 levels. at offset: 10001"
    for opening in (b"[", b'{"a":', b'[{"a":'):
        assert refusal(opening * 250_000) == "JSON Parse error: Nested too deeply for a text of more than 131072 bytes."


def test_a_key_twice_is_refused():
    assert refusal('{"inputs": [1.0], "inputs": [2.0]}') == ('JSON Parse error: An object has the key "inputs" twice.')
    assert refusal('{"instances": [{"x": 1, "x": Inf}]}') == 'JSON Parse error: An object has the key "x" twice.'


def test_large_texts_are_bounded(monkeypatch):
    digits = "9" * 5_000  # more than Python turns into an integer
    assert read(f'{{"inputs": [{digits}]}}').inputs["x"].tolist() == [math.inf]
    padding = " " * json_text._SLOW
    assert refusal(f'{{"inputs": [{digits}]}}{padding}').startswith("JSON Parse error: A number has too many digits")
    assert refusal(f'{{"inputs": [1.0,]}}{padding}') == "JSON Parse error: Expecting value at offset: 16"
    monkeypatch.setattr(json_text, "MAX_VALUES", 10)
    assert read('{"inputs": [1,2,3,4,5,6,7,8]}').inputs["x"].shape == (8,)  # 7 commas and 2 brackets
    assert refusal('{"inputs": [1,2,3,4,5,6,7,8,9,10]}') == "JSON Parse error: More than 10 values."


def test_many_wrong_rows_are_refused_without_a_look_at_each():
    rows = ", ".join(["1.0"] * 50_000)
    assert refusal(f'{{"instances": [{rows}, "x"]}}').startswith('JSON Value: "x" Type: String is not of expected')
    assert refusal(f'{{"instances": [{rows}, {{"x": 1}}]}}') == (
        "Failed to process 'instances' list: its rows are not alike."
    )


def test_what_follows_the_document_is_ignored():
    assert read('{"inputs": [1.0]} rubbish').inputs["x"].tolist() == [1.0]
    assert read('\ufeff {"inputs": [Inf, -Inf]}').inputs["x"].tolist() == [math.inf, -math.inf]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "JSON Parse error: The document is empty"),
        ("[1.0]", "JSON Value: [1.0] Is not object"),
        ('{"inputs": [1.0,}', "JSON Parse error: Invalid value. at offset: 16"),
        ('{"inputs" [1.0]}', "JSON Parse error: Missing a colon after a name of object member. at offset: 10"),
        ('{"é": [1.0 2]}', "JSON Parse error: Missing a comma or ']' after an array element. at offset: 12"),
        ('{"x": 1', "JSON Parse error: Missing a comma or '}' after an object member. at offset: 7"),
        ("{x: 1}", "JSON Parse error: Missing a name for object member. at offset: 1"),
        ('{"instances": 1}', 'JSON Value: {\n    "instances": 1\n} Excepting \'instances\' to be an list/array'),
        ('{"instances": []}', "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array"),
        ('{"inputs": [[1.0], [1.0, 2.0]]}', "Encountered list at unexpected size: 2 at level: 1 expected size: 1"),
        ('{"inputs": [1.0, [1.0]]}', "Encountered list at unexpected level: 1 expected < 1"),
        (
            '{"inputs": [[1.0], 2.0]}',
            "JSON Value: 2.0 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        ('{"inputs": ["a"]}', 'JSON Value: "a" Type: String is not of expected type: float'),
        ('{"inputs": [null]}', "JSON Value: null Type: Null is not of expected type: float"),
        ('{"inputs": [true]}', "JSON Value: true Type: True is not of expected type: float"),
        ('{"instances": [{"x": 1, "y": 2}]}',
         "Failed to process element: 0 key: y of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have "
         "named input: y"),
    ],
)  # fmt: skip
def test_refusals(text, message):
    assert refusal(text) == message


def test_two_keys_are_refused():
    assert "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist " in refusal(
        '{"inputs": [1], "instances": [1]}'
    )


def test_plain_values_for_several_inputs_are_refused():
    assert "expecting list of objects" in refusal('{"instances": [1.0]}', a=FLOAT, b=FLOAT)
    assert "expecting an object" in refusal('{"inputs": [1.0]}', a=FLOAT, b=FLOAT)


def test_integers_are_exact_and_stay_integers():
    big = 9007199254740993  # 2^53 + 1: not a double
    assert read(f'{{"inputs": [{big}]}}', x=INT64).inputs["x"].tolist() == [big]
    assert read(f'{{"instances": [{{"x": {big}}}]}}', x=INT64).inputs["x"].tolist() == [big]
    assert columnar_reply({"y": np.array([big, -(2**63)])}) == (
        b'{\n    "outputs": [\n        9007199254740993,\n        -9223372036854775808\n    ]\n}'
    )
    assert read('{"inputs": [256, -1]}', x=UINT8).inputs["x"].tolist() == [0, 255]
    assert refusal('{"inputs": [1.0]}', x=INT64) == "JSON Value: 1.0 Type: Number is not of expected type: int64"
    assert "not of expected type: int64" in refusal('{"inputs": [9223372036854775808]}', x=INT64)
    assert "not of expected type: int32" in refusal('{"inputs": [true]}', x=INT32)


def test_unsupported_types():
    with pytest.raises(RequestError) as caught:
        read('{"inputs": [1.0]}', x=HALF)
    assert (caught.value.code, caught.value.message) == (
        "UNIMPLEMENTED",
        "Conversion of JSON Value: 1.0 to type: half",
    )
    with pytest.raises(InvalidArgument, match="Failed to write JSON value for tensor type: complex64"):
        columnar_reply({"c": np.zeros(1, np.complex64)})


def test_strings():
    inputs = ['a"b\\c/\n', "喜欢", {"b64": "/w=="}, {"b64": "aGk"}]
    array = read(json.dumps({"inputs": inputs}), x=STRING).inputs["x"]
    assert array.tolist() == [b'a"b\\c/\n', "喜欢".encode(), b"\xff", b"hi"]
    assert json.loads(columnar_reply({"y": array[:2]})) == {"outputs": inputs[:2]}
    assert json.loads(row_reply({"y_bytes": array[2:3]})) == {"predictions": [{"b64": "/w=="}]}
    assert columnar_reply({"y": array[2:3]}) == b'{\n    "outputs": [\n        "\xff"\n    ]\n}'
    assert refusal('{"inputs": {"b64": "a"}}', x=STRING) == "Unable to base64 decode"
    assert "surrogate pair" in refusal('{"inputs": ["\\ud800"]}', x=STRING)


def test_empty_lists_and_scalars():
    assert read('{"inputs": []}').inputs["x"].shape == (0,)
    assert read('{"inputs": [[], []]}').inputs["x"].shape == (2, 0)
    assert read('{"inputs": 7.5}').inputs["x"].shape == ()
    assert columns_to_arrays({"x": [True]}, infos(x=BOOL))["x"].tolist() == [True]


def test_rows_of_several_outputs():
    outputs = {"a": np.array([1, 2]), "b": np.array([[0.5, 1], [2, 3]], np.float32)}
    assert row_reply(outputs) == (
        b'{\n    "predictions": [\n        {\n            "a": 1,\n            "b": [0.5, 1.0]\n        },'
        b'\n        {\n            "a": 2,\n            "b": [2.0, 3.0]\n        }\n    ]\n}'
    )
    with pytest.raises(InvalidArgument, match="Tensor name: s has no shape information "):
        row_reply({"s": np.float32(1)})
    with pytest.raises(InvalidArgument, match="Tensor name: b has inconsistent batch size: 1 expecting: 2"):
        row_reply({"a": np.zeros(2), "b": np.zeros(1)})


@given(st.lists(st.floats(width=32), max_size=20))
def test_float32_text_reads_back_the_same(numbers):
    array = np.array(numbers, np.float32)
    back = np.array(json.loads(columnar_reply({"y": array}))["outputs"], np.float32)
    np.testing.assert_array_equal(back, array)


@given(st.lists(st.floats(width=64), max_size=20))
def test_float64_text_reads_back_the_same(numbers):
    back = np.array(json.loads(row_reply({"y": np.array(numbers, np.float64)}))["predictions"], np.float64)
    np.testing.assert_array_equal(back, np.array(numbers, np.float64))


@given(st.integers(-999_999, 999_999), st.integers(-30, 30))
def test_six_digits_are_used_where_they_suffice(digits, exponent):
    number = np.float32(float(f"{digits}e{exponent}"))
    text = row_reply({"y": np.array([number])}).decode()
    shortest = "%g" % number  # noqa: UP031
    assert text.split("[")[1].startswith(shortest)


def test_float_texts():
    # From TensorFlow Serving's own tests: %g, then nine digits where six do not read back; ".0" for whole numbers.
    array = np.array([9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5, 0.1, 16777217, 1435774380, np.nan, -np.inf])
    texts = "9e+06, 999999.0, 0.5, 0.0003, 3e-05, 555557.5, 0.1, 16777216.0, 1.43577434e+09, NaN, -Infinity"
    assert texts in row_reply({"y": array.astype(np.float32)}).decode()
