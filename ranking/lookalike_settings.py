"""The switches of the look-alike stages."""

import dataclasses
from typing import Any, Literal

from lookalike.similarity import LookalikeModel
from ranking.errors import UserError
from ranking.switches import parse_switches

__all__ = ["LookalikeSettings"]


@dataclasses.dataclass(frozen=True)
class LookalikeSettings:
    """How the look-alike stages are built and trained; `seedrank train --lookalike NAME=VALUE,...`.

    Attributes:
        merge: str. `"attention"` or `"concat"`, as in `UserRepresentation`.
        correct_sampling, remove_hits: bool. As in `CandidateLogits`.
        loss: str. `"binary"`, clicked or not; or `"multiclass"`, the clicked item against five others, which the
            authors' post describes.
        attention, activation, dropout, alpha, size_bias: as in `LookalikeModel`.
        k: int. Centroids an item while the look-alike model is trained; `0`: as `[state] k`, what ESMM is trained on
            and what is served.
        representation_epochs: int. Passes over the positives of the look-alike window.
        epochs: int. Passes over its labelled samples; seeds are clustered again before each.
        samples: int. At most so many of them.
        holdout: float. Share of the users whose samples are kept to measure the AUC of both stages.
    """

    merge: Literal["attention", "concat"] = "attention"
    correct_sampling: bool = False
    remove_hits: bool = False
    loss: str = "binary"
    attention: str = "tanh"
    activation: str = "prelu"
    dropout: float = 0.1
    alpha: float | str = 0.3
    size_bias: bool = False
    k: int = 0
    representation_epochs: int = 2
    epochs: int = 2
    samples: int = 300_000
    holdout: float = 0.02

    def __post_init__(self) -> None:
        if self.merge not in ("attention", "concat"):
            raise UserError(f"`merge` should be attention or concat. Received: merge={self.merge!r}.")
        if self.loss not in ("binary", "multiclass"):
            raise UserError(f"`loss` should be binary or multiclass. Received: loss={self.loss!r}.")
        if self.k < 0:
            raise UserError(f"`k` should be 0 or positive. Received: k={self.k}.")
        if not 0 <= self.holdout < 1:
            raise UserError(f"`holdout` should be in [0, 1). Received: holdout={self.holdout}.")
        for name in ("representation_epochs", "epochs", "samples"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` should be positive. Received: {name}={getattr(self, name)}.")
        try:
            LookalikeModel(1, 1, **self.model())
        except ValueError as error:
            raise UserError(str(error)) from None

    def model(self) -> dict[str, Any]:
        """Arguments of `LookalikeModel`."""
        names = ("activation", "dropout", "alpha", "attention", "size_bias")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def parse(cls, text: str) -> "LookalikeSettings":
        """Settings from `name=value,name=value`."""
        return parse_switches(cls(), text, "--lookalike")
