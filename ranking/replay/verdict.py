"""What to do: the setting that surely gains and keeps the guardrails, or keep production."""

from __future__ import annotations

from collections.abc import Sequence

from ranking.replay.evaluation import Estimate, percent
from ranking.replay.study import Entry

__all__ = ["pick", "verdict"]


def pick(entries: Sequence[Entry], objective: str, guardrails: dict[str, float]) -> Entry | None:
    """The entry with the best lower bound of the objective, among those that surely gain and keep the guardrails.

    Args:
        entries: sequence of Entry. Production first.
        objective: str.
        guardrails: dict of str to float.

    Returns:
        `Entry`, or None: keep production.
    """
    best: Entry | None = None
    for entry in entries[1:]:
        found = entry.test.estimates
        if not all(name in found for name in (objective, *guardrails)) or found[objective].low <= 0:
            continue
        if any(found[name].low < least for name, least in guardrails.items()):
            continue
        if best is None or found[objective].low > best.test.estimates[objective].low:
            best = entry
    return best


def _change(name: str, estimate: Estimate) -> str:
    return f"{name.replace('_', ' ')} {percent(estimate.delta)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def verdict(chosen: Entry | None, objective: str, guardrails: dict[str, float], entries: Sequence[Entry]) -> str:
    """The outcome in a sentence."""
    limits = " and ".join(f"{name.replace('_', ' ')} {percent(least)}" for name, least in guardrails.items())
    if chosen is None:
        reason = f"no setting surely raises {objective.replace('_', ' ')} on the test window"
        if guardrails:
            reason += f" while keeping {limits} on the lower bound"
        refused = sum(bool(entry.test.refused) for entry in entries[1:])
        more = f" ({refused} of {len(entries) - 1} refused for lack of support)" if refused else ""
        return f"Keep production: {reason}{more}."
    before = entries[0].test.weights
    used = {name: weight for name, weight in chosen.test.weights.items() if weight or before[name]}
    weights = ", ".join(f"{name}={weight:.3g}" for name, weight in used.items())
    parts = [_change(objective, chosen.test.estimates[objective])]
    for name, least in guardrails.items():
        parts.append(f"{_change(name, chosen.test.estimates[name])} (guardrail {percent(least)}: kept)")
    return f"Recommend {weights}: {', '.join(parts)}."
