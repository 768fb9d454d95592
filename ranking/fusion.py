"""One score out of similarity, pCTR, pCVR and price: the formula, and the file of its weights.

The formula stands here once. It runs on numpy arrays (replay, reports) and, with `xp=keras.ops`, in the served graph
(`ranking.fusion_layer`); this module itself needs no TensorFlow.
"""

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

__all__ = ["FORMS", "PARTS", "FusionWeights", "fuse", "parse_weights", "terms"]

PARTS = ("similarity", "pctr", "pcvr", "price")
FORMS = ("product", "sum")
LABELS = ("click", "conversion", "value", "click_time", "conversion_time", "label")
SIMILARITY_EPSILON = 1e-6  # keeps the logarithm of (1 + similarity) / 2 finite at similarity -1
FLOOR = 1e-12  # below it a probability or price is taken for it, before the logarithm
DIGITS = 10  # of a canonical weight: a rescaled set of weights differs by rounding, its file may not


@dataclasses.dataclass(frozen=True)
class FusionWeights:
    """Weights of the parts, with the constants that make them comparable.

    Canonical: the largest |weight| is 1, so that weights that rank alike have one file and one hash.

    Args:
        form: str. `"product"`: z is of the logarithm of a part; `"sum"`: of the part itself.
        weights: dict of part -> float, not all 0. Any positive multiple is the same.
        mu: dict of part -> float. Frozen mean of a part (or its logarithm).
        sd: dict of part -> float > 0. Frozen standard deviation.
        parameters_hash: str. Of the model parameters that `mu` and `sd` belong to. Defaults to `""`.
        bounds: dict of part -> (low, high). What a request may set a weight to, and tuning. Defaults to (-1, 1) each.

    Raises:
        UserError: an argument breaks its rule.
    """

    form: str
    weights: dict[str, float]
    mu: dict[str, float]
    sd: dict[str, float]
    parameters_hash: str = ""
    bounds: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UserError(f"`form` should be one of {FORMS}. Received: form={self.form!r}.")
        _refuse_unknown("weights", self.weights)
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
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "mu", {name: float(self.mu[name]) for name in names})
        object.__setattr__(self, "sd", {name: float(self.sd[name]) for name in names})
        object.__setattr__(self, "bounds", bounds)

    @classmethod
    def fit(
        cls,
        parts: Mapping[str, Any],
        form: str,
        weights: Mapping[str, float],
        parameters_hash: str = "",
        bounds: Mapping[str, tuple[float, float]] | None = None,
    ) -> "FusionWeights":
        """Freezes mean and standard deviation over the entries that are there.

        Args:
            parts: dict of arrays `[n]`. Every part in it gets constants, those without a weight the weight 0.
            form: str. `"product"` or `"sum"`.
            weights: dict of part -> float.
            parameters_hash: str. Of the model that made `parts`. Defaults to `""`.
            bounds: dict of part -> (low, high). Defaults to (-1, 1) each.

        Raises:
            UserError: a weighted part is not in `parts`, or `parts` holds a label.
        """
        _refuse_unknown("parts", {name: None for name in parts if name != "has_similarity"})
        _refuse_unknown("weights", weights)
        if form not in FORMS:
            raise UserError(f"`form` should be one of {FORMS}. Received: form={form!r}.")
        missing = [name for name in weights if name not in parts]
        if missing:
            raise UserError(
                f"`parts` should hold every part with a weight. Received: {sorted(parts)}, without {missing}."
            )
        mu, sd = {}, {}
        for name in (name for name in PARTS if name in parts):
            x, missing_rows = _standing({k: np.asarray(v, np.float64) for k, v in parts.items()}, name, form, np)
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
        return dataclasses.replace(reference, weights=weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**dataclasses.asdict(self), "bounds": {name: list(pair) for name, pair in self.bounds.items()}}

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
        if not isinstance(content, dict) or set(content) != fields:
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


