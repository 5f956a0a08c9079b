"""Runs a function on a module right after the program has imported it.

It must never import a module itself, and leaves no trace in one that it has seen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Late:
    """The first of the finders on sys.meta_path, until the last module has come."""

    def __init__(self, waiting: dict[str, Callable[[ModuleType], None]]) -> None:
        self._waiting = waiting

    def install(self) -> None:
        """Run what can be run now, and wait for the rest."""
        for name in [name for name in self._waiting if name in sys.modules]:
            self._waiting.pop(name)(sys.modules[name])
        if self._waiting:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Wait no longer."""
        self._waiting.clear()
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module that is waited for by the other finders (the import system calls it)."""
        if name not in self._waiting:
            return None
        for finder in sys.meta_path:
            if finder is not self:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    self._follow(spec)
                    return spec
        return None

    def _follow(self, spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            if module.__name__ != spec.name:  # a loader may serve a whole archive
                run(module)
                return
            vars(loader).pop("exec_module", None)
            run(module)
            self._came(module)

        loader.exec_module = exec_module

    def _came(self, module: ModuleType) -> None:
        then = self._waiting.pop(module.__name__, None)
        if not self._waiting:
            self.remove()
        if then is not None:
            then(module)
