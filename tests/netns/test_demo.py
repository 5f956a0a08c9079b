"""The README's demo, as its first command runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.netns.gateway_extra import require

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo" / "demo.py"


def demo() -> subprocess.Popen[str]:
    """Start the demo in a process group of its own, as a terminal would.

    A shell's background job, in which the tests may run, ignores SIGINT.
    """
    return subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, str(DEMO)],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def test_the_demo_brings_every_job_back_over_both_systems() -> None:
    require()
    with demo() as running:
        out, _ = running.communicate(timeout=240)
    assert running.returncode == 0, out
    without, gcb, dpf = out.split("\n\n")[:3]
    assert without.count("timed out") >= 2
    assert "correct" not in without
    for table, paths in ((gcb, ("relayed", "local")), (dpf, ("forwarded", "neighbour"))):
        assert table.count("correct") == 6
        assert "FAILED" not in table
        for path in paths:
            assert path in table
    assert "all jobs came back right" in out


def test_the_demo_leaves_nothing_behind_on_ctrl_c() -> None:
    with demo() as running:
        assert running.stdout is not None
        while "GCB" not in running.stdout.readline():
            assert running.poll() is None
        ours = {space_of(os.getpid()), ""}
        while not (spaces := {space_of(pid) for pid in descendants(running.pid)} - ours):
            assert running.poll() is None  # between two labs there is none for a moment
        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
    # Agents are nobody's children, but they are in the lab's namespaces like everything else.
    assert not [pid for pid in processes() if space_of(pid) in spaces]


def processes() -> list[int]:
    """All processes of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    children = [one for one in processes() if parent_of(one) == pid]
    return [*children, *(deeper for child in children for deeper in descendants(child))]


def parent_of(pid: int) -> int:
    """The parent of a process; 0 if it has gone meanwhile."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def space_of(pid: int) -> str:
    """The network namespace of a process; empty if it is gone, or not ours to look at."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
