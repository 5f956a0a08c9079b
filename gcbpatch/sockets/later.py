"""What a program loads only when it needs the agent: the door, and with it the messages.

A program that has nothing brokered never pays for them. This room must never hide why a
module cannot be loaded, nor stand between a program and a name that was asked for before.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import GcbError


class AgentGone(GcbError):
    """The agent cannot be started, or went away with a question of ours."""


class Later:
    """Stands for a module; its names are looked up there once and kept here.

    Where it cannot be loaded (the program has changed its root, or has no descriptor free),
    AgentGone is raised and says why; who asks next tries again.
    """

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        try:
            module = importlib.import_module(self._module, __package__)
        except (ImportError, OSError) as error:
            raise AgentGone(f"{self._module} cannot be loaded: {error}") from error
        value = getattr(module, name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    from ..agent import door as door
else:
    door = Later("gcbpatch.agent.door")
