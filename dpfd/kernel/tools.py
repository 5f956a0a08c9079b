"""Runs the gateway's own tools: nft, iptables, ip. It must never hide what they complain of."""

from __future__ import annotations

import shutil

from gevent import subprocess

from .port import KernelError


def there_is(name: str) -> bool:
    """Return whether a tool is installed."""
    return shutil.which(name) is not None


def run(argv: list[str], text: str = "") -> str:
    """Run a tool and return what it prints. Raises KernelError with its complaint."""
    try:
        done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelError(f"{argv[0]} cannot be run: {error.strerror}") from error
    if done.returncode:
        raise KernelError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return str(done.stdout)


def succeeds(argv: list[str]) -> bool:
    """Return whether a tool ends well; for those that answer a question by that."""
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
