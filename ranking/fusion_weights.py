"""The file of the fusion weights: form, weights, constants, bounds, and what differs by segment."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ranking.atomic import atomic_file
from ranking.errors import UserError
from ranking.fusion_parts import FORMS, PARTS, refuse_unknown, standardise, standing

__all__ = ["FusionWeights", "parse_weights"]

DIGITS = 10  # of a canonical weight: a rescaled set of weights differs by rounding, its file may not


@dataclasses.dataclass(frozen=True)
class FusionWeights:
    """Weights of the parts, with the constants that make them comparable.

    Canonical: the largest |weight| is 1, so that weights that rank alike have one file and one hash.

    Args:
        form: str. `"product"`: z is of the logarithm of a part; `"sum"`: of the part itself; `"rank"`: of the
            reciprocal of 60 + its rank within the request.
        weights: dict of part -> float, not all 0. Any positive multiple is the same.
        mu: dict of part -> float. Frozen mean of a part (or its logarithm).
        sd: dict of part -> float > 0. Frozen standard deviation.
        parameters_hash: str. Of the model parameters that `mu` and `sd` belong to. Defaults to `""`.
        bounds: dict of part -> (low, high). What a request may set a weight to, and tuning. Defaults to (-1, 1) each.
        segments: dict of segment -> dict of part -> float. Differences added to the weights there, on the scale of
            `weights`; the sum is clipped to the bounds. Defaults to none.

    Raises:
        UserError: an argument breaks its rule.
    """

    form: str
    weights: dict[str, float]
    mu: dict[str, float]
    sd: dict[str, float]
    parameters_hash: str = ""
    bounds: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    segments: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"`form` should be one of {FORMS}. Received: form={self.form!r}.")
        refuse_unknown("weights", self.weights)
        names = [name for name in PARTS if name in self.weights]
        largest = max((abs(float(self.weights[name])) for name in names), default=0.0)
        if not 0 < largest < math.inf or any(math.isnan(self.weights[name]) for name in names):
            raise UserError(f"`weights` should be finite and not all 0. Received: weights={self.weights}.")
        for argument, constants in (("mu", self.mu), ("sd", self.sd)):
            if set(constants) != set(names) or not all(math.isfinite(value) for value in constants.values()):
                raise UserError(f"`{argument}` should be finite for each of {names}. Received: {argument}={constants}.")
        if not all(value > 0 for value in self.sd.values()):
            raise UserError(f"`sd` should be positive. Received: sd={self.sd}.")
        if not set(self.bounds) <= set(names):
            raise UserError(f"`bounds` should be of {names}. Received: bounds={self.bounds}.")
        # + 0.0 makes -0.0 a 0.0
        weights = {name: round(float(self.weights[name]) / largest, DIGITS) + 0.0 for name in names}
        bounds = {name: _pair(name, self.bounds.get(name, (-1.0, 1.0)), weights[name]) for name in names}
        segments = {name: _differences(name, row, names, largest) for name, row in self.segments.items()}
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "mu", {name: float(self.mu[name]) for name in names})
        object.__setattr__(self, "sd", {name: float(self.sd[name]) for name in names})
        object.__setattr__(self, "bounds", bounds)
        object.__setattr__(self, "segments", {name: row for name, row in segments.items() if row})

    @classmethod
    def fit(
        cls,
        parts: Mapping[str, Any],
        form: str,
        weights: Mapping[str, float],
        parameters_hash: str = "",
        bounds: Mapping[str, tuple[float, float]] | None = None,
        *,
        offsets: Any = None,
    ) -> "FusionWeights":
        """Freezes mean and standard deviation over the entries that are there.

        Args:
            parts: dict of arrays `[n]`. Every part in it gets constants, those without a weight the weight 0.
            form: str. `"product"`, `"sum"` or `"rank"`.
            weights: dict of part -> float.
            parameters_hash: str. Of the model that made `parts`. Defaults to `""`.
            bounds: dict of part -> (low, high). Defaults to (-1, 1) each.
            offsets: int `[R + 1]`. Request `r` is rows `offsets[r]:offsets[r + 1]`; the rank form needs it. Defaults
                to `None`.

        Raises:
            UserError: a weighted part is not in `parts`, or `parts` holds a label.
        """
        refuse_unknown("parts", {name: None for name in parts if name != "has_similarity"})
        refuse_unknown("weights", weights)
        if form not in FORMS:
            raise UserError(f"`form` should be one of {FORMS}. Received: form={form!r}.")
        missing = [name for name in weights if name not in parts]
        if missing:
            raise UserError(
                f"`parts` should hold every part with a weight. Received: {sorted(parts)}, without {missing}."
            )
        mu, sd = {}, {}
        for name in (name for name in PARTS if name in parts):
            columns = {key: np.asarray(column, np.float64) for key, column in parts.items()}
            x, missing_rows = standing(columns, name, form, offsets)
            x = standardise(x, form, 0.0, 1.0)
            there = x[~missing_rows & np.isfinite(x)]
            mu[name] = float(there.mean()) if there.size else 0.0
            spread = float(there.std()) if there.size else 0.0
            sd[name] = spread if spread > 1e-9 * max(1.0, abs(mu[name])) else 1.0
        complete = {name: float(weights.get(name, 0.0)) for name in mu}
        return cls(form, complete, mu, sd, parameters_hash, dict(bounds or {}))

    @classmethod
    def from_exponents(
        cls,
        *,
        similarity: float = 0.0,
        pctr: float = 0.0,
        pcvr: float = 0.0,
        price: float = 0.0,
        reference: "FusionWeights | None" = None,
    ) -> "FusionWeights":
        """The order of `similarity^a pctr^b pcvr^c price^d`: eCPM and GMV are `pctr=1, pcvr=1, price=1`.

        An exponent is a weight on the raw logarithm, so that `w_j = a_j sd_j`. (Of the similarity it is the exponent of
        `(1 + similarity) / 2`.)

        Args:
            similarity: float. Its exponent. Defaults to `0`.
            pctr: float. Its exponent. Defaults to `0`.
            pcvr: float. Its exponent. Defaults to `0`.
            price: float. Its exponent. Defaults to `0`.
            reference: FusionWeights of the product form whose `mu`, `sd`, bounds and hash are kept, so that missing
                parts stay neutral. Defaults to mean 0 and deviation 1.

        Raises:
            UserError: the reference is not a product, or has no constants of a part with an exponent.
        """
        exponents = {"similarity": similarity, "pctr": pctr, "pcvr": pcvr, "price": price}
        if reference is None:
            used = {name: float(value) for name, value in exponents.items() if value}
            return cls("product", used, dict.fromkeys(used, 0.0), dict.fromkeys(used, 1.0))
        if reference.form != "product":
            raise UserError(f"`reference` should be of the product form. Received: form={reference.form!r}.")
        absent = [name for name, value in exponents.items() if value and name not in reference.sd]
        if absent:
            raise UserError(f"`reference` should have constants of {absent}. Received: {sorted(reference.sd)}.")
        weights = {name: exponents[name] * sd for name, sd in reference.sd.items()}
        return dataclasses.replace(reference, weights=weights, segments={})

    @property
    def weighted(self) -> tuple[str, ...]:
        """The parts that enter a score: those with a weight, or with one in some segment."""
        elsewhere = {name for row in self.segments.values() for name in row}
        return tuple(name for name, weight in self.weights.items() if weight or name in elsewhere)

    def of_segment(self, segment: str | None) -> dict[str, float]:
        """The weights in a segment, clipped to the bounds; those without differences where it is unknown or `None`."""
        found = dict(self.weights)
        for name, difference in self.segments.get(segment or "", {}).items():
            low, high = self.bounds[name]
            found[name] = min(max(found[name] + difference, low), high)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; without `segments` where there are none, as older files are."""
        content = {**dataclasses.asdict(self), "bounds": {name: list(pair) for name, pair in self.bounds.items()}}
        return content if self.segments else {name: value for name, value in content.items() if name != "segments"}

    @property
    def hash(self) -> str:
        """sha256 of the content, in hexadecimal: equal for weights that are positive multiples of each other."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, whole or not at all."""
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, parameters_hash: str | None = None) -> "FusionWeights":
        """Reads a file written by `save`.

        Args:
            path: str or Path.
            parameters_hash: str. Of the model at hand; a file that belongs to other parameters is refused, because its
                constants do not fit their scores. Defaults to `None`: not checked.

        Raises:
            UserError: no such file, not such a file, or one of other parameters.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} should be a file of fusion weights. Received: {error.strerror}.") from error
        except ValueError as error:
            raise UserError(f"{path} should be JSON. Received: {error}.") from error
        fields = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(content, dict) or {*content, "segments"} != fields:
            found = sorted(content) if isinstance(content, dict) else type(content).__name__
            raise UserError(f"{path} should hold {sorted(fields)}. Received: {found}.")
        try:
            weights = cls(**content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} should hold fusion weights as `save` writes them. Received: {error}.") from error
        if parameters_hash is not None and weights.parameters_hash != parameters_hash:
            raise UserError(
                f"{path} belongs to other parameters: its `parameters_hash` should be {parameters_hash!r}. "
                f"Received: {weights.parameters_hash!r}."
            )
        return weights


def _pair(name: str, bound: Any, weight: float) -> tuple[float, float]:
    low, high = (float(value) for value in bound) if len(bound) == 2 else (math.nan, math.nan)
    if not -math.inf < low <= weight <= high < math.inf:
        raise UserError(
            f"`bounds` of {name} should hold its weight, {weight} where the largest is 1. Received: ({low}, {high})."
        )
    return low, high


def _differences(segment: Any, row: Any, names: list[str], largest: float) -> dict[str, float]:
    """Canonical: on the scale of the weights, in the order of the parts, without those that are 0."""
    if not isinstance(segment, str) or not segment or not isinstance(row, Mapping):
        raise UserError(f"`segments` should be a dict of name -> part -> number. Received: {segment!r}: {row!r}.")
    refuse_unknown("segments", row)
    if not set(row) <= set(names) or not all(math.isfinite(value) for value in row.values()):
        raise UserError(f"`segments` should hold finite numbers of {names}. Received: {segment!r}: {dict(row)}.")
    scaled = {name: round(float(row[name]) / largest, DIGITS) + 0.0 for name in names if name in row}
    return {name: difference for name, difference in scaled.items() if difference}


def parse_weights(text: str) -> dict[str, float]:
    """Weights as a person writes them: `"similarity=.2,pctr=1"`.

    Raises:
        UserError: not of that form, an unknown part, or one given twice.
    """
    weights: dict[str, float] = {}
    for item in text.split(","):
        name, equals, number = (piece.strip() for piece in item.partition("="))
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not equals or not math.isfinite(value):
            raise UserError(f"weights should be written like similarity=.2,pctr=1. Received: {item.strip()!r}.")
        refuse_unknown("weights", {name: value})
        if name in weights:
            raise UserError(f"weights should name a part once. Received: {name!r} twice.")
        weights[name] = value
    return weights
