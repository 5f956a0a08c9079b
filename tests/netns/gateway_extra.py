"""What needs python-iptables is left out where it cannot be had, never in CI."""

from __future__ import annotations

import importlib.util
import os

import pytest


def require() -> None:
    """Skip, with the reason, where the extra `gateway` is not installed; fail in CI."""
    if importlib.util.find_spec("iptc") is not None:
        return
    reason = "python-iptables is not installed (extra `gateway`)"
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"CI must run dpfd's tests, but: {reason}", pytrace=False)
    pytest.skip(reason)
