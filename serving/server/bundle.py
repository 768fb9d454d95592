"""One SavedModel in memory, run the way TensorFlow Serving runs it: a session, feeds and fetches by name."""

import hashlib
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.allow_list import check_graph
from serving.errors import FailedPrecondition, InvalidArgument, NotFound, ServingError
from serving.protos import messages
from serving.server.runtime import Plan, Session
from serving.tensors import unpack
from serving.warmup import read_warmup

__all__ = ["Bundle", "DEFAULT_SIGNATURE"]

DEFAULT_SIGNATURE = "serving_default"
VARIABLES = "variables/variables"
STATEFUL = {"VarHandleOp", "VariableV2", "Variable"}
MAX_PLANS = 64  # each selection of outputs costs the runtime an executor; beyond it all outputs are computed


class _Signature(NamedTuple):
    """What a call needs of a `SignatureDef`, whose maps are slow to read: alias -> tensor, alias -> default."""

    inputs: dict[str, str]
    outputs: dict[str, str]
    defaults: dict[str, np.ndarray]


class Bundle:
    """A loaded SavedModel.

    Errors carry the runtime's own texts, signatures written by TensorFlow 1 and 2 behave alike, only the requested
    outputs are computed, and a run can have a deadline. Safe to use from many threads.

    Args:
        path: str or Path. The folder that holds `saved_model.pb`.
        warm_up: bool. Run the model's recorded requests, so that the first real one is as fast as the others. Defaults
            to `True`.
        optimize: bool. See `serving.server.runtime.Session`. Defaults to `True`.

    Attributes:
        signatures: dict. Signature name -> `SignatureDef`, the initialiser's own among them.
        warm_up_seconds: float or None. What the recorded requests took; none where there were none.

    Raises:
        RequestError: the folder is not a SavedModel, its variables are missing, the runtime refused it, or one of its
            warm-up requests fails.
    """

    def __init__(self, path: str | Path, *, warm_up: bool = True, optimize: bool = True) -> None:
        path = Path(path)
        self.warm_up_seconds: float | None = None
        if not (path / "saved_model.pb").is_file():
            raise NotFound(
                "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
                f"`saved_model.pb`)\nSpecified file path: {path}"
            )
        self._graph = _graph_digest(path)
        self._session = Session(path, optimize=optimize)
        self._lock = threading.Lock()
        self._plans: dict[tuple[str, tuple[str, ...]], Plan] = {}
        meta_graph = messages("tensorflow/core/protobuf/meta_graph.proto").MetaGraphDef.FromString(
            self._session.meta_graph
        )
        self.signatures: dict[str, Any] = dict(meta_graph.signature_def)
        self._saver = meta_graph.saver_def
        self._checked = False  # whether running it changes nothing but its variables
        self._signatures = {
            name: _Signature(
                {alias: signature.inputs[alias].name for alias in sorted(signature.inputs)},
                {alias: signature.outputs[alias].name for alias in sorted(signature.outputs)},
                {alias: unpack(signature.defaults[alias]) for alias in signature.defaults},
            )
            for name, signature in self.signatures.items()
        }
        try:
            # The runtime takes a folder without variables for a model without variables.
            if not _has_variables(path) and STATEFUL & self._session.operation_types():
                raise NotFound(f"{path}: the graph has variables, but there is no variables/variables.index.")
            if warm_up:
                self.warm_up(path)
        except BaseException:
            self.close()
            raise

    def warm_up(self, path: Path, signature: str | None = None) -> None:
        """Runs the recorded requests of a folder aside, so that those of the version that serves now go first.

        Args:
            path: Path. The model's own folder.
            signature: str or `None`. Only those of this signature that ask for all outputs. Defaults to all.
        """
        start = time.perf_counter()
        requests = messages("tensorflow_serving/apis/predict.proto").PredictRequest
        for record in read_warmup(path):
            request = requests.FromString(record)
            inputs = {alias: unpack(tensor) for alias, tensor in request.inputs.items()}
            name = request.model_spec.signature_name
            if signature is not None and (signature != name or request.output_filter):
                continue
            self._predict(inputs, name, tuple(request.output_filter), aside=True)
            self.warm_up_seconds = time.perf_counter() - start

    def predict(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        signature: str = "",
        output_filter: Iterable[str] = (),
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
            inputs: dict of arrays. By input name; the dtypes are the signature's, shapes are the graph's affair.
            signature: str. Empty means `serving_default`. Defaults to `""`.
            output_filter: iterable of str. The outputs to compute. Defaults to all.
            timeout: float. Seconds, or `None` for no deadline.

        Returns:
            Dict of arrays, by output name.

        Raises:
            RequestError: with TensorFlow Serving's code and text; UNAVAILABLE after `close`.
        """
        return self._predict(inputs, signature, tuple(output_filter), timeout=timeout)

    def _predict(
        self, inputs: Mapping[str, np.ndarray], name: str, output_filter: tuple[str, ...], **how: Any
    ) -> dict[str, np.ndarray]:
        name = name or DEFAULT_SIGNATURE
        signature = self._signatures.get(name)
        if signature is None:
            raise FailedPrecondition(f'Serving signature key "{name}" not found.')
        if inputs.keys() != signature.inputs.keys():
            inputs = _completed(signature, inputs)
        wanted = _wanted(signature, output_filter)
        plan, computed = self._plan(name, signature, wanted)
        values = self._session.run(plan, [inputs[alias] for alias in signature.inputs], **how)
        outputs = dict(zip(computed, values, strict=True))
        return {alias: outputs[alias] for alias in wanted}

    def _plan(self, name: str, signature: _Signature, wanted: tuple[str, ...]) -> tuple[Plan, tuple[str, ...]]:
        """The plan that computes the wanted outputs, and all that it computes."""
        every = tuple(signature.outputs)
        computed = tuple(sorted(wanted))
        with self._lock:
            if (name, computed) not in self._plans and len(self._plans) >= MAX_PLANS:
                computed = every
            plan = self._plans.get((name, computed))
            if plan is None:
                fetches = [signature.outputs[alias] for alias in computed]
                plan = self._session.plan(list(signature.inputs.values()), fetches)
                self._plans[name, computed] = plan
        return plan, computed

    def empty(self) -> None:
        """Frees the memory of the variables; no request can be answered until `renew`."""
        self._session.free_variables()

    def renew(self, path: str | Path) -> bool:
        """Becomes another version, whose graph is the same: its variables are read and nothing is compiled again.

        What runs a thousand times between two refreshes takes seconds to compile, the tables of one a fraction of that
        to read. Nobody may use the bundle meanwhile.

        Args:
            path: str or Path. The version's folder.

        Returns:
            Whether it did. If not, as well as after an error, it answers nothing and has to be closed: the graph is
            another one, or is not of `serving.allow_list`, whose operations keep nothing but variables from one run to
            the next, or the variables do not fit.

        Raises:
            RequestError: a warm-up request fails.
        """
        path = Path(path)
        if not self._saver.restore_op_name or not _has_variables(path) or _graph_digest(path) != self._graph:
            return False
        try:
            if not self._checked:
                check_graph(path)
                self._checked = True
            plan = self._session.plan([self._saver.filename_tensor_name], [], [self._saver.restore_op_name])
            self._session.run(plan, [np.array(str(path / VARIABLES).encode(), object)], aside=True)
        except ServingError:  # a load says what is wrong
            return False
        self.warm_up_seconds = None
        self.warm_up(path)
        return True

    def close(self) -> None:
        """Frees the memory; the bundle can not be used afterwards."""
        self._session.close()


def _has_variables(path: Path) -> bool:
    return (path / f"{VARIABLES}.index").is_file()


def _graph_digest(path: Path) -> bytes:
    with open(path / "saved_model.pb", "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _wanted(signature: _Signature, output_filter: tuple[str, ...]) -> tuple[str, ...]:
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            expected = ",".join(signature.outputs)
            raise InvalidArgument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set {{{expected}}}."
            )
        if alias in seen:
            raise InvalidArgument(f"duplicate output tensor alias: {alias}")
        seen.add(alias)
    return output_filter or tuple(signature.outputs)


def _completed(signature: _Signature, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The inputs and the defaults of those that are not given.

    Raises:
        InvalidArgument: the wrong number of inputs, or one that is missing.
    """
    given, wanted = set(inputs), set(signature.inputs)
    if len(given) > len(wanted) or (len(given) < len(wanted) and not signature.defaults):
        raise InvalidArgument(
            f"input size does not match signature: {len(given)}!={len(wanted)} len({_listed(given)}) != "
            f"len({_listed(wanted)}). Sent extra: {_listed(given - wanted)}. "
            f"Missing but required: {_listed(wanted - given)}."
        )
    inputs = {**signature.defaults, **inputs}
    for alias, tensor in signature.inputs.items():
        if alias not in inputs:
            raise InvalidArgument(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {_listed(given)}, or default input alias set: "
                + ",".join(sorted(signature.defaults))
            )
    return inputs


def _listed(names: set[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
