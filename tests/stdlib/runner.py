"""Runs one class of the suite in a process of its own, in one mode, and reads its verdicts.

An id that does not end in time is a hang: its process group is killed and the class goes on
with the ids behind it, in a new process. It must never give an id no verdict.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .judge import END
from .suite import WORKER, environment

MODES = ("plain", "gevent", "gcbpatch", "brokered")
HANG_SECONDS = 30.0
"""How long one id may take; the slowest takes a third of it when it has a core to itself."""
POLL_SECONDS = 0.05
GRACE_SECONDS = 1.0
TAIL_BYTES = 6000


@dataclass
class Verdict:
    """What became of one id: ok, skip, fail, error, died, hang or absent."""

    word: str
    detail: str = ""
    seconds: float = 0.0


ABSENT = Verdict("absent", "no such id in this mode, or the class was not run")
"""As classes for epoll are under gevent, which takes epoll away."""


@dataclass
class Job:
    """One class to run in one mode."""

    module: str
    cls: str
    ids: list[str]
    mode: str
    settings: dict[str, str] = field(default_factory=dict)
    hang: float = HANG_SECONDS


@dataclass
class Outcome:
    """What became of a job: verdicts by id, seconds in all, connections by their path."""

    job: Job
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    seconds: float = 0.0
    paths: dict[str, int] = field(default_factory=dict)

    def words(self) -> dict[str, str]:
        """The verdicts without their details."""
        return {test: verdict.word for test, verdict in self.verdicts.items()}


def run(job: Job) -> Outcome:
    """Return the outcome, with a verdict for each id of the job."""
    began = time.monotonic()
    outcome = Outcome(job)
    verdicts = outcome.verdicts
    while left := [test for test in job.ids if test not in verdicts]:
        with tempfile.TemporaryDirectory(prefix="gcb-stdlib-", ignore_cleanup_errors=True) as name:
            found = _one_process(job, left, Path(name))
            outcome.paths = Counter(outcome.paths) + paths_in(Path(name) / "log")
        verdicts.update({t: v for t, v in found.items() if t in left or t == end_of(job)})
        if not any(test in found for test in left):
            # Not one id came to anything, so the next process would not get further.
            verdicts.update({test: found.get("", ABSENT) for test in left})
    outcome.paths = dict(outcome.paths)
    outcome.seconds = time.monotonic() - began
    return outcome


_PATH = re.compile(r"program\[\d+\] connect(?:ed|ing) to \S+ (\w+)")


def paths_in(log: Path) -> Counter[str]:
    """Count the connections of a program's log by the path that they took."""
    return Counter(_PATH.findall(log.read_text())) if log.exists() else Counter()


def end_of(job: Job) -> str:
    """The id under which the end of a class and of its process stands."""
    return f"{job.module}.{job.cls}{END}"


def _one_process(job: Job, left: list[str], folder: Path) -> dict[str, Verdict]:
    report, output = folder / "report", folder / "output"
    report.touch()
    work = folder / "work"
    work.mkdir()
    argv = [sys.executable, "-X", "faulthandler", "-m", WORKER, job.module, str(report), *left]
    own = {"TMPDIR": str(work), "GCB_LOG_FILE": str(folder / "log"), "GCB_LOG": "INFO"}
    environ = environment(job.mode, **own, **job.settings)
    with output.open("wb") as out, subprocess.Popen(
        argv,
        env=environ,
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=out,
        start_new_session=True,
    ) as process:
        try:
            said = _watch(process, report, job.hang)
        finally:
            _kill_group(process)
    hung = said is not None
    verdicts = read_report((said if said is not None else report.read_text()).splitlines())
    tail = output.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    status = process.returncode
    broken = Verdict("hang" if hung else "died", f"status {status}\n{tail}")
    return complete(verdicts, end_of(job), None if status == 0 and not hung else broken)


def _watch(process: subprocess.Popen[bytes], report: Path, limit: float) -> str | None:
    """Wait for the end of a process; if it made no progress for too long return its report.

    That is the report until then: the signal below may let the id that hung go on.
    """
    size, since = 0, time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        if (grown := report.stat().st_size) != size:
            size, since = grown, now
        elif now - since > limit:
            said = report.read_text()
            os.kill(process.pid, signal.SIGUSR1)  # it tells on stderr where it is
            time.sleep(GRACE_SECONDS)
            return said
        time.sleep(POLL_SECONDS)
    return None


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a worker and all that it started: it is the leader of its own session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all are gone


def read_report(lines: list[str]) -> dict[str, Verdict]:
    """Return the verdicts of a report; an id without an end has the word "".

    The trouble of a fixture (setUpClass, setUpModule) stands under the empty id.
    """
    found: dict[str, Verdict] = {}
    for event in _events(lines):
        if event["event"] == "start":
            found[event["id"]] = Verdict("", seconds=-event["at"])
        elif event["event"] == "end":
            seconds = found[event["id"]].seconds + event["at"]
            found[event["id"]] = Verdict(event["verdict"], event["detail"], seconds)
        else:
            found.setdefault("", Verdict(event["verdict"], f"{event['id']}: {event['detail']}"))
    return found


def _events(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)


def complete(
    verdicts: dict[str, Verdict], end: str, broken: Verdict | None
) -> dict[str, Verdict]:
    """Give its word to an id that did not end, or else to the end of the class.

    ``broken`` is what became of the process, None if it ended well.
    """
    unfinished = [test for test, verdict in verdicts.items() if not verdict.word]
    if unfinished:
        early = broken or Verdict("died", "the process ended in the midst of it, with status 0")
        return verdicts | {test: early for test in unfinished}
    closing = broken or verdicts.get("", Verdict("ok"))
    return verdicts | {end: closing} | ({} if closing.word == "ok" else {"": closing})
