"""Items by click rate and conversion rate: which are hidden gems, and which only look good."""

import dataclasses
from typing import Any

import numpy as np
from scipy import optimize, special

__all__ = ["QUADRANTS", "BetaPrior", "Quadrants", "place", "quadrants"]

# quadrant -> (click rate is high, conversion rate is high)
QUADRANTS = {
    "winner": (True, True),
    "hidden gem": (False, True),
    "flashy": (True, False),
    "to retire": (False, False),
}

_LEAST, _MOST = 1e-2, 1e6  # strengths looked at: beyond, items are all or nothing, or all alike


@dataclasses.dataclass(frozen=True)
class BetaPrior:
    """How the rates of items are spread: what is known of an item before anything has happened to it.

    The rate of each item is a draw from `Beta(mean * strength, (1 - mean) * strength)`, and its events are binomial.
    An item's rate is then, with `e` events in `n` trials, distributed as

        Beta(mean * strength + e, (1 - mean) * strength + n - e),   with mean (mean * strength + e) / (strength + n)

    so that an item of few trials is near the others, and one of many is what it has shown to be.

    Args:
        mean: float. The mean rate over items, in (0, 1).
        strength: float, > 0. How many trials the prior weighs: large where items are alike.
    """

    mean: float
    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.mean < 1:
            raise ValueError(f"`mean` should be in (0, 1). Received: mean={self.mean}.")
        if not 0 < self.strength < np.inf:
            raise ValueError(f"`strength` should be a positive number. Received: strength={self.strength}.")

    @classmethod
    def fit(cls, events: Any, trials: Any) -> "BetaPrior":
        """The prior under which the counts of all items are most likely (beta-binomial, maximum likelihood).

        The search starts from the moments, and from either side of them: there may be two tops. Where the items differ
        no more than chance makes them, `strength` ends at its upper bound, 1e6.

        Args:
            events: int array `[items]`. Of each item.
            trials: int array `[items]`. Of each item; items without any say nothing.

        Raises:
            ValueError: counts below 0, more events than trials, one outcome only, or fewer than two items with two
                trials: then nothing tells how much items differ.

        Reference: Kleinman, JASA 1973 (moments, with weights n).
        """
        e, n = _counts(events, trials, "events", "trials")
        if e.sum() == 0 or e.sum() == n.sum():
            raise ValueError(
                f"`events` should hold both outcomes. Received: {e.sum():,.0f} events in {n.sum():,.0f} trials."
            )
        if (n >= 2).sum() < 2:
            raise ValueError(
                "`trials` should be 2 or more for at least two items: nothing else tells how much items differ. "
                f"Received: {(n >= 2).sum()} such items."
            )
        pairs, weight = np.unique(np.stack([e, n])[:, n > 0], axis=1, return_counts=True)
        e, n = pairs
        mean, strength = _moments(e, n, weight)
        digamma = special.digamma

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            """Minus the log-likelihood an item, and its gradient, at (logit of the mean, log of the strength)."""
            m, s = special.expit(point[0]), np.exp(point[1])
            a, b = m * s, special.expit(-point[0]) * s
            value = special.betaln(e + a, n - e + b) - special.betaln(a, b)
            common = digamma(s) - digamma(n + s)
            by_a = weight @ (digamma(e + a) - digamma(a) + common)
            by_b = weight @ (digamma(n - e + b) - digamma(b) + common)
            gradient = np.array([a * (b / s) * (by_a - by_b), a * by_a + b * by_b])
            return -float(weight @ value) / weight.sum(), -gradient / weight.sum()

        # The likelihood may have two tops, one of them where items do not differ: the search starts on either side too.
        pooled = special.logit(weight @ e / (weight @ n))
        starts = [(special.logit(mean), np.log(strength)), (pooled, 0.0), (pooled, np.log(_MOST))]
        bounds = [(-30.0, 30.0), (np.log(_LEAST), np.log(_MOST))]
        options = {"ftol": 1e-13, "gtol": 1e-9}
        ends = [
            optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
            for start in starts
        ]
        found = min(ends, key=lambda end: end.fun).x
        # Towards the upper bound the loss falls by less than it is rounded: the search may stop anywhere on the way.
        bound = np.array([found[0], bounds[1][1]])
        if loss(bound)[0] <= loss(found)[0]:
            found = bound
        return cls(float(special.expit(found[0])), float(np.exp(found[1])))

    def rate(self, events: Any, trials: Any) -> np.ndarray:
        """The mean rate of each item given its counts, float64 `[items]`."""
        e, n = _counts(events, trials, "events", "trials")
        return (self.mean * self.strength + e) / (self.strength + n)

    def above(self, threshold: float, events: Any, trials: Any) -> np.ndarray:
        """P(the item's rate is above a threshold, given its counts), float64 `[items]`."""
        e, n = _counts(events, trials, "events", "trials")
        a, b = self.mean * self.strength + e, (1 - self.mean) * self.strength + n - e
        return special.betaincc(a, b, threshold)


