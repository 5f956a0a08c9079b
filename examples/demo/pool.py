"""One run of the example pool: daemons at their places, a job through it, what came of it."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from places import Places

from tests.netns.lab import Program, ProgramError

Settings = dict[str, dict[str, str]]
POOL = Path(__file__).resolve().parents[1] / "pool"
JOB = str(POOL / "jobs" / "primes.py")
RANGES = ["0 60000", "60000 110000", "110000 150000", "150000 190000"]


def primes_in(text: str) -> int:
    """Count the primes in "LOW HIGH" by a sieve: another method than the job's."""
    low, high = map(int, text.split())
    sieve = bytearray([1]) * high
    sieve[:2] = bytes(2)
    for n in range(2, int(high**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, high, n)))
    return sum(sieve[low:])


@dataclass
class Row:
    """One connection of a schedd to a startd, and the task that went over it."""

    who: str
    whom: str
    address: str
    path: str
    milliseconds: float | None
    result: str
    correct: bool


class Pool:
    """A master, two startds and two schedds; ``settings`` are the environment by place."""

    def __init__(self, places: Places, settings: Settings, patience: float) -> None:
        self._places = places
        self._settings = settings
        self._patience = str(patience)
        self._running: list[Program] = []
        self._logs = Path(tempfile.mkdtemp(prefix="gcbpatch-demo-"))
        self._master = self._start(places.public, "master", "--host", places.public.address)
        for place in (places.left, places.right):
            self._start(place, "startd", "--master", self._master, "--name", place.name)

    def _start(self, place: Any, program: str, *arguments: str) -> str:
        """Start a daemon and return the address that its ready line names."""
        environ = self._environ(place)
        patch = ["-m", "gcbpatch"] if environ else []
        argv = [sys.executable, *patch, str(POOL / f"{program}.py"), *arguments]
        running = place.popen(argv, env=environ)
        self._running.append(running)
        return str(running.wait_line(r"ready on (\S+)").group(1))

    def _environ(self, place: Any) -> dict[str, str]:
        settings = self._settings.get(place.name, {})
        if not settings:
            return {}
        return {**settings, "GCB_LOG": "INFO", "GCB_LOG_FILE": str(self._log_of(place.name))}

    def _log_of(self, name: str) -> Path:
        return self._logs / f"{name.replace(' ', '-')}.log"

    def run_job(self, place: Any, inputs: list[str]) -> list[Row]:
        """Send the job from ``place``, by a schedd of its own, and tell of each connection."""
        schedd = self._start(
            place, "schedd", "--master", self._master, "--host", "127.0.0.1",
            "--connect-timeout", self._patience, "--match-timeout", "10", "--tries", "2",
        )  # fmt: skip
        submit = [sys.executable, str(POOL / "submit.py"), "--json", "--schedd", schedd]
        done = place.run([*submit, JOB, *inputs], check=False)
        try:
            tasks = json.loads(done.stdout)["tasks"]
        except ValueError as error:
            raise ProgramError(f"submit said no report: {done.stdout}{done.stderr}") from error
        return [row for task in tasks for row in self._rows(place, task)]

    def _rows(self, place: Any, task: dict[str, Any]) -> list[Row]:
        rows = [
            Row(place.name, bad["startd"], bad["address"], "none", None, bad["error"], False)
            for bad in task["failed_tries"]
        ]
        if task["exit_status"] is None:
            return rows
        count = task["stdout"].strip()
        right = task["exit_status"] == 0 and count == str(primes_in(task["input"]))
        path = self._path(place, task)
        result = f"{count} primes in {task['input'].replace(' ', '-')}"
        address, took = task["address"], task["connect_ms"]
        return [*rows, Row(place.name, task["startd"], address, path, took, result, right)]

    def _path(self, place: Any, task: dict[str, Any]) -> str:
        """Which way the connection took, from the logs of the two ends."""
        text = self._read_log(place.name)
        mine = re.findall(rf"connect(?:ed|ing) to {re.escape(task['address'])}: (\w+)", text)
        if mine and mine[-1] != "kernel":
            return str(mine[-1])
        text = self._read_log(task["startd"])
        theirs = re.findall(rf"accepted {re.escape(task['peer'])}: (\w+)", text)
        return str(theirs[-1]).lower() if theirs else "forwarded"

    def _read_log(self, name: str) -> str:
        path = self._log_of(name)
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        """End the pool's programs and remove their logs."""
        for program in reversed(self._running):
            program.terminate()
        for path in self._logs.iterdir():
            path.unlink()
        self._logs.rmdir()
