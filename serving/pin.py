"""A model that was rolled back stays where it is: refreshes wait until somebody says that it may go on."""

import json
import os
from pathlib import Path
from typing import Any

from serving.errors import ServingError
from serving.lease import lease

__all__ = ["PIN", "Pinned", "pinned", "refuse_pinned", "unpin", "write_pin"]

PIN = ".pinned.json"


class Pinned(ServingError):
    """The model is pinned after a rollback, and what was asked for waits until it is not."""


def pinned(base_path: str | Path) -> dict[str, Any] | None:
    """What a model is pinned to: `version`, whose content it serves, and `at`, since when.

    Returns:
        A dict, empty where the file can not be read (pinned all the same); `None` where it is not pinned.
    """
    try:
        found = json.loads((Path(base_path) / PIN).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def refuse_pinned(base: Path) -> None:
    """Raises `Pinned` where a model is pinned."""
    if (pin := pinned(base)) is not None:
        raise Pinned(pin_message(base, pin))


def pin_message(base: Path, pin: dict[str, Any]) -> str:
    """One line: to what it is pinned, since when, and how to end that."""
    return (
        f"{base} is pinned to version {pin.get('version', 'unknown')} since {pin.get('at', 'an unknown time')}: "
        f"refreshes wait until `seedrank rollback {base.parent} --name {base.name} --unpin`."
    )


def unpin(base_path: str | Path) -> bool:
    """Lets refreshes go on; whether the model was pinned."""
    base = Path(base_path)
    if not base.is_dir():
        return False
    with lease(base):
        was = (base / PIN).exists()
        (base / PIN).unlink(missing_ok=True)
    return was


def write_pin(base: Path, pin: dict[str, Any] | None) -> None:
    """Pins a model, or with `None` ends that; the lease is the caller's."""
    if pin is None:
        (base / PIN).unlink(missing_ok=True)
        return
    temporary = base / f".tmp-{os.getpid()}-pin"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(pin) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, base / PIN)
