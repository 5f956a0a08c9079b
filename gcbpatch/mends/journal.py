"""What was changed, so that it can be changed back in the opposite order.

It must never hold anything but undo functions: what was there before is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MISSING = object()


class Journal:
    """Undo functions, oldest first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def add(self, undo: Callable[[], None]) -> None:
        """Remember how to take something back."""
        self._undo.append(undo)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner.name``, which may be inherited or not be there at all until now."""
        before = vars(owner).get(name, _MISSING) if hasattr(owner, "__dict__") else _MISSING
        if before is _MISSING and _is_slot(owner, name):
            before = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: _put_back(owner, name, before))

    def roll_back(self) -> None:
        """Take everything back, newest first."""
        while self._undo:
            self._undo.pop()()


def _is_slot(owner: Any, name: str) -> bool:
    """Whether the type of ``owner`` keeps this attribute, as a function's __defaults__."""
    return hasattr(type(owner), name) and hasattr(getattr(type(owner), name), "__set__")


def _put_back(owner: Any, name: str, before: Any) -> None:
    if before is _MISSING:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
