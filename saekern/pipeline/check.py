"""Checks of settings."""

from typing import Any


def require(condition: bool, name: str, expected: str, got: Any) -> None:
    """Raises ValueError, which names the setting, what it may be and what came, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
