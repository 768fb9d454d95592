"""The ops that the graph of a version may have: what a ranker needs, and the saver's own where only the saver runs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from serving.protos import messages

__all__ = ["ALLOWED", "RESTORE", "SAVE", "check_graph"]

# A SavedModel is a program: an op that is not here may read and write files, run Python or open connections. None of
# these does, and none changes a variable. Sorted; an op that a new layer needs is added by name.
ALLOWED = frozenset(
    """
    Abs Acos Acosh Add AddN AddV2 All Any ApproximateEqual ArgMax ArgMin AsString Asin Asinh Assert Atan Atan2 Atanh
    BatchMatMul BatchMatMulV2 BatchMatMulV3 BiasAdd Bincount Bitcast BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs
    BroadcastTo Bucketize Case Cast Ceil ClipByValue Concat ConcatV2 Const Cos Cosh Cross Cumprod Cumsum
    CumulativeLogsumexp DecodeBase64 DecodeRaw DenseBincount DepthToSpace Diag DiagPart Digamma Div DivNoNan
    DynamicPartition DynamicStitch Einsum Elu EmptyTensorList EncodeBase64 EnsureShape Enter Equal Erf Erfc Erfinv
    Exit Exp ExpandDims Expm1 Fill Floor FloorDiv FloorMod FusedBatchNormV3 Gather GatherNd GatherV2 Greater
    GreaterEqual HashTableV2 Identity IdentityN If Igamma Igammac InTopKV2 Inv InvertPermutation IsFinite IsInf
    IsNan L2Loss LeakyRelu LeftShift Less LessEqual Lgamma LinSpace Log Log1p LogSoftmax LogicalAnd LogicalNot
    LogicalOr LookupTableFindV2 LookupTableImportV2 LookupTableSizeV2 LoopCond LowerBound MatMul MatrixBandPart
    MatrixDiagPartV3 MatrixDiagV3 MatrixSetDiagV3 Max Maximum Mean Merge Min Minimum MirrorPad Mod Mul MulNoNan
    Ndtri Neg NextAfter NextIteration NoOp NotEqual NthElement OneHot OnesLike Pack Pad PadV2 ParallelDynamicStitch
    ParseExample ParseExampleV2 ParseSingleExample PartitionedCall Placeholder PlaceholderWithDefault Pow
    PreventGradient Prod RaggedCountSparseOutput RaggedGather RaggedRange RaggedTensorToSparse RaggedTensorToTensor
    Range Rank ReadVariableOp RealDiv Reciprocal ReduceJoin RegexFullMatch RegexReplace Relu Relu6 Reshape
    ResourceGather ResourceGatherNd Reverse ReverseSequence ReverseV2 RightShift Rint Round Rsqrt ScatterNd
    SegmentMax SegmentMaxV2 SegmentMean SegmentMin SegmentMinV2 SegmentProd SegmentProdV2 SegmentSum SegmentSumV2
    Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth
    SparseBincount SparseConcat SparseCross SparseCrossHashed SparseCrossV2 SparseFillEmptyRows SparseReduceSum
    SparseReorder SparseReshape SparseSegmentMean SparseSegmentMeanWithNumSegments SparseSegmentSqrtN
    SparseSegmentSqrtNWithNumSegments SparseSegmentSum SparseSegmentSumWithNumSegments SparseSlice
    SparseTensorDenseMatMul SparseToDense Split SplitV Sqrt Square SquaredDifference Squeeze StatefulPartitionedCall
    StatelessCase StatelessIf StatelessWhile StaticRegexFullMatch StaticRegexReplace StopGradient StridedSlice
    StringFormat StringJoin StringLength StringLower StringNGrams StringSplit StringSplitV2 StringStrip
    StringToHashBucket StringToHashBucketFast StringToHashBucketStrong StringToNumber StringUpper Sub Substr Sum
    Switch Tan Tanh TensorListConcatV2 TensorListElementShape TensorListFromTensor TensorListGather
    TensorListGetItem TensorListLength TensorListPopBack TensorListPushBack TensorListReserve TensorListResize
    TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack TensorScatterAdd TensorScatterMax
    TensorScatterMin TensorScatterSub TensorScatterUpdate Tile TopK TopKV2 Transpose TruncateDiv TruncateMod
    UnicodeDecode UnicodeDecodeWithOffsets UnicodeEncode UnicodeScript UnicodeTranscode Unique UniqueV2
    UniqueWithCounts UniqueWithCountsV2 Unpack UnsortedSegmentJoin UnsortedSegmentMax UnsortedSegmentMin
    UnsortedSegmentProd UnsortedSegmentSum UpperBound VarHandleOp VarIsInitializedOp VariableShape Where While Xdivy
    Xlog1py Xlogy ZerosLike
    """.split()
)
# What loading a version runs beside that, and what saving ran: the only ops that touch files.
RESTORE = frozenset({"AssignVariableOp", "RestoreV2"})
SAVE = frozenset({"DisableCopyOnRead", "MergeV2Checkpoints", "SaveV2", "ShardedFilename"})


def check_graph(folder: str | Path) -> None:
    """Refuses a SavedModel whose graph could do more than rank.

    From the tensors of the signatures and from the initialiser, through inputs, control inputs and called functions,
    only ops of `ALLOWED` are reached. What the loader runs to restore the variables may also have those of `RESTORE`;
    what nobody serving it runs, those of `SAVE`. Any other op is refused wherever it is, reached or not.

    Args:
        folder: str or Path. The SavedModel's folder.

    Raises:
        ServingError: an op, with its node and what reaches it; or there is no graph that can be read.
    """
    path = Path(folder) / "saved_model.pb"
    kind = messages("tensorflow/core/protobuf/saved_model.proto").SavedModel
    from google.protobuf.message import DecodeError

    try:
        graphs = kind.FromString(path.read_bytes()).meta_graphs
    except (OSError, DecodeError) as error:
        raise ServingError(f"{path} should be a SavedModel's graph. Received: {error}.") from error
    if not graphs:
        raise ServingError(f"{path} should hold a graph. Received: none.")
    for meta in graphs:
        graph = _Graph(meta.graph_def)
        for what, roots in _served(meta):
            graph.check(graph.reached(roots), ALLOWED, f"reached from {what}")
        restored = graph.reached([meta.saver_def.restore_op_name])
        graph.check(restored, ALLOWED | RESTORE, "run by the loader")
        graph.check(graph.all(), ALLOWED | RESTORE | SAVE, "in the graph")
        for asset in meta.asset_file_def:
            if not asset.filename or asset.filename in (".", "..") or set(asset.filename) & set("/\\\0"):
                raise ServingError(f"an asset should have a plain file name. Received: {asset.filename!r}.")


def _served(meta: Any) -> Iterator[tuple[str, list[str]]]:
    """What a server runs, by name, and the tensors or nodes where it begins."""
    for name, signature in sorted(meta.signature_def.items()):
        yield f"signature `{name}`", list(_tensors([*signature.outputs.values(), *signature.inputs.values()]))
    for key in ("saved_model_main_op", "legacy_init_op", "saved_model_init_op"):
        if key in meta.collection_def:
            yield "the initialiser", list(meta.collection_def[key].node_list.value)


def _tensors(infos: Iterable[Any]) -> Iterator[str]:
    for info in infos:
        kind = info.WhichOneof("encoding")
        if kind == "name":
            yield info.name
        elif kind == "coo_sparse":
            sparse = info.coo_sparse
            yield from (sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name)
        elif kind == "composite_tensor":
            yield from _tensors(info.composite_tensor.components)


class _Graph:
    """A graph and its functions, to walk."""

    def __init__(self, graph: Any) -> None:
        self.listed = list(graph.node)
        self.nodes = {node.name: node for node in graph.node}
        self.functions = {function.signature.name: function for function in graph.library.function}

    def all(self) -> Iterator[tuple[str, Any]]:
        """Every (place, node)."""
        yield from (("the graph", node) for node in self.listed)
        for name, function in self.functions.items():
            yield from ((f"function {name}", node) for node in function.node_def)

    def reached(self, roots: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Every (place, node) that is run for these tensors or nodes; of a called function, all of its nodes."""
        waiting, seen = [_node_name(root) for root in roots], set()
        called: list[str] = []
        while waiting:
            name = waiting.pop()
            if name in seen or name not in self.nodes:
                continue
            seen.add(name)
            node = self.nodes[name]
            waiting += map(_node_name, node.input)
            called += self._called(node)
            yield "the graph", node
        entered = set()
        while called:
            name = called.pop()
            if name in entered:
                continue
            entered.add(name)
            for node in self.functions[name].node_def:
                called += self._called(node)
                yield f"function {name}", node

    def _called(self, node: Any) -> list[str]:
        """The functions that a node names: as its op, or in an attribute (a branch, a body, a call)."""
        named = [node.op]
        for value in node.attr.values():
            named += [value.func.name, *(function.name for function in value.list.func)]
        return [name for name in named if name in self.functions]

    def check(self, nodes: Iterable[tuple[str, Any]], allowed: frozenset[str], reason: str) -> None:
        """Raises for the first node whose op is not in the list; a function's name is no op."""
        for place, node in nodes:
            if node.op not in allowed and node.op not in self.functions:
                rule = "be the saver's alone" if node.op in RESTORE | SAVE else "be one that a ranker needs"
                raise ServingError(f"op {node.op} should {rule}. Received: node {node.name!r} of {place}, {reason}.")


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]
