"""A SavedModel is a program: those that could do more than rank are refused, with the op and the node."""

import pytest

from serving.allow_list import ALLOWED, RESTORE, SAVE, check_graph
from serving.errors import ServingError
from serving.protos import messages

OUTSIDE = (
    "ReadFile WriteFile MatchingFiles PrintV2 Print PyFunc PyFuncStateless EagerPyFunc SaveSlices Save Restore "
    "RestoreSlice TextLineReaderV2 TFRecordReaderV2 WholeFileReaderV2 ReaderReadV2 FixedLengthRecordReaderV2 "
    "InitializeTableFromTextFileV2 TextLineDataset TFRecordDatasetV2 SnapshotDataset GeneratorDataset IteratorV2 "
    "IteratorGetNext DebugIdentityV2 DebugIdentity WriteSummary CreateSummaryFileWriter WriteGraphSummary "
    "RpcClient RpcCall _Send _Recv CollectiveReduceV2 LoadAndRemapMatrix GenerateVocabRemapping "
    "ImmutableConst BigQueryReader DataServiceDatasetV4 RemoteFusedGraphExecute RemoteCall SymbolicGradient "
    "AssignAddVariableOp AssignSubVariableOp Assign ScatterUpdate ResourceScatterUpdate DestroyResourceOp "
    "SaveDataset LoadDataset DatasetToTFRecord AudioSpectrogram DecodeJpeg StatefulUniform RandomUniform Timestamp "
    "SaveV2 RestoreV2 MergeV2Checkpoints ShardedFilename AssignVariableOp XlaLaunch Fact Abort"
).split()


def saved(folder, change=None):
    """y = Identity(call of function `outer`, which calls `inner`); `change` gets the graph's description."""
    model = messages("tensorflow/core/protobuf/saved_model.proto").SavedModel()
    meta = model.meta_graphs.add()
    meta.meta_info_def.tags.append("serve")
    graph = meta.graph_def
    for name, op, inputs in (
        ("x", "Placeholder", []),
        ("filename", "Const", []),
        ("call", "StatefulPartitionedCall", ["x"]),
        ("y", "Identity", ["call:0"]),
        ("init", "NoOp", []),
        ("restore", "StatefulPartitionedCall", ["filename"]),
        ("save", "StatefulPartitionedCall", ["filename"]),
    ):
        graph.node.add(name=name, op=op, input=inputs)
    for node, function in ((2, "outer"), (5, "restoring"), (6, "saving")):
        graph.node[node].attr["f"].func.name = function
    for name, nodes in (
        ("outer", ["If"]),
        ("inner", ["AddV2", "NoOp"]),
        ("restoring", ["RestoreV2", "AssignVariableOp"]),
        ("saving", ["ShardedFilename", "SaveV2", "MergeV2Checkpoints"]),
        ("unused", ["Mul"]),
    ):
        function = graph.library.function.add()
        function.signature.name = name
        for op in nodes:
            function.node_def.add(name=f"{name}_{op}", op=op)
    graph.library.function[0].node_def[0].attr["then_branch"].func.name = "inner"
    meta.signature_def["rank"].inputs["x"].name = "x:0"
    meta.signature_def["rank"].outputs["y"].name = "y:0"
    meta.collection_def["saved_model_main_op"].node_list.value.append("init")
    meta.saver_def.restore_op_name = "restore"
    meta.saver_def.save_tensor_name = "save:0"
    meta.saver_def.filename_tensor_name = "filename:0"
    if change:
        change(meta)
    folder.mkdir(exist_ok=True)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return folder


def functions(meta):
    return {function.signature.name: function for function in meta.graph_def.library.function}


def test_a_ranker_with_its_saver_is_accepted(tmp_path):
    check_graph(saved(tmp_path / "m"))


@pytest.mark.parametrize("op", OUTSIDE)
def test_ops_outside_the_list_are_refused(tmp_path, op):
    assert op not in ALLOWED

    def change(meta):
        meta.graph_def.node.add(name="evil", op=op)
        meta.graph_def.node[3].input.append("evil")

    with pytest.raises(
        ServingError, match=f"op {op} should .* node 'evil' of the graph, reached from signature `rank`"
    ):
        check_graph(saved(tmp_path / "m", change))