def _refuse_unknown(argument: str, names: Mapping[str, Any]) -> None:
    for name in names:
        if name in LABELS:
            raise UserError(
                f"`{argument}` should hold no label: what happened cannot enter a score. Received: {name!r}."
            )
        if name not in PARTS:
            raise UserError(f"`{argument}` should be of {', '.join(PARTS)}. Received: {name!r}.")


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
        _refuse_unknown("weights", {name: value})
        if name in weights:
            raise UserError(f"weights should name a part once. Received: {name!r} twice.")
        weights[name] = value
    return weights


def _standing(parts: Mapping[str, Any], name: str, form: str, xp: Any) -> tuple[Any, Any]:
    """A part before standardising, and where it is missing (there it is some finite number)."""
    x = parts[name]
    missing = xp.isnan(x) if name in ("similarity", "price") else xp.zeros_like(x, dtype="bool")
    if name == "similarity" and "has_similarity" in parts:
        missing = xp.logical_or(missing, xp.equal(parts["has_similarity"], 0))
    x = xp.where(missing, xp.ones_like(x), x)
    if form == "product":
        x = (1 + x) / 2 + SIMILARITY_EPSILON if name == "similarity" else x
        x = xp.log(xp.maximum(x, FLOOR))
    return x, missing


def terms(parts: Mapping[str, Any], weights: FusionWeights, *, xp: Any = np) -> dict[str, Any]:
    """The standardised parts `z_j = (log x_j - mu_j) / sd_j` (product) or `(x_j - mu_j) / sd_j` (sum).

    With x = (1 + similarity) / 2 + 1e-6 in the product form, and pctr, pcvr, price as they are. A similarity where
    `has_similarity` is 0 or that is NaN, and a price that is NaN, have z = 0 exactly.

    Args:
        parts: dict of arrays or tensors `[B]`: any of `PARTS`, and `has_similarity`.
        weights: FusionWeights.
        xp: module. `numpy`, or `keras.ops` in a graph. Defaults to `numpy`.

    Returns:
        dict of part -> `[B]`, of the parts that are there and have constants.

    Raises:
        UserError: `parts` holds a label or an unknown name, or lacks a part with a weight.
    """
    _refuse_unknown("parts", {name: None for name in parts if name != "has_similarity"})
    lacking = [name for name, weight in weights.weights.items() if weight and name not in parts]
    if lacking:
        raise UserError(f"`parts` should hold every part with a weight. Received: {sorted(parts)}, without {lacking}.")
    z = {}
    for name in weights.weights:
        if name in parts:
            x, missing = _standing(parts, name, weights.form, xp)
            scaled = (x - weights.mu[name]) / weights.sd[name]
            z[name] = xp.where(missing, xp.zeros_like(scaled), scaled)
    return z


def fuse(
    parts: Mapping[str, Any], weights: FusionWeights, override: Mapping[str, Any] | None = None, *, xp: Any = np
) -> Any:
    """The score, `sum over j of w_j z_j`: its order counts, not its size.

    Args:
        parts: dict of arrays or tensors `[B]`; see `terms`.
        weights: FusionWeights.
        override: dict of part -> number, array or tensor `[]`, `[1]` or `[B]`, clipped to the bounds of `weights`, in
            place of its weight. Defaults to none.
        xp: module. `numpy`, or `keras.ops` in a graph. Defaults to `numpy`.

    Returns:
        `[B]`, of the type of the parts.
    """
    override = override or {}
    _refuse_unknown("override", override)
    z = terms(parts, weights, xp=xp)
    absent = [name for name in override if name not in z]
    if absent:
        raise UserError(f"`override` should be of parts that are there, {sorted(z)}. Received: {absent}.")
    score = None
    for name, weight in weights.weights.items():
        if name in override:
            weight = xp.clip(override[name], *weights.bounds[name])
        elif not weight:
            continue
        score = weight * z[name] if score is None else score + weight * z[name]
    return score
