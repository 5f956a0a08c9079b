"""Programs run with and without one of the mends, to show what it is for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANG_LIMIT = 60.0
STUCK = 8.0
"""Seconds after which a program that should hang counts as hanging; without the hang it ends
in a fraction of one."""

PATCHED = "import gcbpatch; gcbpatch.patch_all()\n"


def without(module: str) -> str:
    """The line that patches, with one mend left out."""
    return f"from gcbpatch import mends; del mends.MENDS['{module}']\n" + PATCHED


def environment() -> dict[str, str]:
    """Our environment without any setting of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GCB_", "DPF_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def run(
    folder: Path,
    first: str,
    program: str,
    limit: float = HANG_LIMIT,
    python: Sequence[str] = (),
    **environ: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program from a file, since children of multiprocessing load it from there.

    One that hangs is ended with all its children, and has the return code -9.
    """
    path = folder / "program.py"
    path.write_text(first + textwrap.dedent(program))
    process = subprocess.Popen(
        [sys.executable, *python, str(path)],
        env=environment() | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        process_group=0,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def good(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a program said so and ended well."""
    return done.returncode == 0 and done.stdout.endswith("good\n")
