"""What a click log has lost: damaged bytes are copied aside, each with a note."""

import contextlib
import json
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lookalike.clicklog_files import write_whole
from lookalike.clicklog_segments import Gap, segment_name

__all__ = ["Damage", "Quarantine"]

_logger = logging.getLogger("lookalike.clicklog")


@dataclass(frozen=True)
class Damage:
    """A place of the log where events are lost.

    Args:
        segment: str. The file.
        byte: int. The place in it.
        size: int. Bytes that are no valid frame; 0 where frames are simply not there.
        offset: int. The first event lost.
        lost: int. How many; 0 where foreign bytes stand between two frames.
        quarantined: bool. Whether note and bytes are in the log's folder `quarantine`; they could not be written else.
    """

    segment: str
    byte: int
    size: int
    offset: int
    lost: int
    quarantined: bool


class Quarantine:
    """The damage of a log, as noted by all processes that met it, until someone removes the notes by hand.

    Args:
        folder: Path. The log's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "quarantine"
        self._found: dict[tuple[str, int, int], Damage] = {}

    def damages(self) -> list[Damage]:
        """All damage, in the order of offsets."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):
                damage = Damage(**json.loads(path.read_bytes()))
                self._found[_key(damage)] = damage
        return sorted(self._found.values(), key=lambda damage: (damage.offset, damage.byte))

    def add(self, base: int, gap: Gap, descriptor: int) -> None:
        """Notes a gap of the segment that starts at `base`, and copies its bytes, unless it is known."""
        damage = Damage(segment_name(base), gap.byte, gap.size, gap.offset, gap.lost or 0, True)
        if self._knows(damage) or (self.damages() and self._knows(damage)):
            return
        _logger.error(
            "%s: %d bytes at byte %d are no valid frame: %d events from offset %d are lost",
            self._folder.parent / damage.segment, gap.size, gap.byte, damage.lost, gap.offset,
        )  # fmt: skip
        path = self._folder / f"{base:020d}-{gap.byte}-{gap.offset}"
        try:
            self._folder.mkdir(exist_ok=True)
            write_whole(path.with_suffix(".bytes"), [os.pread(descriptor, gap.size, gap.byte)])
            write_whole(path.with_suffix(".json"), [json.dumps(asdict(damage), indent=1).encode(), b"\n"])
        except OSError as error:
            damage = replace(damage, quarantined=False)
            _logger.error("%s: the damaged bytes could not be copied: %s", self._folder, error)
        self._found[_key(damage)] = damage

    def _knows(self, damage: Damage) -> bool:
        if _key(damage) in self._found or damage.size:
            return _key(damage) in self._found
        end = damage.offset  # erasure leaves out damaged bytes, and its gap stands for them all
        for known in sorted(self._found.values(), key=lambda known: known.offset):
            if known.segment == damage.segment and known.offset <= end:
                end = max(end, known.offset + known.lost)
        return end >= damage.offset + damage.lost

    def erase(self) -> None:
        """Removes the copied bytes; the notes stay."""
        for path in self._folder.glob("*.bytes"):
            path.unlink(missing_ok=True)


def _key(damage: Damage) -> tuple[str, int, int]:
    return damage.segment, damage.byte, damage.offset
