"""One SavedModel in memory, run the way TensorFlow Serving runs it: a session, feeds and fetches by name."""

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import CODES, FailedPrecondition, InvalidArgument, NotFound, RequestError, request_error

__all__ = ["Bundle", "DEFAULT_SIGNATURE"]

DEFAULT_SIGNATURE = "serving_default"


class Bundle:
    """A loaded SavedModel.

    A session rather than restored Python functions: errors carry the runtime's own texts, signatures written by
    TensorFlow 1 and 2 behave alike, only the requested outputs are computed, a run can have a deadline, and a call
    costs tens of microseconds. Safe to use from many threads.

    Args:
        path: str or Path. The folder that holds `saved_model.pb`.

    Attributes:
        signatures: dict. Signature name -> `SignatureDef`, the initialiser's own among them.

    Raises:
        RequestError: the folder is not a SavedModel, its variables are missing, or the runtime refused it.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not (path / "saved_model.pb").is_file():
            raise NotFound(
                "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
                f"`saved_model.pb`)\nSpecified file path: {path}"
            )
        import tensorflow as tf
        from tensorflow.python.saved_model.loader_impl import SavedModelLoader

        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=1
        )  # one thread a request, parallel over requests
        config.gpu_options.allow_growth = True  # a trainer beside it needs memory too
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        try:
            with self._graph.as_default():
                meta_graph = SavedModelLoader(str(path)).load(self._session, ["serve"])
                self._session._extend_graph()
        except tf.errors.OpError as error:
            raise _translate(error) from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            raise RequestError(f"{path}: {error}", "INTERNAL") from error
        stateful = {"VarHandleOp", "VariableV2", "Variable"}
        if not (path / "variables" / "variables.index").is_file() and any(
            operation.type in stateful for operation in self._graph.get_operations()
        ):
            raise NotFound(f"{path}: the graph has variables, but there is no variables/variables.index.")
        self._lock = threading.Lock()
        self.signatures: dict[str, Any] = dict(meta_graph.signature_def)
        self._plans: dict[tuple[str, tuple[str, ...]], tuple[dict[str, Any], dict[str, Any]]] = {}

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
            RequestError: with TensorFlow Serving's code and text.
        """
        name = signature or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise FailedPrecondition(f'Serving signature key "{name}" not found.')
        inputs = self._with_defaults(name, inputs)
        feeds, fetches = self._plan(name, tuple(output_filter))
        feed = {}
        for alias, tensor in feeds.items():
            if alias not in inputs:
                where = f"{alias}(feed name: {self.signatures[name].inputs[alias].name})"
                raise InvalidArgument(
                    f"Signature input alias: {where} not found in request and no default value provided. Inputs "
                    f"expected to be in the request {{{','.join(sorted(inputs))}}}, or default input alias set: "
                    + ",".join(sorted(self.signatures[name].defaults))
                )
            feed[tensor] = inputs[alias]
        values = self._run(feed, list(fetches.values()), timeout)
        return dict(zip(fetches, values, strict=True))

    def _with_defaults(self, name: str, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        signature = self.signatures[name]
        given, wanted = set(inputs), set(signature.inputs)
        if len(given) > len(wanted) or (len(given) < len(wanted) and not signature.defaults):

            def listed(names: set[str]) -> str:
                return "{" + ",".join(sorted(names)) + "}"

            raise InvalidArgument(
                f"input size does not match signature: {len(given)}!={len(wanted)} len({listed(given)}) != "
                f"len({listed(wanted)}). Sent extra: {listed(given - wanted)}. "
                f"Missing but required: {listed(wanted - given)}."
            )
        if not signature.defaults:
            return inputs
        import tensorflow as tf

        missing = [alias for alias in wanted - given if alias in signature.defaults]
        return {**{alias: tf.make_ndarray(signature.defaults[alias]) for alias in missing}, **inputs}

    def _plan(self, name: str, output_filter: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Input alias -> feed, output alias -> fetch: worked out once for a signature and a filter."""
        with self._lock:
            if (name, output_filter) in self._plans:
                return self._plans[name, output_filter]
        signature = self.signatures[name]
        seen: set[str] = set()
        for alias in output_filter:
            if alias not in signature.outputs:
                expected = ",".join(sorted(signature.outputs))
                raise InvalidArgument(
                    f"output tensor alias not found in signature: {alias} "
                    f"Outputs expected to be in the set {{{expected}}}."
                )
            if alias in seen:
                raise InvalidArgument(f"duplicate output tensor alias: {alias}")
            seen.add(alias)
        plan = (
            {alias: self._tensor(signature.inputs[alias].name) for alias in sorted(signature.inputs)},
            {
                alias: self._tensor(signature.outputs[alias].name)
                for alias in output_filter or sorted(signature.outputs)
            },
        )
        with self._lock:
            self._plans[name, output_filter] = plan
        return plan

    def _tensor(self, name: str) -> Any:
        try:
            return self._graph.get_tensor_by_name(name)._as_tf_output()
        except (KeyError, ValueError) as error:
            raise InvalidArgument(
                f"Tensor {name or '(no name)'}, specified in the signature, was not found."
            ) from error

    def _run(self, feed: dict[Any, np.ndarray], fetches: list[Any], timeout: float | None) -> list[np.ndarray]:
        import tensorflow as tf
        from tensorflow.python.client import pywrap_tf_session

        options = None
        if timeout is not None:
            wanted = tf.compat.v1.RunOptions(timeout_in_ms=max(1, int(timeout * 1000)))
            options = pywrap_tf_session.TF_NewBufferFromString(wanted.SerializeToString())
        try:
            # Session.run would check dtypes and shapes before the runtime does, with other texts than the runtime's,
            # and TensorFlow Serving leaves both to the runtime.
            return self._session._call_tf_sessionrun(options, feed, fetches, [], None)
        except tf.errors.OpError as error:
            raise _translate(error) from error
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)

    def close(self) -> None:
        """Frees the memory; the bundle can not be used afterwards."""
        self._plans.clear()
        self._session.close()
        self._session = None  # the last reference: deletes the variables now, not at some collection


def _translate(error: Any) -> RequestError:
    return request_error(CODES[error.error_code], error.message)
