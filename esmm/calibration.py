"""Calibration: strictly increasing maps of the two logits, fitted on later rows than the model was trained on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from esmm.model import funnel_outputs
from esmm.monotone import MonotoneMap, fit_map

__all__ = ["METHODS", "Calibration", "MonotoneCalibration", "calibrated"]

METHODS = ("auto", "platt", "piecewise")
FEWEST = 50  # positives (or negatives) below which nothing is fitted: the error of a fit would be worse
BENDS_FROM = 200  # positives from which "auto" lets a map bend: what bends cost is then less than what they may gain
PIECES = 8


@keras.saving.register_keras_serializable(package="esmm")
class MonotoneCalibration(keras.layers.Layer):
    """A strictly increasing, piecewise-linear map of a logit, in the graph: `MonotoneMap`, in float32.

    Args:
        knots: sequence of float `[k]`, k >= 2, strictly increasing.
        values: sequence of float `[k]`, strictly increasing: the map at the knots.

    Returns:
        float32 `[B]` of a logit `[B]`.

    Reference: Platt, 1999 (two knots); Zadrozny and Elkan, KDD 2002 (isotonic).
    Departs from the paper: no flat pieces, since ties would cost order.
    """

    def __init__(self, knots: Sequence[float], values: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.map = MonotoneMap(knots, values)

    def call(self, logit: Any) -> Any:
        """The map of a logit, `[B]`."""
        logit = ops.cast(logit, "float32")
        inner = np.asarray(self.map.knots[1:-1], np.float32)
        piece = ops.sum(ops.cast(ops.expand_dims(logit, -1) >= inner, "int32"), axis=-1)  # [B]
        knots, values, slopes, ends = (
            ops.take(np.asarray(table, np.float32), piece)  # [B]
            for table in (self.map.knots, self.map.values, self.map.slopes, [*self.map.values[1:-1], np.inf])
        )
        return ops.minimum(values + slopes * (logit - knots), ends)  # [B]; rounding must not pass the next knot

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {**super().get_config(), "knots": list(self.map.knots), "values": list(self.map.values)}


IDENTITY = MonotoneMap((0.0, 1.0), (0.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A map of the click logit and one of the conversion logit; `pctcvr` stays the product.

    Args:
        click: MonotoneMap.
        conversion: MonotoneMap.
        note: str. Why a map is the identity though one was asked for. Defaults to `""`.
    """

    click: MonotoneMap
    conversion: MonotoneMap
    note: str = ""

    @classmethod
    def identity(cls) -> "Calibration":
        """Changes nothing."""
        return cls(IDENTITY, IDENTITY)

    @classmethod
    def fit(
        cls, click_logit: Any, conversion_logit: Any, click: Any, conversion: Any, final: Any, *, method: str = "auto"
    ) -> "Calibration":
        """The maps under which labels are likeliest, on rows that the model was not trained on.

        With `p = sigmoid(click_map(click_logit))` and `q = sigmoid(conversion_map(conversion_logit))`:

            click map:       sum over rows of        y log p + (1 - y) log(1 - p),             y = click
            conversion map:  sum over final rows of  z log(p q) + (1 - z) log(1 - p q),        z = conversion

        The conversion map is fitted over all impressions, through the product: fitted on clicked rows alone it would be
        right for those, and `pctcvr` would be off wherever the click model's errors go with the conversion logit.

        Args:
            click_logit: array `[n]`.
            conversion_logit: array `[n]`.
            click: array `[n]` of 0 and 1.
            conversion: array `[n]` of 0 and 1; without a click it should be 0.
            final: bool array `[n]`. Whether the conversion label is final.
            method: str. `"platt"`: a line; `"piecewise"`: 8 pieces; `"auto"`: pieces from 200 positives on. Defaults to
                `"auto"`.

        Returns:
            Calibration. With fewer than 50 rows of a class a map is the identity, and `note` says so.

        Raises:
            ValueError: arrays of several lengths, logits that are not finite, labels that are not 0 or 1, a conversion
                without a click, an unknown method.
        """
        if method not in METHODS:
            raise ValueError(f"`method` should be one of {METHODS}. Received: method={method!r}.")
        click_logit, conversion_logit, click, conversion, final = _rows(
            click_logit=click_logit, conversion_logit=conversion_logit, click=click, conversion=conversion, final=final
        )
        click_map, why_click = _fitted("clicks", click_logit, click, np.full(len(click), np.inf), method)
        kept = final > 0
        conversion_map, why_conversion = _fitted(
            "conversions", conversion_logit[kept], conversion[kept], click_map.apply(click_logit[kept]), method
        )
        return cls(click_map, conversion_map, "; ".join(filter(None, (why_click, why_conversion))))

    def logits(self, click_logit: Any, conversion_logit: Any) -> tuple[np.ndarray, np.ndarray]:
        """The calibrated logits, float64 arrays."""
        return self.click.apply(click_logit), self.conversion.apply(conversion_logit)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        maps = {"click": self.click, "conversion": self.conversion}
        found = {name: {"knots": list(map_.knots), "values": list(map_.values)} for name, map_ in maps.items()}
        return {**found, "note": self.note}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Calibration":
        """Reads what `as_dict` wrote."""
        return cls(MonotoneMap(**content["click"]), MonotoneMap(**content["conversion"]), content.get("note", ""))


