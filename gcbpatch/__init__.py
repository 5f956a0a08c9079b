"""Symmetric Internet connectivity for unmodified Python programs (Son & Livny 2003).

Importing this package patches nothing and loads no gevent; patch_all() does.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["patch_all", "unpatch_all"]


def patch_all(**settings: Any) -> None:
    """Put this program on DPF and GCB; see gcbpatch.patching.patch_all for the keywords.

    Call it in the first line, before anything else is imported.
    """
    from .patching import patch_all as patch

    patch(**settings)


def unpatch_all() -> None:
    """Take back what patch_all did, for tests; see gcbpatch.patching.unpatch_all."""
    from .patching import unpatch_all as unpatch

    unpatch()
