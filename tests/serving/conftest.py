"""Tiny SavedModels, made once a session, most of them by TensorFlow 1's builder, which is faster."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def save(path: Path, signatures) -> Path:
    """`signatures`: name -> (method, builder of (inputs, outputs) dicts of graph tensors)."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        made = signatures(v1)
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        definitions = {
            name: v1.saved_model.signature_def_utils.build_signature_def(
                {alias: v1.saved_model.utils.build_tensor_info(tensor) for alias, tensor in inputs.items()},
                {alias: v1.saved_model.utils.build_tensor_info(tensor) for alias, tensor in outputs.items()},
                f"tensorflow/serving/{method}",
            )
            for name, (method, inputs, outputs) in made.items()
        }
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=definitions)
        builder.save()
    return path


def half_plus(constant):
    """y = 0.5 x + constant, with the signatures of the well-known example model."""

    def build(v1):
        import tensorflow as tf

        text = v1.placeholder(tf.string, None, name="tf_example")
        features = {"x": tf.io.FixedLenFeature([1], tf.float32), "x2": tf.io.FixedLenFeature([1], tf.float32, [0.0])}
        parsed = tf.io.parse_example(text, features)
        for tensor in parsed.values():
            tensor.set_shape([None, 1])
        x, x2 = tf.identity(parsed["x"], name="x"), tf.identity(parsed["x2"], name="x2")
        a, b, c = (v1.get_variable(n, initializer=value) for n, value in (("a", 0.5), ("b", constant), ("c", 3.0)))
        y, y2, y3 = tf.add(a * x, b, name="y"), tf.add(a * x, c, name="y2"), tf.add(a * x2, c, name="y3")
        return {
            "serving_default": ("predict", {"x": x}, {"y": y}),
            "regress_x_to_y": ("regress", {"inputs": text}, {"outputs": y}),
            "regress_x_to_y2": ("regress", {"inputs": text}, {"outputs": y2}),
            "regress_x2_to_y3": ("regress", {"inputs": x2}, {"outputs": y3}),
            "classify_x_to_y": ("classify", {"inputs": text}, {"scores": y}),
        }

    return build


def function(make_inputs, make_outputs):
    def build(v1):
        inputs = make_inputs(v1)
        return {"serving_default": ("predict", inputs, make_outputs(inputs))}

    return build


@pytest.fixture(scope="session")
def save_model():
    """`save_model(path, signatures)` writes what `signatures` builds."""
    return save


@pytest.fixture(scope="session")
def save_half():
    """`save_half(path, constant=2.0)` writes y = 0.5 x + constant."""
    return lambda path, constant=2.0: save(path, half_plus(constant))


@pytest.fixture(scope="session")
def conformance_models(tmp_path_factory) -> Path:
    import tensorflow as tf

    root = tmp_path_factory.mktemp("conformance")

    def one(dtype, shape=None, name="x"):
        return lambda v1: {name: v1.placeholder(dtype, shape, name=name)}

    def identity(inputs):
        return {"y": tf.identity(inputs["x"])}

    for name in ("float", "double", "int32", "int64", "uint8", "uint32", "uint64", "bool", "string", "half"):
        dtype = {"float": tf.float32, "double": tf.float64, "half": tf.float16}.get(name) or getattr(tf, name)
        save(root / f"id_{name}" / "123", function(one(dtype), identity))
    save(root / "id_bytes" / "123", function(one(tf.string), lambda inputs: {"y_bytes": tf.identity(inputs["x"])}))
    kinds = {"int_tensor": tf.int32, "str_tensor": tf.string, "float_tensor": tf.float32, "dbl_tensor": tf.float64}
    save(
        root / "multi" / "123",
        function(
            lambda v1: {name: v1.placeholder(dtype, None) for name, dtype in kinds.items()},
            lambda inputs: {
                **{name: tf.identity(tensor) for name, tensor in inputs.items()},
                "str_tensor_bytes": tf.identity(inputs["str_tensor"]),
            },
        ),
    )
    save(
        root / "two_in" / "123",
        function(
            lambda v1: {"a": v1.placeholder(tf.float32, [None, 2]), "b": v1.placeholder(tf.float32, [None])},
            lambda inputs: {"s": tf.reduce_sum(inputs["a"], 1) + inputs["b"]},
        ),
    )
    x = one(tf.float32, [None])
    save(root / "batch_mismatch" / "123", function(x, lambda i: {"a": tf.identity(i["x"]), "b": i["x"][:1]}))
    save(root / "scalar_out" / "123", function(x, lambda i: {"s": tf.reduce_sum(i["x"])}))
    save(root / "complex_out" / "123", function(x, lambda i: {"c": tf.complex(i["x"], i["x"])}))
    save(root / "intdiv" / "123", function(one(tf.int32), lambda i: {"y": 10 // i["x"]}))
    save(root / "half" / "123", half_plus(2.0))
    save(root / "half3" / "123", half_plus(3.0))
    save(root / "two" / "123", half_plus(2.0))

    class Half(tf.Module):
        def __init__(self):
            super().__init__()
            self.a = tf.Variable(0.5)

        @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32)])
        def run(self, x):
            return {"y": self.a * x + 2.0}

    module = Half()
    tf.saved_model.save(module, str(root / "half_tf2" / "123"), signatures=module.run)
    return root


@pytest.fixture(scope="session")
def ranker(tmp_path_factory) -> Path:
    """A models folder with `seedrank` (int64 ids, price) and `text` (string ids, no price), TensorFlow 2's way."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("ranker")

    def spec(name, dtype, size=None):
        return tf.TensorSpec([size], dtype, name=name)

    class Ranker(tf.Module):
        def __init__(self):
            super().__init__()
            self.scale = tf.Variable(0.1)

        def score(self, user_id, item_id, tab, price):
            user = tf.cast(user_id, tf.float32)
            known = tf.logical_not(tf.math.is_nan(price))
            score = self.scale * tf.cast(item_id % 1000, tf.float32) + user + tf.cast(tab, tf.float32)
            score += tf.where(known, price, tf.zeros_like(price))
            return {"score": score, "echo": item_id, "known_item": known}

        @tf.function(
            input_signature=[
                spec("user_id", tf.int64, 1), spec("item_id", tf.int64), spec("tab", tf.int64, 1),
                spec("price", tf.float32),
            ]
        )  # fmt: skip
        def rank(self, user_id, item_id, tab, price):
            return self.score(user_id, item_id, tab, price)

        @tf.function(
            input_signature=[
                spec("user_id", tf.int64, 1), spec("item_id", tf.int64), spec("tab", tf.int64, 1),
                spec("price", tf.float32), spec("weight_pctr", tf.float32, 1),
            ]
        )  # fmt: skip
        def rank_with_weights(self, user_id, item_id, tab, price, weight_pctr):
            answer = self.score(user_id, item_id, tab, price)
            return {**answer, "score": answer["score"] * weight_pctr}

    class Text(tf.Module):
        @tf.function(input_signature=[spec("user_id", tf.string, 1), spec("item_id", tf.string)])
        def rank(self, user_id, item_id):
            return {"joined": tf.strings.join([tf.repeat(user_id, tf.size(item_id)), item_id], ":")}

    ranker, text = Ranker(), Text()
    signatures = {"rank": ranker.rank, "rank_with_weights": ranker.rank_with_weights}
    tf.saved_model.save(ranker, str(root / "seedrank" / "7"), signatures=signatures)
    tf.saved_model.save(text, str(root / "text" / "1"), signatures={"rank": text.rank})
    return root