@dataclasses.dataclass(frozen=True)
class Quadrants:
    """Where each item is.

    Attributes:
        click_rate, conversion_rate: float64 `[items]`, smoothed.
        quadrant: array of str `[items]`, of `QUADRANTS`, by the smoothed rates.
        certainty: float64 `[items]`. P(the item really is in its quadrant, given its counts).
        click_threshold, conversion_threshold: float. From there on a rate is high.
        click_prior, conversion_prior: BetaPrior.
    """

    click_rate: np.ndarray
    conversion_rate: np.ndarray
    quadrant: np.ndarray
    certainty: np.ndarray
    click_threshold: float
    conversion_threshold: float
    click_prior: BetaPrior
    conversion_prior: BetaPrior


def quadrants(impressions: Any, clicks: Any, final_clicks: Any, conversions: Any) -> Quadrants:
    """Places items by click rate and conversion rate, as far as their counts tell.

    A rate is high from the rate of the whole log on (all clicks per impression; all conversions per click): showing
    such an item in place of an average impression raises that rate. (A median of items would call half of them high,
    whatever they do for the log.) The certainty takes the two rates of an item as independent.

    Args:
        impressions: int array `[items]`.
        clicks: int array `[items]`.
        final_clicks: int array `[items]`. Clicks whose conversion label is final.
        conversions: int array `[items]`. Of the final clicks.

    Raises:
        ValueError: counts that cannot be, or say nothing; see `BetaPrior.fit`.

    Example:
        >>> found = quadrants([9000, 9000, 3], [900, 90, 1], [900, 90, 1], [90, 40, 0])
        >>> found.quadrant.tolist()
        ['flashy', 'hidden gem', 'winner']
        >>> found.certainty.round(2).tolist()
        [1.0, 1.0, 0.54]
    """
    clicks, impressions = _counts(clicks, impressions, "clicks", "impressions")
    conversions, final = _counts(conversions, final_clicks, "conversions", "final_clicks")
    _counts(final, clicks, "final_clicks", "clicks")
    click, conversion = _fit(clicks, impressions, "clicks"), _fit(conversions, final, "conversions")
    thresholds = float(clicks.sum() / impressions.sum()), float(conversions.sum() / final.sum())
    rates = click.rate(clicks, impressions), conversion.rate(conversions, final)
    above = click.above(thresholds[0], clicks, impressions), conversion.above(thresholds[1], conversions, final)
    sides = [
        np.where(rate >= threshold, chance, 1 - chance)
        for rate, threshold, chance in zip(rates, thresholds, above, strict=True)
    ]
    return Quadrants(*rates, place(*rates, *thresholds), sides[0] * sides[1], *thresholds, click, conversion)


def place(
    click_rate: np.ndarray, conversion_rate: np.ndarray, click_threshold: float, conversion_threshold: float
) -> np.ndarray:
    """The quadrant of each pair of rates, array of str; a rate at its threshold is high."""
    names = {sides: name for name, sides in QUADRANTS.items()}
    table = np.array([[names[click, conversion] for conversion in (False, True)] for click in (False, True)])
    high = np.asarray(click_rate) >= click_threshold, np.asarray(conversion_rate) >= conversion_threshold
    return table[high[0].astype(int), high[1].astype(int)]


def _counts(few: Any, many: Any, few_name: str, many_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of counts `[items]`, the first never above the second."""
    few, many = np.asarray(few, np.float64), np.asarray(many, np.float64)
    if few.ndim != 1 or few.shape != many.shape:
        raise ValueError(f"`{few_name}` and `{many_name}` should be [items]. Received: {few.shape}, {many.shape}.")
    wrong = ~((few >= 0) & (few <= many) & np.isfinite(many))
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"`{few_name}` should be 0 or more and at most `{many_name}`. Received: {few[at]:g} of {many[at]:g}."
        )
    return few, many


def _fit(events: np.ndarray, trials: np.ndarray, name: str) -> BetaPrior:
    try:
        return BetaPrior.fit(events, trials)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _moments(e: np.ndarray, n: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Mean and strength that fit the mean and the variance of the raw rates, each item weighed by its trials.

    With w = n / sum(n), mean m and correlation r = 1 / (strength + 1) of two trials of one item,

        E sum w (p - mean)^2 = m (1 - m) [sum w (1 - w) / n + r sum w (1 - w) (n - 1) / n]
    """
    total = weight @ n
    mean = weight @ e / total
    share = n / total
    spread = weight @ (share * (e / n - mean) ** 2) / (mean * (1 - mean))
    chance = weight @ (share * (1 - share) / n)
    slope = weight @ (share * (1 - share) * (n - 1) / n)
    correlation = np.clip((spread - chance) / slope, 1 / (_MOST + 1), 1 / (_LEAST + 1))
    return float(mean), float(1 / correlation - 1)
