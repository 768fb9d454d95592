"""The REST client: any TensorFlow Serving, any machine. Needs urllib3 only, neither TensorFlow nor numpy."""

import base64
import gzip
import json
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException, RemoteDisconnected
from typing import Any
from urllib.parse import quote

import urllib3

from serving.age import watermark_of
from serving.client import Client, Which
from serving.errors import CODES, HTTP_STATUS, DeadlineExceeded, RequestError, ServingError, Unavailable, request_error
from serving.signature import Signature, as_list

__all__ = ["RankClient"]

# HTTP status -> code: where several codes share a status the likely one; then what gateways before a server say.
_CODES = {HTTP_STATUS[code]: code for code in reversed(CODES)}
_CODES |= {500: "INTERNAL", 409: "ABORTED", 403: "PERMISSION_DENIED", 408: "DEADLINE_EXCEEDED"}
_CODES |= {413: "RESOURCE_EXHAUSTED", 502: "UNAVAILABLE"}
_PIECE = 1 << 16


class RankClient(Client):
    """Calls a model over REST; `serving.rpc.RankClient` is its twin. Safe to use from many threads.

    Args:
        url: str. The server. Defaults to `"http://127.0.0.1:8501"`.
        model: str. The model's name. Defaults to `"seedrank"`.
        timeout: float. Seconds that one call may take, all attempts together. Defaults to `5.0`.
        retries: int. Further attempts when the server can not be reached or answers UNAVAILABLE. Defaults to `2`.
        compress: bool. Send gzip: fewer bytes, more time. Defaults to `False`.
        max_table_age: float or `None`. Seconds beyond which an answer's tables are `stale`. Defaults to no limit.
        hard_table_age: float or `None`. Seconds beyond which there is `StaleTables` in place of an answer. Defaults to
            no limit.

    Example:
        client = RankClient(model="seedrank")
        answer = client.rank(42, [7, 8, 9], context={"tab": 1})
        best = max(zip(answer["score"], [7, 8, 9]))
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8501",
        model: str = "seedrank",
        timeout: float = 5.0,
        retries: int = 2,
        *,
        compress: bool = False,
        max_table_age: float | None = None,
        hard_table_age: float | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ServingError(f"`url` should start with http:// or https://. Received: url={url!r}.")
        super().__init__(model, timeout, retries, max_table_age, hard_table_age)
        self._base = f"{url.rstrip('/')}/v1/models/{quote(model, safe='')}"
        self._live = f"{url.rstrip('/')}/v1/seedrank/models/{quote(model, safe='')}"
        self._compress = compress
        self._pool = urllib3.PoolManager(maxsize=16, retries=False)

    def status(self) -> list[dict[str, Any]]:
        """The model's versions, newest first: `version`, `state`, `error_code`, `error_message`."""
        return [
            {"version": int(entry["version"]), "state": entry["state"], **entry["status"]}
            for entry in self._call("GET", self._base, self._deadline())["model_version_status"]
        ]

    def live(self) -> dict[str, Any]:
        """The version that answers: `version`, `state`, `hashes` of what it is made of, `facts`, `table_age_seconds`.

        Only the embedded server tells them; TensorFlow Serving answers INVALID_ARGUMENT.
        """
        found = self._call("GET", self._live, self._deadline())
        return {**found, "version": int(found["version"])}

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()

    def _predict(
        self,
        signature: str,
        declared: Signature,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        which: Which,
        deadline: float,
    ) -> tuple[dict[str, Any], Any]:
        columns = {name: _to_json(as_list(values)) for name, values in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}).encode()
        found = self._call("POST", f"{self._base}{_part(which)}:predict", deadline, body)["outputs"]
        if len(declared.outputs) == 1:  # then the values stand for themselves
            found = {next(iter(declared.outputs)): found}
        elif not isinstance(found, dict):
            raise RequestError("the model's outputs have changed since its metadata was read", "FAILED_PRECONDITION")
        answer = {name: _from_json(found[name]) for name in outputs or found}
        return answer, watermark_of(found)

    def _metadata(self, which: Which, deadline: float) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", f"{self._base}{_part(which)}/metadata", deadline)
        return found

    def _call(self, method: str, url: str, deadline: float, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if body is not None and self._compress:
            body = gzip.compress(body, 1)
            headers["Content-Encoding"] = "gzip"
        status, content = self._again(
            lambda seconds: self._attempt(method, url, body, headers, seconds, deadline), deadline
        )
        if status != 200:
            raise _refusal(method, url, status, content)
        try:
            return json.loads(content)
        except ValueError as error:
            raise RequestError(f"{method} {url} was answered with what is no JSON: {error}") from error

    def _attempt(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str], seconds: float, deadline: float
    ) -> tuple[int, bytes]:
        try:
            limit = urllib3.Timeout(total=seconds)
            response = self._pool.request(
                method, url, body=body, headers=headers, timeout=limit, preload_content=False
            )  # fmt: skip
        except (urllib3.exceptions.ConnectTimeoutError, urllib3.exceptions.NewConnectionError) as error:
            raise Unavailable(f"{url} can not be reached: {error}") from error
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineExceeded(f"no answer from {url} within {self._timeout} seconds") from error
        except urllib3.exceptions.HTTPError as error:
            if _answered(error):
                raise RequestError(f"the reply of {url} is broken: {error}") from error
            raise Unavailable(f"{url} can not be reached: {error}") from error
        try:
            content = self._read(response, deadline)
        except BaseException:
            response.close()  # what is left of this reply must not be the next one's beginning
            raise
        if _CODES.get(response.status) == "UNAVAILABLE":
            raise _refusal(method, url, response.status, content)
        return response.status, content

    def _read(self, response: urllib3.BaseHTTPResponse, deadline: float) -> bytes:
        pieces = []
        late = f"no whole answer from {self._base} within {self._timeout} seconds"
        try:
            while piece := response.read1(_PIECE):
                pieces.append(piece)
                if time.monotonic() >= deadline:  # a server that trickles keeps within each read's own time
                    raise DeadlineExceeded(late)
        except urllib3.exceptions.TimeoutError as error:
            raise DeadlineExceeded(late) from error
        except urllib3.exceptions.HTTPError as error:  # the work was done once: not tried again
            raise RequestError(f"the reply of {self._base} broke off: {error}") from error
        return b"".join(pieces)


def _refusal(method: str, url: str, status: int, content: bytes) -> RequestError:
    try:
        said = json.loads(content)["error"]
    except (ValueError, TypeError, KeyError):
        said = f"{method} {url} was answered with HTTP status {status}"
    return request_error(_CODES.get(status, "UNKNOWN"), str(said))


def _answered(error: Exception) -> bool:
    """Whether a part of a reply had come when the connection failed."""
    causes = [cause for cause in (error.__cause__, *error.args) if isinstance(cause, HTTPException)]
    return any(not isinstance(cause, RemoteDisconnected) for cause in causes)


def _part(which: Which) -> str:
    version, label = which
    if label is not None:
        return f"/labels/{quote(label, safe='')}"
    return "" if version is None else f"/versions/{version}"


def _to_json(values: Any) -> Any:
    if isinstance(values, list):
        if {*map(type, values)} <= {int, float, str, bool}:
            return values
        return [_to_json(value) for value in values]
    return {"b64": base64.b64encode(values).decode()} if isinstance(values, bytes) else values


def _from_json(values: Any) -> Any:
    if isinstance(values, list):
        if values and isinstance(values[0], (int, float, str)):
            return values
        return [_from_json(value) for value in values]
    return base64.b64decode(values["b64"]) if isinstance(values, dict) else values
