"""The REST client: any TensorFlow Serving, any machine. Needs urllib3 only, neither TensorFlow nor numpy."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

import urllib3

from serving.errors import HTTP_STATUS, DeadlineExceeded, InvalidArgument, ServingError, Unavailable, request_error
from serving.signature import Signature, as_list, declared_signature, rank_inputs

__all__ = ["RankClient"]

_CODES = {500: "INTERNAL", 400: "INVALID_ARGUMENT", 409: "ABORTED"}  # of the statuses that several codes share
_CODES = {**{status: code for code, status in HTTP_STATUS.items()}, **_CODES}


class RankClient:
    """Calls a model over REST. Safe to use from many threads.

    Args:
        url: str. The server. Defaults to `"http://127.0.0.1:8501"`.
        model: str. The model's name. Defaults to `"seedrank"`.
        timeout: float. Seconds that one call may take, retries included. Defaults to `5.0`.
        retries: int. Further attempts when the server can not be reached or answers UNAVAILABLE. Defaults to `2`.

    Example:
        client = RankClient(model="seedrank")
        answer = client.rank(42, [7, 8, 9], context={"tab": 1})
        best = max(zip(answer["score"], [7, 8, 9]))
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8501", model: str = "seedrank", timeout: float = 5.0, retries: int = 2
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ServingError(f"`url` should start with http:// or https://. Received: url={url!r}.")
        if timeout <= 0:
            raise ServingError(f"`timeout` should be positive. Received: timeout={timeout}.")
        if retries < 0:
            raise ServingError(f"`retries` should not be negative. Received: retries={retries}.")
        self._base = f"{url.rstrip('/')}/v1/models/{quote(model, safe='')}"
        self._live = f"{url.rstrip('/')}/v1/seedrank/models/{quote(model, safe='')}"
        self._timeout = timeout
        self._retries = retries
        self._pool = urllib3.PoolManager(maxsize=16, retries=False)
        self._signatures: dict[tuple[str, int | None], Signature] = {}

    def predict(
        self, inputs: Mapping[str, Any], *, signature: str | None = None, version: int | None = None
    ) -> dict[str, Any]:
        """Runs a signature.

        Args:
            inputs: dict of lists or arrays, by input name; `bytes` travel as base64.
            signature: str. Defaults to `serving_default`.
            version: int. Defaults to the newest.

        Returns:
            Dict of lists, by output name.

        Raises:
            ServingError: a `RequestError` with the server's words and code.
        """
        declared = self._signature(signature or "serving_default", version)
        body: dict[str, Any] = {"inputs": {name: _to_json(as_list(values)) for name, values in inputs.items()}}
        if signature is not None:
            body["signature_name"] = signature
        try:
            reply = self._call("POST", f"{self._base}{_part(version)}:predict", json.dumps(body).encode())
        except InvalidArgument:
            self._signatures.clear()  # a new version may have other inputs
            raise
        outputs = reply["outputs"]
        if len(declared.outputs) == 1:
            outputs = {next(iter(declared.outputs)): outputs}
        return {name: _from_json(values) for name, values in outputs.items()}

    def rank(
        self,
        user_id: int | str,
        item_ids: Sequence[Any],
        *,
        context: Mapping[str, Any] | None = None,
        price: Sequence[float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """Scores candidate items for a user; the answer is in the order of `item_ids`.

        Args:
            user_id: int or str.
            item_ids: sequence of int or str.
            context: dict. Every context column that the model declares.
            price: sequence of float. By candidate. Defaults to none known.
            weights: dict. Part -> weight, to try other fusion weights: the `rank_with_weights` signature.

        Returns:
            Dict of lists of N, by output name: similarity, pctr, pcvr, pctcvr, score and the others.
        """
        name = "rank" if weights is None else "rank_with_weights"
        declared = self._signature(name, None)
        inputs = rank_inputs(declared, user_id, item_ids, context=context, price=price, weights=weights)
        return self.predict(inputs, signature=name)

    def status(self) -> list[dict[str, Any]]:
        """The model's versions, newest first: `version`, `state`, `error_code`, `error_message`."""
        return [
            {"version": int(entry["version"]), "state": entry["state"], **entry["status"]}
            for entry in self._call("GET", self._base)["model_version_status"]
        ]

    def metadata(self, version: int | None = None) -> dict[str, Any]:
        """The model's signatures, as TensorFlow Serving words them."""
        return self._call("GET", f"{self._base}{_part(version)}/metadata")

    def live(self) -> dict[str, Any]:
        """The version that answers: `version`, `state`, and `hashes` of what it is made of, by name.

        Only the embedded server tells them; TensorFlow Serving answers INVALID_ARGUMENT.
        """
        found = self._call("GET", self._live)
        return {**found, "version": int(found["version"])}

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()

    def __enter__(self) -> "RankClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signature(self, name: str, version: int | None) -> Signature:
        if (name, version) not in self._signatures:
            self._signatures[name, version] = declared_signature(self.metadata(version), name)
        return self._signatures[name, version]

    def _call(self, method: str, url: str, body: bytes | None = None) -> Any:
        deadline = time.monotonic() + self._timeout
        for attempt in range(self._retries + 1):
            try:
                return self._attempt(method, url, body, deadline - time.monotonic())
            except Unavailable:
                pause = 0.05 * 2**attempt
                if attempt == self._retries or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
        raise Unavailable(f"no answer from {url}")

    def _attempt(self, method: str, url: str, body: bytes | None, seconds: float) -> Any:
        try:
            response = self._pool.request(
                method, url, body=body, timeout=max(seconds, 0.001), headers={"Content-Type": "application/json"}
            )
        except (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.NewConnectionError) as error:
            raise Unavailable(f"{url} can not be reached: {error}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineExceeded(f"no answer from {url} within {self._timeout} seconds") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(f"{url} can not be reached: {error}") from error
        try:
            content = json.loads(response.data) if response.data else {}
        except ValueError:
            content = {}
        if response.status != 200:
            said = content.get("error") if isinstance(content, dict) else None
            message = said or f"{method} {url} was answered with HTTP status {response.status}"
            raise request_error(_CODES.get(response.status, "UNKNOWN"), message)
        return content


def _part(version: int | None) -> str:
    return "" if version is None else f"/versions/{version}"


def _to_json(values: Any) -> Any:
    if isinstance(values, list):
        return [_to_json(value) for value in values]
    return {"b64": base64.b64encode(values).decode()} if isinstance(values, bytes) else values


def _from_json(values: Any) -> Any:
    if isinstance(values, list):
        if values and isinstance(values[0], (int, float, str)):
            return values
        return [_from_json(value) for value in values]
    return base64.b64decode(values["b64"]) if isinstance(values, dict) else values