def calibrated(model: keras.Model, calibration: Calibration) -> keras.Model:
    """The same model with calibrated logits: its inputs, and the outputs of `funnel_outputs`.

    Args:
        model: keras.Model. Functional, with outputs `click_logit` and `conversion_logit`.
        calibration: Calibration.

    Returns:
        keras.Model. It shares the layers of `model`.

    Raises:
        ValueError: the model has no such outputs.
    """
    outputs = getattr(model, "output", None)  # a model that was never called has none
    if not isinstance(outputs, dict) or not {"click_logit", "conversion_logit"} <= set(outputs):
        names = sorted(outputs) if isinstance(outputs, dict) else outputs
        raise ValueError(f"`model` should have the outputs 'click_logit' and 'conversion_logit'. Received: {names}.")
    maps = {"click": calibration.click, "conversion": calibration.conversion}
    logits = (
        MonotoneCalibration(map_.knots, map_.values, name=f"{name}_calibration")(outputs[f"{name}_logit"])
        for name, map_ in maps.items()
    )
    return keras.Model(model.input, funnel_outputs(*logits), name=model.name)


def _rows(**columns: Any) -> list[np.ndarray]:
    """The columns in float64, checked: lengths, finite logits, labels of a funnel."""
    arrays = {name: np.asarray(values, np.float64) for name, values in columns.items()}
    shape = arrays["click_logit"].shape
    for name, values in arrays.items():
        if values.ndim != 1 or values.shape != shape:
            raise ValueError(f"`{name}` should be one number a row. Received: shape {values.shape}, not {shape}.")
        if name.endswith("_logit"):
            wrong = int((~np.isfinite(values)).sum())
            rule = "finite"
        else:
            wrong = int((~np.isin(values, (0, 1))).sum())
            rule = "0 or 1"
        if wrong:
            raise ValueError(f"`{name}` should be {rule}. Received: {wrong} of {values.size} rows that are not.")
    orphans = int((arrays["conversion"] > arrays["click"]).sum())
    if orphans:
        raise ValueError(f"`conversion` should be 0 where `click` is 0. Received: {orphans} conversions without click.")
    return list(arrays.values())


def _fitted(name: str, logit: np.ndarray, label: np.ndarray, given: np.ndarray, method: str) -> tuple[MonotoneMap, str]:
    """The map of a logit, and why it is the identity where there is too little to go by."""
    positives = int(label.sum())
    scarce = min(positives, len(label) - positives)
    if scarce < FEWEST:
        return IDENTITY, f"{name} not calibrated: {positives} in {len(label)} rows, {FEWEST} of either label are needed"
    bends = method == "piecewise" or (method == "auto" and scarce >= BENDS_FROM)
    return fit_map(logit, label, given, pieces=PIECES if bends else 1), ""
