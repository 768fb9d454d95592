"""ESMM and what it is compared with: one description of how a conversion model is trained."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from esmm.architecture import Architecture
from esmm.counterfactual import DoublyRobust, InversePropensity
from esmm.embedding import Feature
from esmm.losses import LogitBinaryCrossentropy, log1mexp
from esmm.model import PositionBias, SharedTowers, build_esmm, feature_inputs, funnel_outputs, losses, targets

__all__ = ["STRATEGIES", "Strategy", "value_weights"]

STRATEGIES = (
    "esmm",
    "esmm_ns",
    "base",
    "aman",
    "oversampling",
    "unbias",
    "division",
    "escm2_ips",
    "escm2_dr",
)
COUNTERFACTUAL = ("escm2_ips", "escm2_dr")
OPTIONS = {
    "aman": {"rate": 0.1},
    "oversampling": {"weight": 3.0},
    "unbias": {"clip": 0.01},
    "escm2_ips": {"weight": 0.1, "clip": 0.01},
    "escm2_dr": {"weight": 0.1, "clip": 0.01},
}
DEFAULT = Architecture()


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a conversion model is built, what its losses are, and which rows they count.

    | name | networks | loss of the conversion |
    |---|---|---|
    | `"esmm"` | shared | of click and conversion together, on all rows |
    | `"esmm_ns"` | click, conversion | the same; nothing is shared |
    | `"base"` | click, conversion | clicked rows only |
    | `"aman"` | click, conversion | clicked rows, and a share `rate` of the others as negatives, new each epoch |
    | `"oversampling"` | click, conversion | clicked rows; one that converts counts `weight` times |
    | `"unbias"` | click, conversion | clicked rows, as if each were kept with probability `clip / max(pctr, clip)` |
    | `"division"` | click, ctcvr | of click and conversion together; `pcvr = min(pctcvr / pctr, 1)` |
    | `"escm2_ips"` | shared | as `"esmm"`, plus `weight` times `esmm.counterfactual.InversePropensity` |
    | `"escm2_dr"` | shared, with an imputation tower | as `"esmm"`, plus `weight` times `DoublyRobust` |

    Every model has the outputs of `esmm.funnel_outputs`, and its two networks live in one model: one `fit` trains
    both, one evaluation judges all strategies alike. Networks apart are one-task `esmm.SharedTowers`, named
    `click_network`, `conversion_network` and `ctcvr_network`.

    Args:
        name: str. One of `STRATEGIES`. Defaults to `"esmm"`.
        rate: float or `None`. Of `"aman"`, in (0, 1]: the paper tried 0.1, 0.2, 0.5 and 1. Defaults to `None`: 0.1.
        weight: float or `None`. Of `"oversampling"`, at least 1 (the paper tried 2, 3, 5 and 10), and of the ESCM2
            risk, positive. Defaults to `None`: 3, and 0.1.
        clip: float or `None`. The least propensity of `"unbias"` and ESCM2, in (0, 1]; it should be well below the
            mean click rate. Defaults to `None`: 0.01.

    Raises:
        ValueError: an unknown name, an option that is not of this strategy, or out of its range.

    Example:
        >>> strategy = Strategy("escm2_ips")
        >>> model = strategy.build(features, base_rates=(0.05, 0.1))
        >>> model.compile(RowAdam(), loss=strategy.losses(), loss_weights=strategy.loss_weights())
        >>> for epoch in range(2):
        ...     labels, weights = strategy.supervise(click, conversion, generator=generator)
        ...     model.fit(inputs, labels, sample_weight=weights, batch_size=1024)

    Reference: Ma et al., SIGIR 2018, section 3.1; Wang et al., SIGIR 2022 (ESCM2).
    Departs from the paper: UNBIAS weighs each click by the probability that rejection sampling keeps it, divided by
    their sum: the sample's mean loss in expectation, without its noise; the propensity is learned alongside.
    """

    name: str = "esmm"
    rate: float | None = None
    weight: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.name not in STRATEGIES:
            raise ValueError(f"`name` should be one of {STRATEGIES}. Received: name={self.name!r}.")
        options = OPTIONS.get(self.name, {})
        for option in ("rate", "weight", "clip"):
            given = getattr(self, option)
            if given is not None and option not in options:
                raise ValueError(f"`{option}` is no option of strategy {self.name!r}. Received: {option}={given}.")
            object.__setattr__(self, option, options.get(option) if given is None else float(given))
        for option in ("rate", "clip"):
            value = getattr(self, option)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"`{option}` should be in (0, 1]. Received: {option}={value}.")
        if self.name == "oversampling" and not 1 <= self._weight < math.inf:
            raise ValueError(f"`weight` should be at least 1. Received: weight={self.weight}.")
        if self.name in COUNTERFACTUAL and not 0 < self._weight < math.inf:
            raise ValueError(f"`weight` should be a positive number. Received: weight={self.weight}.")

    @property
    def _weight(self) -> float:
        return 1.0 if self.weight is None else self.weight

    @property
    def _output(self) -> str:
        """The output that the conversion's loss reads, beside which ESCM2 has `counterfactual`."""
        if self.name in ("esmm", "esmm_ns", *COUNTERFACTUAL):
            return "log_pctcvr"
        return {"division": "ctcvr_logit", "unbias": "counterfactual"}.get(self.name, "conversion_logit")

    def build(
        self,
        features: Sequence[Feature],
        architecture: Architecture = DEFAULT,
        *,
        base_rates: Sequence[float] = (0.5, 0.5),
        positions: int = 0,
    ) -> keras.Model:
        """The model, not compiled.

        Args:
            features: sequence of `Feature`.
            architecture: Architecture. Of each network. Defaults to `Architecture()`.
            base_rates: sequence of float. P(click) and P(conversion given click), where the output biases start.
                Defaults to `(0.5, 0.5)`.
            positions: int. As in `esmm.build_esmm`: an examination logit of the click. Defaults to `0`: none.

        Returns:
            keras.Model. Its outputs are those of `esmm.funnel_outputs`, and what its losses read besides.
        """
        if self.name == "esmm":
            return build_esmm(features, architecture, base_rates=base_rates, positions=positions)
        features = tuple(features)
        if any(feature.name == "position" for feature in features):
            raise ValueError("`features` should not be named 'position': pass `positions` for that input.")
        rate, conversion_rate = base_rates
        inputs = feature_inputs(features)

        def network(name: str, *tasks: tuple[str, float]) -> list[Any]:
            names, rates = zip(*tasks, strict=True)
            logits = SharedTowers(features, architecture, names, rates, name=name)(inputs)
            return ops.unstack(logits, len(tasks), axis=1)  # [B] each

        click, conversion, imputation = (
            ("click", rate),
            ("conversion", self._conversion_rate(rate, conversion_rate)),
            ("imputation", conversion_rate),
        )
        if self.name == "escm2_ips":
            logits = network("shared_towers", click, conversion)
        elif self.name == "escm2_dr":
            logits = network("shared_towers", click, conversion, imputation)
        elif self.name == "division":
            logits = network("click_network", click) + network("ctcvr_network", ("ctcvr", rate * conversion_rate))
        else:
            logits = network("click_network", click) + network("conversion_network", conversion)
        if positions:
            inputs["position"] = keras.Input((), name="position", dtype="int32")
            logits[0] = logits[0] + PositionBias(positions, name="position_bias")(inputs["position"])
        return keras.Model(inputs, self._outputs(logits), name=self.name)

    def _conversion_rate(self, click_rate: float, conversion_rate: float) -> float:
        """The mean label of the rows that the conversion network sees."""
        if self.name == "aman":
            return conversion_rate * click_rate / (click_rate + self._rate * (1 - click_rate))
        if self.name == "oversampling":
            return self._weight * conversion_rate / (self._weight * conversion_rate + 1 - conversion_rate)
        return conversion_rate

    @property
    def _rate(self) -> float:
        return 0.0 if self.rate is None else self.rate

    def _outputs(self, logits: list[Any]) -> dict[str, Any]:
        if self.name == "division":
            click_logit, ctcvr_logit = logits
            # log of the ratio, below 0 by the least that float32 tells from certainty, and its logit
            ratio = ops.minimum(ops.softplus(-click_logit) - ops.softplus(-ctcvr_logit), -1e-7)
            return {**funnel_outputs(click_logit, ratio - log1mexp(ratio)), "ctcvr_logit": ctcvr_logit}
        outputs = funnel_outputs(*logits[:2])
        if self.name in ("unbias", *COUNTERFACTUAL):
            outputs["counterfactual"] = ops.stack(logits, axis=1)
        return outputs

    def losses(self) -> dict[str, keras.losses.Loss]:
        """Output -> loss, for `compile`."""
        if self._output == "log_pctcvr":
            found = losses()
        else:
            found = {output: LogitBinaryCrossentropy() for output in ("click_logit", self._output)}
        if self.clip is not None:
            risk = DoublyRobust if self.name == "escm2_dr" else InversePropensity
            found["counterfactual"] = risk(self.clip)
        return found

    def loss_weights(self) -> dict[str, float]:
        """Output -> weight of its loss, for `compile`; multiply the conversion's to weigh the tasks."""
        return {
            output: self._weight if output == "counterfactual" and self.name in COUNTERFACTUAL else 1.0
            for output in self.losses()
        }

    def supervise(
        self,
        click: Any,
        conversion: Any,
        *,
        final: Any = None,
        conversion_weight: Any = None,
        generator: np.random.Generator | None = None,
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What the losses compare with, and how much each row counts in them: once an epoch.

        Args:
            click: array `[n]` of 0 and 1.
            conversion: array `[n]` of 0 and 1, 0 where `click` is.
            final: bool `[n]` or `None`. Whether the conversion label is final: where it is not, whatever it says, the
                row counts in no conversion loss. Defaults to `None`: all are.
            conversion_weight: float `[n]` or `None`. How much each row counts in the conversion losses, such as
                `value_weights(...)`. Defaults to `None`: 1.
            generator: numpy Generator or `None`. `"aman"` draws from it.

        Returns:
            Two dicts, of the outputs in `losses()`: targets, float32 `[n]` (of `counterfactual` `[n, 2]`), and sample
            weights, float32 `[n]`.

        Raises:
            ValueError: a conversion without a click, an array of another shape, a weight that is negative or not
                finite, or `"aman"` without a generator.
        """
        labels = targets(click, conversion)
        clicked, converted = labels["click_logit"], labels["log_pctcvr"]
        weight = np.ones_like(clicked)
        if final is not None:
            weight = _column("final", final, len(clicked)).astype(bool).astype(np.float32)
        final, converted = weight, converted * weight
        if conversion_weight is not None:
            given = _column("conversion_weight", conversion_weight, len(clicked)).astype(np.float32)
            if not (np.isfinite(given).all() and given.min(initial=0) >= 0):
                raise ValueError("`conversion_weight` should be finite numbers >= 0. Received: others.")
            weight = weight * given
        if self.name == "aman":
            if generator is None:
                raise ValueError("`generator` should be given: strategy 'aman' draws a sample. Received: None.")
            weight = weight * np.maximum(clicked, generator.random(len(clicked)) < self._rate)
        elif self.name == "oversampling":
            weight = weight * clicked * np.where(converted > 0, self._weight, 1)
        elif self.name == "base":
            weight = weight * clicked
        weight = weight.astype(np.float32)
        goals = {"click_logit": clicked, self._output: converted}
        weights = {"click_logit": np.ones_like(clicked), self._output: weight}
        if self.clip is not None:
            goals["counterfactual"] = np.stack([clicked * final, converted], axis=1)
            weights["counterfactual"] = weight
        return goals, weights


def _column(name: str, values: Any, rows: int) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (rows,):
        raise ValueError(f"`{name}` should have one entry a row, shape ({rows},). Received: shape {array.shape}.")
    return array


def value_weights(value: Any, conversion: Any, *, power: float = 1.0) -> np.ndarray:
    """Weights that make conversions count by what they are worth (GMV re-weighting).

        weight = value^power / mean of value^power over the conversions;   1 without a conversion

    The conversions' total weight stays their number. A conversion of value 0 counts nothing, not even as a negative.
    The predicted pcvr is then of value, relative to the mean one, rather than of conversions.

    Args:
        value: float `[n]`. Of the conversions; not read elsewhere.
        conversion: array `[n]` of 0 and 1.
        power: float. In [0, inf): 0.5 tempers large values, 0 makes all alike. Defaults to `1.0`.

    Returns:
        float32 `[n]`, for `conversion_weight` of `Strategy.supervise`.

    Raises:
        ValueError: a conversion whose value is missing, infinite or negative; conversions that are all worth 0.
    """
    if not 0 <= power < math.inf:
        raise ValueError(f"`power` should be a finite number >= 0. Received: power={power}.")
    converted = np.asarray(conversion) > 0
    worth = _column("value", value, len(converted)).astype(np.float64)[converted]
    wrong = int(np.sum(~(np.isfinite(worth) & (worth >= 0))))
    if wrong:
        raise ValueError(
            f"`value` of a conversion should be a finite number >= 0. Received: {wrong} of {len(worth)} that are not."
        )
    weights = np.ones(len(converted), np.float32)
    if len(worth):
        if not worth.any():
            raise ValueError(f"`value` should be positive for some conversion. Received: 0 for all {len(worth)}.")
        worth = (worth / worth.max()) ** power  # no overflow
        weights[converted] = worth / worth.mean()
    return weights
