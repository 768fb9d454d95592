"""What any ranking has to beat: item popularity and logistic regression on ids and attributes."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from esmm.embedding import Feature
from ranking.features import MISSING, Arrays
from ranking.rows import Rows

__all__ = ["Logistic", "Popularity", "plain_features"]

PRIOR = 20.0  # impressions (or clicks) at the global rate that each item starts with
REGULARISATION = 0.1  # scikit-learn's C of the one-hot model


def plain_features(features: Sequence[Feature]) -> list[Feature]:
    """Ids, profile, item and context: what needs no counting and no network."""
    return [f for f in features if f.name.split("_")[0] in ("user", "item", "context")]


@dataclasses.dataclass(frozen=True)
class Popularity:
    """Each item's smoothed rates over the rows it was fitted on.

    Attributes:
        pctr, pcvr, pctcvr: float64 `[items + 1]`, P(click), P(conversion given click), P(conversion).
    """

    pctr: np.ndarray
    pcvr: np.ndarray
    pctcvr: np.ndarray

    @classmethod
    def fit(cls, item: np.ndarray, rows: Rows, items: int) -> "Popularity":
        """Counts by item: `(events + prior * rate) / (opportunities + prior)`; immature rows have no conversions."""
        shown = np.bincount(item, minlength=items + 1)
        clicks = np.bincount(item, rows.click, minlength=items + 1)
        mature = np.bincount(item, rows.mature, minlength=items + 1)
        clicked = np.bincount(item, rows.click * rows.mature, minlength=items + 1)
        bought = np.bincount(item, rows.conversion * rows.mature, minlength=items + 1)

        def rate(events: np.ndarray, opportunities: np.ndarray) -> np.ndarray:
            overall = (events.sum() + 1) / (opportunities.sum() + 2)
            return (events + PRIOR * overall) / (opportunities + PRIOR)

        return cls(rate(clicks, shown), rate(bought, clicked), rate(bought, mature))

    def only(self, items: np.ndarray) -> "Popularity":
        """The same without the items outside a mask `[items]`."""
        kept = np.append(items, True)
        return Popularity(self.pctr[kept], self.pcvr[kept], self.pctcvr[kept])

    def predict(self, item: np.ndarray) -> Arrays:
        """pctr, pcvr and pctcvr of rows of items."""
        return {"pctr": self.pctr[item], "pcvr": self.pcvr[item], "pctcvr": self.pctcvr[item]}


@dataclasses.dataclass(frozen=True)
class Logistic:
    """Three L2-regularised logistic regressions on one-hot ids, profile, item and context.

    Attributes:
        coefficients: dict head -> float64 `[width + 1]`, the intercept last. Heads: pctr over all rows, pcvr over
            clicked rows, pctcvr over all rows.
    """

    coefficients: dict[str, np.ndarray]

    @classmethod
    def fit(cls, rows: Rows, features: Sequence[Feature]) -> "Logistic":
        """Fits the three heads; immature rows are left out of the two that need conversions."""
        matrix = _one_hot(rows.features, features)
        clicked = (rows.click > 0) & rows.mature
        heads = {
            "pctr": (np.ones(len(rows.row), bool), rows.click),
            "pcvr": (clicked, rows.conversion),
            "pctcvr": (rows.mature, rows.conversion),
        }
        coefficients = {}
        for name, (kept, label) in heads.items():
            if len(np.unique(label[kept])) < 2:  # nothing to learn: the constant
                rate = (label[kept].sum() + 1) / (kept.sum() + 2)
                coefficients[name] = np.append(np.zeros(matrix.shape[1]), np.log(rate / (1 - rate)))
                continue
            # liblinear penalises the intercept too; scaled, the penalty is 1e-4 of a weight's.
            model = LogisticRegression(C=REGULARISATION, solver="liblinear", intercept_scaling=100).fit(
                matrix[kept], label[kept]
            )
            coefficients[name] = np.append(model.coef_[0], model.intercept_)
        return cls(coefficients)

    def predict(self, arrays: Arrays, features: Sequence[Feature]) -> Arrays:
        """pctr, pcvr and pctcvr of encoded rows."""
        matrix = _one_hot(arrays, features)
        return {name: 1 / (1 + np.exp(-(matrix @ c[:-1] + c[-1]))) for name, c in self.coefficients.items()}


def _one_hot(arrays: Arrays, features: Sequence[Feature]) -> scipy.sparse.csr_matrix:
    blocks = []
    for feature in plain_features(features):
        values = arrays[feature.name]
        rows = len(values)
        if feature.kind == "numeric":
            blocks.append(scipy.sparse.csr_matrix(values.reshape(rows, -1).astype(np.float64)))
            continue
        values = values.reshape(rows, -1)  # [n, width]
        present = values != MISSING if feature.kind == "multi" else np.ones_like(values, bool)
        share = present / np.maximum(present.sum(axis=1, keepdims=True), 1)
        row = np.repeat(np.arange(rows), values.shape[1])
        blocks.append(scipy.sparse.csr_matrix((share.ravel(), (row, values.ravel())), shape=(rows, feature.size)))
    return scipy.sparse.hstack(blocks, format="csr")
