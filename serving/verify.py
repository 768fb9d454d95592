"""Whether a SavedModel may be published: `python -m serving.verify DIRECTORY`.

`serving.verifier` runs it in a process of its own, so that nothing of the training process (custom objects, variables,
lookup tables) can stand in for what is missing from the folder.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.allow_list import check_graph
from serving.errors import ServingError
from serving.layout import check_layout
from serving.manifest import version_content
from serving.publish import GOLDEN, as_lists

if TYPE_CHECKING:
    import numpy as np

    from serving.server.bundle import Bundle

__all__ = ["Loaded", "main", "predict", "verify"]

FACTS = ("embedding_space_id", "seed_watermark", "table_version")  # that an answer tells as well


class Loaded:
    """One SavedModel and what it was loaded from: other files are another one.

    Args:
        directory: str or Path. The SavedModel's folder.
        known_graph: bool. Whether the graph is run as it is written. Defaults to `False`.

    Raises:
        ServingError: it does not load.
    """

    def __init__(self, directory: str | Path, *, known_graph: bool = False) -> None:
        from serving.server.bundle import Bundle

        self._of = self._marks(directory, known_graph)
        self.bundle = Bundle(directory, warm_up=False, optimize=not known_graph)

    def is_of(self, directory: str | Path, *, known_graph: bool) -> bool:
        """Whether to load it once more would give the same."""
        return self._of == self._marks(directory, known_graph)

    @staticmethod
    def _marks(directory: str | Path, known_graph: bool) -> tuple[Any, ...]:
        files = [Path(directory) / "saved_model.pb", *sorted(Path(directory, "variables").glob("*"))]
        found = [(str(file), file.stat()) for file in files if file.is_file()]
        return known_graph, *((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def predict(bundle: "Bundle", requests: Iterable[Mapping[str, Any]]) -> list[dict[str, list[Any]]]:
    """Outputs by name of requests, `signature` and `inputs`, as JSON has them."""
    return [{name: as_lists(values) for name, values in _predict(bundle, request).items()} for request in requests]


def _predict(bundle: "Bundle", request: Mapping[str, Any]) -> "dict[str, np.ndarray]":
    from serving.server.decode import columns_to_arrays

    signature = bundle.signatures.get(request["signature"])
    if signature is None:
        raise ServingError("the model has no such signature.")
    return bundle.predict(columns_to_arrays(request["inputs"], signature.inputs), signature=request["signature"])


def verify(directory: str | Path, *, known_graph: bool = False, loaded: Loaded | None = None) -> int:
    """Loads `directory` and replays its warm-up records and the requests of its `assets.extra/golden.json`, if any.

    To compile a signature takes half a second and more, and all read the same tables. Where the graph has been verified
    before and its variables alone are new, those of the first golden request's signature say whether they are right,
    and the graph is run as it is written.

    Refused: links and files that do not belong in a SavedModel, an op outside `serving.allow_list`, what does not load,
    missing variables, a warm-up record that can not be read or fails, an answer with NaN or infinity, a `score` that is
    the same for every candidate of a request, an answer that differs from the expected one, and one whose
    `embedding_space_id`, `seed_watermark` or `table_version` is not that of the manifest's facts.

    Args:
        directory: str or Path. The SavedModel's folder.
        known_graph: bool. Whether it is, byte for byte, that of a verified version. Defaults to `False`.
        loaded: Loaded or `None`. Used where it is of these files. Defaults to loading them.

    Returns:
        The number of requests replayed.

    Raises:
        ServingError: one line with the request, the output, the rule and the value.
    """
    directory = Path(directory)
    check_layout(directory)
    check_graph(directory)
    facts = version_content(directory).facts
    path = directory / GOLDEN
    golden = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"requests": []}
    requests = list(enumerate(golden["requests"]))
    known_graph &= bool(requests)
    if known_graph:
        requests = [pair for pair in requests if pair[1]["signature"] == golden["requests"][0]["signature"]]
    if loaded is None or not loaded.is_of(directory, known_graph=known_graph):
        loaded = Loaded(directory, known_graph=known_graph)
    loaded.bundle.warm_up(directory, requests[0][1]["signature"] if known_graph else None)
    for number, request in requests:
        where = f"{GOLDEN}: request {number} ({request['signature']})"
        try:
            answer = _replay(loaded.bundle, request, float(golden.get("tolerance", 1e-5)))
            _compare_facts(answer, facts)
        except ServingError as error:
            raise ServingError(f"{where}: {error}") from error
    return len(requests)


def _replay(bundle: "Bundle", request: dict[str, Any], tolerance: float) -> "dict[str, np.ndarray]":
    import numpy as np

    answer = _predict(bundle, request)
    for name, values in answer.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ServingError(f"`{name}` should be finite. Received: {values[~np.isfinite(values)][0]}.")
    score = answer.get("score")
    if score is not None and score.size > 1 and (score == score.flat[0]).all():
        raise ServingError(f"`score` should differ between candidates. Received: {score.flat[0]} for all {score.size}.")
    for name, values in request["outputs"].items():
        if name not in answer:
            raise ServingError(f"the model has no output `{name}`.")
        _compare(name, answer[name], values, tolerance)
    return answer


def _compare_facts(answer: "dict[str, np.ndarray]", facts: Mapping[str, Any]) -> None:
    import numpy as np

    for name in FACTS:
        wanted = facts.get(name)
        for value in answer.get(name, np.empty(0)).flat if wanted is not None else ():
            if value != wanted:
                raise ServingError(f"`{name}` should be {wanted!r}, as the facts say. Received: {value}.")


def _compare(name: str, answer: "np.ndarray", expected: list[Any], tolerance: float) -> None:
    import numpy as np

    if answer.dtype.kind == "O":
        wanted = np.array([str(value).encode() for value in np.array(expected, dtype=object).flat], dtype=object)
        wanted = wanted.reshape(np.shape(expected))
    else:
        wanted = np.asarray(expected, dtype=answer.dtype)
    if wanted.shape != answer.shape:
        raise ServingError(f"`{name}` should have shape {wanted.shape}. Received: {answer.shape}.")
    if answer.dtype.kind == "f":
        wrong = np.abs(answer - wanted) > tolerance * np.maximum(1.0, np.abs(wanted))
    else:
        wrong = answer != wanted
    if wrong.any():
        first = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ServingError(f"`{name}` at {first} should be {wanted[first]} (+-{tolerance}). Received: {answer[first]}.")


def main(arguments: list[str] | None = None) -> int:
    """Prints one line; the exit code is 0 when the folder may be published, else 2.

    For `-` it asks standard input, a line of JSON a time, once the runtime is there: `directory`, `known_graph`, and
    `requests` where they are to be answered instead of verified. Each has a line of JSON in return, `answer` or
    `refused`; the end of the input is the end.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1:
        print("usage: python -m serving.verify DIRECTORY | -")
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if arguments[0] == "-":
        _prepare()
        _answer_lines()
        return 0
    try:
        print(f"ok: {verify(arguments[0])} golden requests")
    except ServingError as error:
        print(str(error).replace("\n", " "))
        return 2
    return 0


def _answer_lines() -> None:
    loaded = None
    for line in sys.stdin:
        asked = json.loads(line)
        directory, known_graph = asked["directory"], asked["known_graph"]
        answer: Any
        try:
            if "requests" in asked:
                loaded = Loaded(directory, known_graph=known_graph)
                answer = predict(loaded.bundle, asked["requests"])
            else:
                answer = verify(directory, known_graph=known_graph, loaded=loaded)
            said = {"answer": answer}
        except ServingError as error:
            said = {"refused": str(error).replace("\n", " ")}
        print(json.dumps(said), flush=True)


def _prepare() -> None:
    """What every verification needs, before it is known which one."""
    from serving.server.bundle import Bundle
    from serving.server.decode import columns_to_arrays
    from serving.server.runtime import library

    _ = Bundle, columns_to_arrays
    library()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a publisher waits for this process, and the runtime takes a tenth of a second to be taken down