def in_function(name):
    return lambda meta, op: functions(meta)[name].node_def.add(name="evil", op=op)


def as_control_input(meta, op):
    meta.graph_def.node.add(name="evil", op=op)
    meta.graph_def.node[3].input.append("^evil")


def in_the_initialiser(meta, op):
    meta.graph_def.node.add(name="evil", op=op)
    meta.graph_def.node[4].input.append("^evil")


def in_a_listed_branch(meta, op):
    branch = functions(meta)["outer"].node_def.add(name="case", op="Case").attr["branches"].list.func.add()
    branch.name = "hidden"
    hidden = meta.graph_def.library.function.add()
    hidden.signature.name = "hidden"
    hidden.node_def.add(name="evil", op=op)


def under_the_name_of_an_op(meta, op):
    hidden = meta.graph_def.library.function.add()
    hidden.signature.name = "MatMul"
    hidden.node_def.add(name="evil", op=op)
    meta.graph_def.node.add(name="innocent", op="MatMul")
    meta.graph_def.node[3].input.append("innocent:0")


def in_a_sparse_output(meta, op):
    meta.graph_def.node.add(name="evil", op=op)
    meta.signature_def["rank"].outputs["z"].coo_sparse.indices_tensor_name = "evil:0"


def in_a_composite_output(meta, op):
    meta.graph_def.node.add(name="evil", op=op)
    meta.signature_def["rank"].outputs["z"].composite_tensor.components.add(name="evil:0")


@pytest.mark.parametrize("op", ["ReadFile", "SaveV2", "RestoreV2", "AssignVariableOp"])
@pytest.mark.parametrize(
    ("place", "words"),
    [
        (in_function("outer"), "of function outer, reached from signature `rank`"),
        (in_function("inner"), "of function inner, reached from signature `rank`"),
        (as_control_input, "of the graph, reached from signature `rank`"),
        (in_the_initialiser, "of the graph, reached from the initialiser"),
        (in_a_listed_branch, "of function hidden, reached from signature `rank`"),
        (under_the_name_of_an_op, "of function MatMul, reached from signature `rank`"),
        (in_a_sparse_output, "of the graph, reached from signature `rank`"),
        (in_a_composite_output, "of the graph, reached from signature `rank`"),
    ],
)
def test_however_it_is_reached(tmp_path, op, place, words):
    with pytest.raises(ServingError, match=f"op {op} should .* node 'evil' {words}"):
        check_graph(saved(tmp_path / "m", lambda meta: place(meta, op)))


def test_what_the_loader_runs_reads_but_does_not_write(tmp_path):
    with pytest.raises(ServingError, match="op SaveV2 should be the saver's alone. .* restoring, run by the loader"):
        check_graph(saved(tmp_path / "m", lambda meta: in_function("restoring")(meta, "SaveV2")))
    with pytest.raises(ServingError, match="op ReadFile should be one that a ranker needs. .* run by the loader"):
        check_graph(saved(tmp_path / "m", lambda meta: in_function("restoring")(meta, "ReadFile")))


def test_a_signature_may_not_call_the_savers_functions(tmp_path):
    def change(meta):
        functions(meta)["inner"].node_def[0].attr["f"].func.name = "restoring"

    with pytest.raises(ServingError, match="op (RestoreV2|AssignVariableOp) .* of function restoring, reached"):
        check_graph(saved(tmp_path / "m", change))


@pytest.mark.parametrize("name", ["saving", "unused"])
def test_ops_outside_are_refused_where_nothing_reaches_them_too(tmp_path, name):
    with pytest.raises(ServingError, match=f"op PyFunc should .* 'evil' of function {name}, in the graph"):
        check_graph(saved(tmp_path / "m", lambda meta: in_function(name)(meta, "PyFunc")))


def test_a_second_node_of_the_same_name_does_not_hide_the_first(tmp_path):
    def change(meta):
        meta.graph_def.node.add(name="twice", op="ReadFile")
        meta.graph_def.node.add(name="twice", op="NoOp")

    with pytest.raises(ServingError, match="op ReadFile"):
        check_graph(saved(tmp_path / "m", change))


