"""The switches of the ESMM stage."""

import dataclasses
import math

from esmm.architecture import Architecture
from esmm.strategies import Strategy
from ranking.errors import UserError
from ranking.switches import parse_switches

__all__ = ["CALIBRATIONS", "EsmmSettings"]

CALIBRATIONS = ("auto", "platt", "piecewise", "none")


@dataclasses.dataclass(frozen=True)
class EsmmSettings:
    """How ESMM is built and trained; `seedrank train --esmm NAME=VALUE,...`.

    Attributes:
        strategy: str. One of `esmm.STRATEGIES`: `"esmm"`, or what it is compared with.
        sharing, embedding_dim, towers, dropout, wide, l2, experts: as in `esmm.Architecture`.
        epochs: int. Passes at most; the calibrate window chooses how many, for each task apart.
        batch_size: int. Examples a step.
        learning_rate: float. Of Adam, at the start of a pass; a hundredth of it at its end.
        calibration: str. `"auto"`, `"platt"`, `"piecewise"` or `"none"`: the maps from trained to calibrated
            probabilities, fitted on the calibrate window; `"auto"` takes the two-number one where conversions are few.
        conversion_weight: float. What the conversion loss counts beside the click loss.
        value_power: float. A conversion weighs as its value to this power (mean 1), so that the model is exact where
            the money is; `0`: every conversion alike.
    """

    strategy: str = "esmm"
    sharing: str = "embedding"
    embedding_dim: int = 18
    towers: tuple[int, ...] = (360, 200, 80)
    dropout: float = 0.2
    wide: bool = True
    l2: float = 0.0
    experts: int = 4
    epochs: int = 4
    batch_size: int = 1024
    learning_rate: float = 5e-3
    calibration: str = "auto"
    conversion_weight: float = 1.0
    value_power: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` should be positive. Received: {name}={getattr(self, name)}.")
        for name in ("learning_rate", "conversion_weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"`{name}` should be a positive number. Received: {name}={getattr(self, name)}.")
        if not 0 <= self.value_power <= 2:
            raise UserError(f"`value_power` should be in [0, 2]. Received: value_power={self.value_power}.")
        if self.calibration not in CALIBRATIONS:
            raise UserError(
                f"`calibration` should be one of: {', '.join(CALIBRATIONS)}. Received: {self.calibration!r}."
            )
        try:
            self.architecture(), self.training_strategy()
        except ValueError as error:
            raise UserError(str(error)) from None

    def architecture(self) -> Architecture:
        """The network."""
        names = ("sharing", "embedding_dim", "towers", "dropout", "wide", "l2", "experts")
        return Architecture(**{name: getattr(self, name) for name in names})

    def training_strategy(self) -> Strategy:
        """What its losses are."""
        return Strategy(self.strategy)

    @classmethod
    def parse(cls, text: str, defaults: "EsmmSettings | None" = None) -> "EsmmSettings":
        """Settings from `name=value,name=value`; what is not named is as in `defaults`."""
        return parse_switches(defaults or cls(), text, "--esmm")
