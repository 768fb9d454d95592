"""What an import read, kept and left out."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ImportReport"]


@dataclass
class ImportReport:
    """What an import read, kept and left out; `accepted + sum(rejected) = read`, always.

    Args:
        out: str. The dataset that was written.
        conversion: str. What the conversion is.
        read: int. Rows of the log. Defaults to `0`.
        accepted: int. Of these, written as impressions. Defaults to `0`.
        rejected: dict. Reason -> rows.
        clicks: int. Impressions with a click. Defaults to `0`.
        conversions: int. Impressions with a conversion. Defaults to `0`.
        dropped_labels: int. Conversion labels set to 0 because there was no click. Defaults to `0`.
        days: dict. The log's own day (yyyymmdd) -> impressions, where it has days.
        rows: dict. Table -> rows written.
        notes: dict. What else was met, and how often (or the first of it).
    """

    out: str
    conversion: str
    read: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    clicks: int = 0
    conversions: int = 0
    dropped_labels: int = 0
    days: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int | str] = field(default_factory=dict)

    def reject(self, reason: str, count: int) -> None:
        """Counts rows left out for a reason."""
        if count:
            self.rejected[reason] = self.rejected.get(reason, 0) + int(count)

    def note(self, what: str, count: int) -> None:
        """Counts what was met without leaving a row out."""
        if count:
            self.notes[what] = int(self.notes.get(what, 0)) + int(count)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}

    def lines(self) -> list[tuple[str, str]]:
        """The report as (what, how many) for people."""
        found = [("log rows read", f"{self.read:,}"), ("impressions accepted", f"{self.accepted:,}")]
        found += [(f"rejected: {reason}", f"{count:,}") for reason, count in self.rejected.items()]
        found += [
            ("clicks", f"{self.clicks:,} ({self.clicks / max(self.accepted, 1):.1%})"),
            (f"conversions ({self.conversion} and click)", f"{self.conversions:,}"),
        ]
        if self.dropped_labels:
            found += [(f"{self.conversion} without click, set to 0", f"{self.dropped_labels:,}")]
        found += [(f"rows of {name}", f"{count:,}") for name, count in self.rows.items()]
        found += [(what, f"{told:,}" if isinstance(told, int) else told) for what, told in self.notes.items()]
        if self.days:
            found += [("days", f"{min(self.days)} to {max(self.days)}")]
        return [*found, ("written to", self.out)]

    def __str__(self) -> str:
        width = max(len(what) for what, _ in self.lines())
        return "\n".join(f"{what:<{width}}  {count}" for what, count in self.lines())