def test_every_graph_of_the_file_is_checked(tmp_path):
    folder = saved(tmp_path / "m")
    evil = saved(tmp_path / "n", lambda meta: as_control_input(meta, "ReadFile"))
    with open(folder / "saved_model.pb", "ab") as file:  # messages one after the other are one message, fields added
        file.write((evil / "saved_model.pb").read_bytes())
    with pytest.raises(ServingError, match="op ReadFile"):
        check_graph(folder)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "", "a\\b", "a/b"])
def test_assets_are_plain_files(tmp_path, name):
    with pytest.raises(ServingError, match="an asset should have a plain file name"):
        check_graph(saved(tmp_path / "m", lambda meta: meta.asset_file_def.add(filename=name)))


def test_what_is_no_graph_is_refused(tmp_path):
    with pytest.raises(ServingError, match="should be a SavedModel's graph"):
        check_graph(tmp_path)
    path = saved(tmp_path / "m") / "saved_model.pb"
    content = path.read_bytes()
    for damaged, words in ((content[:-3], "should be a SavedModel's graph"), (b"", "should hold a graph")):
        path.write_bytes(damaged)
        with pytest.raises(ServingError, match=words):
            check_graph(tmp_path / "m")


def test_the_list_names_ops_that_exist_and_few_with_a_state(tmp_path):
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    listed = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    stateful = {op.name: op.is_stateful for op in listed.op}
    assert set(stateful) >= ALLOWED | RESTORE | SAVE
    assert not ALLOWED & (RESTORE | SAVE)
    # Read by eye: control flow, an error, reading a variable, a look-up table in memory. None writes a variable.
    assert (
        sorted(name for name in ALLOWED if stateful[name])
        == (
            "Assert Case HashTableV2 If LookupTableFindV2 LookupTableImportV2 LookupTableSizeV2 ReadVariableOp "
            "ResourceGather ResourceGatherNd StatefulPartitionedCall VarHandleOp VarIsInitializedOp VariableShape While"
        ).split()
    )


def test_what_tensorflow_exports_of_a_model_is_accepted(ranker, conformance_models):
    for folder in (ranker / "seedrank" / "7", ranker / "text" / "1", conformance_models / "half_tf2" / "123"):
        check_graph(folder)
    check_graph(conformance_models / "half" / "123")  # TensorFlow 1's way: the saver is in the graph itself


@pytest.mark.parametrize(
    ("op", "make"),
    [
        ("ReadFile", lambda tf, x: tf.io.read_file("/etc/passwd")),
        ("MatchingFiles", lambda tf, x: tf.io.matching_files("/etc/*")),
        ("EagerPyFunc", lambda tf, x: tf.py_function(lambda v: v, [x], tf.float32)),
        ("PyFunc", lambda tf, x: tf.numpy_function(lambda v: v, [x], tf.float32)),
        ("WriteFile", lambda tf, x: after(tf, tf.io.write_file("/tmp/written", "x"), x)),
        ("PrintV2", lambda tf, x: after(tf, tf.print(x, output_stream="file:///tmp/written"), x)),
        ("RestoreV2", lambda tf, x: tf.raw_ops.RestoreV2(
            prefix="/tmp/c", tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32])[0]),
        ("SaveV2", lambda tf, x: after(tf, tf.raw_ops.SaveV2(
            prefix="/tmp/c", tensor_names=["a"], shape_and_slices=[""], tensors=[x]), x)),
        ("MergeV2Checkpoints", lambda tf, x: after(tf, tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=["/tmp/c"], destination_prefix="/tmp/d"), x)),
        ("AssignAddVariableOp", lambda tf, x: tf.compat.v1.get_variable("v", initializer=1.0).assign_add(1.0)),
    ],
)  # fmt: skip
def test_hostile_models_that_tensorflow_writes_are_refused(tmp_path, save_model, op, make):
    import tensorflow as tf

    def signature(v1):
        x = v1.placeholder(tf.float32, [None], name="x")
        return {"rank": ("predict", {"x": x}, {"y": tf.identity(make(tf, x), name="y")})}

    with pytest.raises(ServingError, match=f"op {op} should .*reached from signature `rank`"):
        check_graph(save_model(tmp_path / "m", signature))


def after(tf, operation, x):
    with tf.control_dependencies([operation]):
        return tf.identity(x)
