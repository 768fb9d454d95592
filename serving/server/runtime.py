"""A SavedModel loaded and run by the C++ code that TensorFlow Serving runs, without Python's lock.

Loading through Python's own session holds the interpreter lock for most of a load,
and every request waits meanwhile; here neither a load nor a run holds it.
"""

import contextlib
import ctypes as c
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidArgument, Unavailable
from serving.server.c_api import Output, checked, library, raise_for
from serving.server.tensors import from_tensor, to_tensor

__all__ = ["Plan", "Session"]

# Of the thread that loads where another session is open: its requests go first, yet a busy machine gets to the end.
LOAD_NICENESS = 10
KEPT = (b"\x2a", b"\x1a")  # the tags of MetaGraphDef.signature_def and .saver_def
# ConfigProto: intra_op_parallelism_threads 1 (one thread a request, parallel over requests) and
# gpu_options.allow_growth (a trainer beside it needs memory too). RunOptions: inter_op_thread_pool -1, the calling
# thread, so that loading leaves the threads of the requests alone; and timeout_in_ms.
CONFIG = b"\x10\x01" + b"\x32\x02\x20\x01"
IN_THIS_THREAD = b"\x18" + b"\xff" * 9 + b"\x01"
TIMEOUT = b"\x10"
AS_WRITTEN = b"\x52\x05\x52\x03\x98\x01\x01"  # graph_options.rewrite_options.disable_meta_optimizer


_open: weakref.WeakSet["Session"] = weakref.WeakSet()  # whose requests a load stands behind


class Plan(NamedTuple):
    """What a run feeds, fetches and runs for its effect, in the form of the C API."""

    feeds: Any
    fetches: Any
    targets: Any


class Session:
    """A SavedModel's graph and variables. Safe to use from many threads, `close` too.

    Args:
        path: Path. The folder that holds `saved_model.pb`.
        optimize: bool. Whether the runtime rewrites a graph before its first run, which takes longer than hundreds of
            runs gain by it. Defaults to `True`.

    Attributes:
        meta_graph: bytes. A `MetaGraphDef` with the model's `signature_def` and `saver_def` only: to read a graph of
            megabytes in Python would hold the interpreter lock.

    Raises:
        RequestError: the runtime refused it, in its own words.
    """

    def __init__(self, path: Path, *, optimize: bool = True) -> None:
        self._library = lib = library()
        graph, meta = lib.TF_NewGraph(), lib.TF_NewBuffer()
        try:
            session = _load(lib, path, graph, meta, CONFIG if optimize else CONFIG + AS_WRITTEN)
            self.meta_graph = _meta_graph(c.string_at(meta.contents.data, meta.contents.length))
        except BaseException:
            lib.TF_DeleteGraph(graph)
            raise
        finally:
            lib.TF_DeleteBuffer(meta)
        self._session, self._graph = session, graph
        _open.add(self)
        self._delete = weakref.finalize(self, _delete, lib, session, graph)
        self._delete.atexit = False
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self._destroy: Plan | None = None

    def operation_types(self) -> set[str]:
        """The kinds of operations in the graph, outside its functions."""
        return {self._library.TF_OperationOpType(operation).decode() for operation in self._operations()}

    def _operations(self) -> Iterator[int]:
        place = c.c_size_t(0)
        while operation := self._library.TF_GraphNextOperation(self._graph, c.byref(place)):
            yield operation

    def plan(self, feeds: Sequence[str], fetches: Sequence[str], targets: Sequence[str] = ()) -> Plan:
        """Looks up tensors by name, such as `x:0`, and operations to run for their effect.

        Raises:
            RequestError: the graph has no such tensor; UNAVAILABLE after `close`.
        """
        self._enter()
        try:
            found = [[self._output(name) for name in names] for names in (feeds, fetches)]
            run = [self._operation(name) for name in targets]
        finally:
            self._leave()
        inputs, outputs = ((Output * len(listed))(*listed) for listed in found)
        return Plan(inputs, outputs, _operations(run))

    def _output(self, name: str) -> Output:
        operation, _, index = name.rpartition(":")
        found = self._operation(operation)
        if not found or not index.isdecimal() or int(index) >= self._library.TF_OperationNumOutputs(found):
            raise InvalidArgument(f"Tensor {name or '(no name)'}, specified in the signature, was not found.")
        return Output(found, int(index))

    def _operation(self, name: str) -> Any:
        return self._library.TF_GraphOperationByName(self._graph, name.encode())

    def run(
        self, plan: Plan, arrays: Sequence[np.ndarray], *, timeout: float | None = None, aside: bool = False
    ) -> list[np.ndarray]:
        """Computes the fetches.

        Args:
            plan: Plan.
            arrays: sequence of arrays. Those to feed, in the plan's order.
            timeout: float. Seconds, or `None` for no deadline.
            aside: bool. With little claim on the processor, as a load; without a deadline. Defaults to `False`.

        Raises:
            RequestError: in the runtime's words, or UNAVAILABLE after `close`.
        """
        lib = self._library
        self._enter()
        feeds: list[int] = []
        fetched = (c.c_void_p * len(plan.fetches))()
        options, status = None, lib.TF_NewStatus()
        try:
            for array in arrays:
                feeds.append(to_tensor(lib, array))
            if aside:
                options = lib.TF_NewBufferFromString(IN_THIS_THREAD, len(IN_THIS_THREAD))
            elif timeout is not None:
                text = TIMEOUT + _varint(max(1, int(timeout * 1000)))
                options = lib.TF_NewBufferFromString(text, len(text))
            given = (c.c_void_p * len(feeds))(*feeds)
            work = functools.partial(
                lib.TF_SessionRun, self._session, options, plan.feeds, given, len(feeds), plan.fetches, fetched,
                len(fetched), plan.targets, len(plan.targets), None, status,
            )  # fmt: skip
            if aside and len(_open) > 1:
                _aside(work)
            else:
                work()
            raise_for(lib, status)
            return [from_tensor(lib, tensor) for tensor in fetched if tensor]
        finally:
            for tensor in (*feeds, *fetched):
                if tensor:
                    lib.TF_DeleteTensor(tensor)
            if options is not None:
                lib.TF_DeleteBuffer(options)
            lib.TF_DeleteStatus(status)
            self._leave()

    def free_variables(self) -> None:
        """Frees the memory of all variables, aside. A run fails afterwards, until they are restored."""
        if self._destroy is None:
            self._destroy = Plan((Output * 0)(), (Output * 0)(), _operations(self._added_destroyers()))
        self.run(self._destroy, [], aside=True)

    def _added_destroyers(self) -> list[int]:
        """Operations that the graph lacked; the runtime takes them in with the next run."""
        lib = self._library
        found: list[int] = []
        self._enter()
        try:
            for variable in [op for op in self._operations() if lib.TF_OperationOpType(op) == b"VarHandleOp"]:
                name = f"serving_destroy_{len(found)}".encode()
                operation = lib.TF_NewOperation(self._graph, b"DestroyResourceOp", name)
                lib.TF_AddInput(operation, Output(variable, 0))
                lib.TF_SetAttrBool(operation, b"ignore_lookup_error", 1)
                with checked(lib) as status:
                    found.append(lib.TF_FinishOperation(operation, status))
        finally:
            self._leave()
        return found

    def close(self) -> None:
        """Ends what still runs and frees the memory; the last run to end does so where one is left."""
        with contextlib.suppress(Unavailable):
            self._enter()
            self._closed = True
            _open.discard(self)
            try:
                with checked(self._library) as status:
                    self._library.TF_CloseSession(self._session, status)
            finally:
                self._leave()

    def _enter(self) -> None:
        with self._lock:
            if self._closed:
                raise Unavailable("the version has been unloaded.")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._closed and not self._users
        if last:
            self._delete()


