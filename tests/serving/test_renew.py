"""A bundle that becomes the next version of its graph: the same answers as a fresh one, nothing of the old."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from serving.errors import InvalidArgument, RequestError
from serving.server.bundle import Bundle
from serving.server.models_config import ModelConfig
from serving.server.versions import Models
from serving.warmup import write_warmup

VARIABLES = "variables/variables"
X = {"x": np.arange(3)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """y = table[x] + scale; the table has any number of rows, and constants say what an x is called."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("renew")

    class Model(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = tf.Variable([1.0, 2.0, 3.0], shape=[None])
            self.scale = tf.Variable(0.5)
            names = tf.lookup.KeyValueTensorInitializer(tf.constant([0, 1, 2], tf.int64), ["a", "b", "c"])
            self.names = tf.lookup.StaticHashTable(names, "?")

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="x")])
        def rank(self, x):
            return {"y": tf.gather(self.table, x) + self.scale, "name": self.names.lookup(x), "n": tf.size(self.table)}

    module = Model()
    tf.saved_model.save(module, str(folder / "1"), signatures={"rank": module.rank})
    write_warmup(folder / "1", [{"signature": "rank", "inputs": X}])
    return folder / "1"


@pytest.fixture
def other(first, tmp_path):
    """`other(table, scale)`: the version again, with other values in its variables."""
    import tensorflow as tf

    def write(name, **values):
        folder = tmp_path / name
        shutil.copytree(first, folder)
        stored = tf.train.load_checkpoint(str(first / VARIABLES))
        names = sorted(stored.get_variable_to_dtype_map())
        new = {f"{key}/.ATTRIBUTES/VARIABLE_VALUE": value for key, value in values.items()}
        tensors = [tf.constant(new.get(name, stored.get_tensor(name))) for name in names]
        shutil.rmtree(folder / "variables")
        tf.raw_ops.SaveV2(
            prefix=str(folder / VARIABLES), tensor_names=names, shape_and_slices=[""] * len(names), tensors=tensors
        )
        return folder

    return write


def answer(bundle):
    return {name: values.tolist() for name, values in bundle.predict(X, signature="rank").items()}


def test_it_answers_as_a_fresh_one_does(first, other):
    """1 + .5, 2 + .5, 3 + .5; then 7 + 1, 8 + 1, 9 + 1 of a table with a row more; and back."""
    bundle = Bundle(first)
    assert answer(bundle) == {"y": [1.5, 2.5, 3.5], "name": [b"a", b"b", b"c"], "n": 3}
    plans = dict(bundle._plans)
    second = other("2", table=np.float32([7, 8, 9, 10]), scale=np.float32(1))
    for folder, expected in ((second, [8.0, 9.0, 10.0]), (first, [1.5, 2.5, 3.5]), (second, [8.0, 9.0, 10.0])):
        bundle.empty()
        assert bundle.renew(folder)
        fresh = Bundle(folder)
        assert answer(bundle) == answer(fresh) and answer(bundle)["y"] == expected
        assert bundle.warm_up_seconds is not None
        fresh.close()
    assert bundle._plans == plans  # nothing was compiled again
    bundle.close()


def test_empty_it_answers_nothing_and_holds_no_table(first, other):
    """A table of 200 MB: most of it is given back at once."""
    large = other("large", table=np.ones(50_000_000, np.float32))
    bundle = Bundle(first)
    bundle.empty()
    before = resident()
    assert bundle.renew(large) and resident() - before > 150e6
    bundle.empty()
    assert resident() - before < 50e6
    with pytest.raises(RequestError, match="table|[Rr]esource|[Vv]ariable"):
        bundle.predict(X, signature="rank")
    bundle.close()


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def spoil(folder, what):
    if what == "graph":
        with open(folder / "saved_model.pb", "ab") as file:
            file.write(b"\0\0")
    elif what == "no variables":
        shutil.rmtree(folder / "variables")
    elif what == "half of the variables":
        data = folder / f"{VARIABLES}.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:6])
    return folder


@pytest.mark.parametrize("what", ["graph", "no variables", "half of the variables"])
def test_what_is_no_more_than_other_variables_is_told_apart(first, other, what):
    bundle = Bundle(first)
    bundle.empty()
    assert not bundle.renew(spoil(other("2"), what))
    bundle.close()


def test_a_type_that_is_another_is_none_of_its_versions(first, other):
    bundle = Bundle(first)
    bundle.empty()
    assert not bundle.renew(other("2", table=np.array([1.0, 2.0, 3.0])))
    bundle.close()


def test_a_graph_that_may_keep_more_than_variables_is_loaded_anew(tmp_path):
    """Its requests count themselves; an operation that writes is not of the allow-list."""
    import tensorflow as tf

    class Counts(tf.Module):
        def __init__(self):
            super().__init__()
            self.runs = tf.Variable(0, dtype=tf.int64)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="x")])
        def rank(self, x):
            return {"y": self.runs.assign_add(1) + x}

    module = Counts()
    tf.saved_model.save(module, str(tmp_path / "1"), signatures={"rank": module.rank})
    bundle = Bundle(tmp_path / "1")
    bundle.empty()
    assert not bundle.renew(tmp_path / "1")
    bundle.close()


def test_a_warm_up_that_fails_fails_it(first, other):
    folder = other("2")
    write_warmup(folder, [{"signature": "rank", "inputs": {"x": np.array([3])}}])  # the table has no such row
    bundle = Bundle(first)
    bundle.empty()
    with pytest.raises(InvalidArgument, match="3 is not in"):
        bundle.renew(folder)
    bundle.close()


def test_versions_of_a_server_take_turns(first, other, tmp_path):
    """Of five versions two were loaded; each answers with its own table."""
    loads = []

    def load(path):
        loads.append(path.name)
        return Bundle(path)

    (tmp_path / "m").mkdir()
    models = Models([ModelConfig("m", tmp_path / "m")], load=load)
    for number in range(1, 6):
        other(f"m/{number}", table=np.float32([number, 0, 0]))
        models.start() if number == 1 else [models.poll(), models.poll()]
        with models.use("m") as (version, bundle):
            assert version == number and answer(bundle)["y"][0] == number + 0.5
        until(lambda number=number: number == 1 or models._models["m"]._spare)
    assert loads == ["1", "2"]
    models.close()
