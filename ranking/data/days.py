"""The five windows of a log of whole days."""

from datetime import datetime, timedelta

from ranking.errors import UserError

__all__ = ["day_windows"]


def day_windows(first: datetime, days: int, source: str) -> str:
    """The lines of `[windows]`: a day each for calibrate, tune and test at the end, the rest halved before them.

    Args:
        first: datetime, UTC. When the first day began.
        days: int. How many days.
        source: str. What the error names.

    Raises:
        UserError: there are fewer than five days.
    """
    if days < 5:
        raise UserError(f"{source}: five windows need five whole days of impressions. Received: {max(days, 0)}.")
    half = (days - 3) // 2
    edges = (0, half, days - 3, days - 2, days - 1, days)
    names = ("lookalike", "train", "calibrate", "tune", "test")
    moments = [f"{first + timedelta(days=edge):%Y-%m-%dT%H:%M:%SZ}" for edge in edges]
    return "\n".join(f"{name} = [{low}, {high}]" for name, low, high in zip(names, moments, moments[1:], strict=False))