def _load(lib: Any, path: Path, graph: int, meta: Any, config: bytes) -> int:
    options, tags = lib.TF_NewSessionOptions(), (c.c_char_p * 1)(b"serve")
    run_options = lib.TF_NewBufferFromString(IN_THIS_THREAD, len(IN_THIS_THREAD))
    try:
        with checked(lib) as status:
            lib.TF_SetConfig(options, config, len(config), status)
        with checked(lib) as status:
            work = functools.partial(
                lib.TF_LoadSessionFromSavedModel, options, run_options, os.fsencode(path), tags, 1, graph, meta, status
            )
            return _aside(work) if _open else work()
    finally:
        lib.TF_DeleteBuffer(run_options)
        lib.TF_DeleteSessionOptions(options)


def _delete(lib: Any, session: int, graph: int) -> None:
    with checked(lib) as status:
        lib.TF_DeleteSession(session, status)
    lib.TF_DeleteGraph(graph)
    trim = getattr(c.CDLL(None), "malloc_trim", None)
    if trim is not None:  # else the allocator keeps what lay between longer-lived blocks
        trim(0)


def _aside(work: Callable[[], Any]) -> Any:
    """Calls into the runtime in a thread that stands behind the others: a thread can not take its niceness back."""
    results = []

    def run() -> None:
        if sys.platform == "linux":  # elsewhere niceness is the process's
            mine = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, mine, os.getpriority(os.PRIO_PROCESS, mine) + LOAD_NICENESS)
        results.append(work())

    thread = threading.Thread(target=run, name="serving-load")
    thread.start()
    interrupt = None
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt as error:  # what the runtime writes to must outlive the call
            interrupt = error
    if interrupt is not None:
        raise interrupt
    return results[0]


def _operations(found: Sequence[int]) -> Any:
    return (c.c_void_p * len(found))(*found)


def _meta_graph(meta_graph: bytes) -> bytes:
    """The entries of KEPT, out of a `MetaGraphDef`, whose fields all have their length in front."""
    kept, place = [], 0
    while place < len(meta_graph):
        tag, begin = meta_graph[place : place + 1], place
        length, shift, place = 0, 0, place + 1
        while True:
            byte = meta_graph[place]
            length, shift, place = length | (byte & 127) << shift, shift + 7, place + 1
            if byte < 128:
                break
        place += length
        if tag in KEPT:
            kept.append(meta_graph[begin:place])
    return b"".join(kept)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])
