"""What both clients do alike: the calls, the total deadline, when to try again, and what the model declares."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from serving.age import WATERMARK, check_age, table_age
from serving.errors import (
    FailedPrecondition,
    InvalidArgument,
    RequestError,
    ServingError,
    StaleTables,
    Unavailable,
)
from serving.signature import Signature, Values, declared_signature, rank_inputs

__all__ = ["Answer", "Client"]

FIRST_PAUSE = 0.05  # seconds; the upper end, twice as much each time
LONGEST_PAUSE = 1.0
Reply = TypeVar("Reply")
Which = tuple[int | None, str | None]  # version, label


class Answer(dict[str, Any]):
    """Lists by output name, and how old the tables are that they were made of.

    Args:
        outputs: mapping. Output name -> list.
        table_age: float or `None`. Seconds since the last clicks that the tables know, by this machine's clock; `None`
            where the model does not tell, or where neither `seed_watermark` nor a limit of the client asked for it.
        stale: bool. Whether that is more than the client's `max_table_age`.

    Attributes:
        table_age: float or None.
        stale: bool.
    """

    def __init__(self, outputs: Mapping[str, Any], table_age: float | None = None, stale: bool = False) -> None:
        super().__init__(outputs)
        self.table_age = table_age
        self.stale = stale


class Client(ABC):
    """A model on a server: `serving.rest.RankClient` over REST, `serving.rpc.RankClient` over gRPC.

    Both have the same calls and give the same answers, as lists. They may be used from many threads at once. A
    server that can not be reached, or answers UNAVAILABLE, is asked again after a random pause (full jitter: uniform
    up to 0.05 s, then 0.1 s, ...), as long as the call's time lasts. Every other error is raised at once, with the
    server's words.

    Args:
        model: str. The model's name.
        timeout: float. Seconds that one call may take, all attempts together.
        retries: int. Further attempts.
        max_table_age: float or `None`. Seconds beyond which an answer's tables are `stale`. Defaults to no limit.
        hard_table_age: float or `None`. Seconds beyond which there is `StaleTables` in place of an answer. Defaults to
            no limit.
    """

    def __init__(
        self,
        model: str,
        timeout: float,
        retries: int,
        max_table_age: float | None = None,
        hard_table_age: float | None = None,
    ) -> None:
        if timeout <= 0:
            raise ServingError(f"`timeout` should be positive. Received: timeout={timeout}.")
        if retries < 0:
            raise ServingError(f"`retries` should not be negative. Received: retries={retries}.")
        check_age("max_table_age", max_table_age)
        check_age("hard_table_age", hard_table_age)
        self._max_table_age = max_table_age
        self._hard_table_age = hard_table_age
        self._needs_age = max_table_age is not None or hard_table_age is not None
        self._model = model
        self._timeout = timeout
        self._retries = retries
        self._metadata_of: dict[Which, Mapping[str, Any]] = {}

    def rank(
        self,
        user_id: int | str,
        item_ids: Values,
        *,
        context: Mapping[str, Any] | None = None,
        price: Values | None = None,
        weights: Mapping[str, float] | None = None,
        outputs: Sequence[str] | None = None,
        version: int | None = None,
        label: str | None = None,
    ) -> Answer:
        """Scores candidate items for a user; the answer is in the order of `item_ids`.

        Args:
            user_id: int or str.
            item_ids: sequence of int or str, or an array. The N candidates.
            context: dict. Every context column that the model declares.
            price: sequence of float. By candidate. Defaults to none known.
            weights: dict. Part -> weight, to try other fusion weights: the `rank_with_weights` signature.
            outputs: sequence of str. Those wanted; over gRPC the others are not even sent. Defaults to all.
            version: int. Defaults to the newest.
            label: str. A version by its label, like `"canary"`.

        Returns:
            Dict of lists of N, by output name: similarity, pctr, pcvr, pctcvr, score and the others. Its attributes
            `table_age` and `stale` say how old the tables are.

        Raises:
            StaleTables: the tables are older than `hard_table_age`.
            ServingError: a `RequestError` with the server's words and code, or a mistake seen before it is sent.
        """
        name = "rank" if weights is None else "rank_with_weights"
        return self._run(
            name,
            lambda found: rank_inputs(
                found, {"user_id": user_id}, item_ids, context=context, price=price, weights=weights
            ),
            outputs,
            (version, label),
        )

    def rank_top(
        self,
        user_id: int | str,
        item_ids: Values,
        top: int,
        *,
        context: Mapping[str, Any] | None = None,
        price: Values | None = None,
        outputs: Sequence[str] | None = None,
        version: int | None = None,
        label: str | None = None,
    ) -> Answer:
        """The best candidates only, the best first: less to send where few of many are shown.

        Args:
            user_id: int or str.
            item_ids: sequence of int or str, or an array. The N candidates.
            top: int. How many.
            context: dict. As for `rank`.
            price: sequence of float. As for `rank`.
            outputs: sequence of str. As for `rank`.
            version: int. As for `rank`.
            label: str. As for `rank`.

        Returns:
            As `rank`, `min(top, N)` values each; `item_id` says which.
        """
        return self._run(
            "rank_top",
            lambda found: rank_inputs(
                found, {"user_id": user_id, "top": top}, item_ids, context=context, price=price
            ),
            outputs,
            (version, label),
        )  # fmt: skip

    def rank_features(
        self,
        features: Mapping[str, Any],
        item_ids: Values,
        *,
        context: Mapping[str, Any] | None = None,
        price: Values | None = None,
        outputs: Sequence[str] | None = None,
        version: int | None = None,
        label: str | None = None,
    ) -> Answer:
        """`rank` for a user whom the model has not seen, by the user's features.

        Args:
            features: dict. Every user feature that the `rank_features` signature declares, a value or list of values.
            item_ids: sequence of int or str, or an array. The N candidates.
            context: dict. As for `rank`.
            price: sequence of float. As for `rank`.
            outputs: sequence of str. As for `rank`.
            version: int. As for `rank`.
            label: str. As for `rank`.

        Returns:
            As `rank`.
        """
        return self._run(
            "rank_features",
            lambda found: rank_inputs(found, features, item_ids, context=context, price=price),
            outputs,
            (version, label),
        )

    def rank_embedding(
        self,
        user_vector: Values,
        embedding_space_id: int,
        item_ids: Values,
        *,
        context: Mapping[str, Any] | None = None,
        price: Values | None = None,
        outputs: Sequence[str] | None = None,
        version: int | None = None,
        label: str | None = None,
    ) -> Answer:
        """`rank` for a user whose vector is kept elsewhere, in a key-value store.

        Args:
            user_vector: sequence of float, or an array. m values.
            embedding_space_id: int. The space that the vector was made in; the model refuses another than its own.
            item_ids: sequence of int or str, or an array. The N candidates.
            context: dict. As for `rank`; what else the signature declares of the user comes here too.
            price: sequence of float. As for `rank`.
            outputs: sequence of str. As for `rank`.
            version: int. As for `rank`.
            label: str. As for `rank`.

        Returns:
            As `rank`.
        """
        user = {"user_vector": user_vector, "embedding_space_id": embedding_space_id}
        return self._run(
            "rank_embedding",
            lambda found: rank_inputs(found, user, item_ids, context=context, price=price),
            outputs,
            (version, label),
        )

    def predict(
        self,
        inputs: Mapping[str, Any],
        *,
        signature: str | None = None,
        outputs: Sequence[str] | None = None,
        version: int | None = None,
        label: str | None = None,
    ) -> Answer:
        """Runs a signature.

        Args:
            inputs: dict of lists or arrays, by input name.
            signature: str. Defaults to `serving_default`.
            outputs: sequence of str. As for `rank`.
            version: int. As for `rank`.
            label: str. As for `rank`.

        Returns:
            As `rank`, dict of lists, by output name; texts as `str`, or as `bytes` where the name ends in `_bytes`.

        Raises:
            ServingError: as for `rank`.
        """
        return self._run(signature or "serving_default", lambda _: inputs, outputs, (version, label))

    def metadata(self, version: int | None = None, *, label: str | None = None) -> dict[str, Any]:
        """The model's signatures, in the form of the REST API."""
        return self._metadata(_one_of(version, label), self._deadline())

    @abstractmethod
    def status(self) -> list[dict[str, Any]]:
        """The model's versions, newest first: `version`, `state`, `error_code`, `error_message`."""

    @abstractmethod
    def live(self) -> dict[str, Any]:
        """The version that answers: `version`, `state`, `hashes` of what it is made of, `facts`, `table_age_seconds`.

        Only the embedded server tells them; with TensorFlow Serving this raises a `RequestError`.
        """

    @abstractmethod
    def close(self) -> None:
        """Closes the connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def _predict(
        self,
        signature: str,
        declared: Signature,
        inputs: Mapping[str, Any],
        outputs: Sequence[str] | None,
        which: Which,
        deadline: float,
    ) -> tuple[dict[str, Any], Any]:
        """The outputs that were asked for, and the watermark of the answer: with `_needs_age` in any case."""

    @abstractmethod
    def _metadata(self, which: Which, deadline: float) -> dict[str, Any]: ...

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout

    def _run(
        self,
        name: str,
        build: Callable[[Signature], Mapping[str, Any]],
        outputs: Sequence[str] | None,
        which: Which,
    ) -> Answer:
        """Builds the inputs as the model declares them, asks, and asks again if it has come to declare others."""
        which = _one_of(*which)
        deadline = self._deadline()
        kept = self._metadata_of.get(which)
        found = kept or self._read_metadata(which, deadline)
        try:
            return self._ask(name, found, build, outputs, which, deadline)
        except ServingError as error:
            mistaken = isinstance(error, InvalidArgument | FailedPrecondition) or not isinstance(error, RequestError)
            if kept is None or not mistaken:
                raise
            found = self._read_metadata(which, deadline)
            if found["metadata"] == kept["metadata"]:
                raise
        return self._ask(name, found, build, outputs, which, deadline)

    def _ask(
        self,
        name: str,
        metadata: Mapping[str, Any],
        build: Callable[[Signature], Mapping[str, Any]],
        outputs: Sequence[str] | None,
        which: Which,
        deadline: float,
    ) -> Answer:
        declared = declared_signature(metadata, name)
        for output in outputs or ():
            if output not in declared.outputs:
                has = ", ".join(sorted(declared.outputs))
                raise ServingError(f"`outputs` should be of the model's: {has}. Received: {output!r}.")
        if self._needs_age and WATERMARK not in declared.outputs:
            has = ", ".join(sorted(declared.outputs))
            raise ServingError(f"a limit on the tables' age needs the output {WATERMARK} of {name!r}. It has: {has}.")
        found, watermark = self._predict(name, declared, build(declared), outputs, which, deadline)
        age = table_age(watermark)
        if age is not None and self._hard_table_age is not None and age > self._hard_table_age:
            raise StaleTables(f"the tables are {age:,.0f} seconds old; `hard_table_age` is {self._hard_table_age:g}.")
        return Answer(found, age, age is not None and self._max_table_age is not None and age > self._max_table_age)

    def _read_metadata(self, which: Which, deadline: float) -> Mapping[str, Any]:
        self._metadata_of[which] = found = self._metadata(which, deadline)
        return found

    def _again(self, attempt: Callable[[float], Reply], deadline: float) -> Reply:
        """`attempt(seconds left)`, and again after UNAVAILABLE."""
        number = 0
        while True:
            try:
                return attempt(max(deadline - time.monotonic(), 0.001))
            except Unavailable:
                if number == self._retries:
                    raise
                pause = random.uniform(0, min(FIRST_PAUSE * 2**number, LONGEST_PAUSE))
                if time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
                number += 1


def _one_of(version: int | None, label: str | None) -> Which:
    if version is not None and label is not None:
        raise ServingError(f"`version` and `label` should not both be given. Received: {version} and {label!r}.")
    return version, label
