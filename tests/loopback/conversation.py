"""Programs that tests talk with, line by line: patched ones in processes of their own."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import TracebackType

from gcbpatch.addresses import Address, format_address, parse_host_port

from .broker_client import Broker
from .test_patched import HANG_LIMIT, ROOT, clean_environment

PATCH = "import gcbpatch; gcbpatch.patch_all()\n"


class Program:
    """A program under patch_all() with ``broker``; its log is in ``log``."""

    def __init__(
        self, text: str, broker: Broker, log: Path, *, pass_all: bool = False, **environ: str
    ) -> None:
        """``pass_all`` lets it inherit every descriptor that may be inherited."""
        self.log = log
        self._heard = b""
        settings = {
            "GCB_BROKER": format_address(broker.address),
            "GCB_LOG": "INFO",
            "GCB_LOG_FILE": str(log),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", PATCH + textwrap.dedent(text)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment() | settings | environ,
            text=True,
            bufsize=1,
            close_fds=not pass_all,
            start_new_session=True,
            cwd=ROOT,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.process.communicate(timeout=HANG_LIMIT)

    def kill(self) -> None:
        """Kill the program and its children, as far as they have not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def line(self) -> str:
        """The next line that the program prints."""
        assert self.process.stdout is not None
        while b"\n" not in self._heard:
            ready = select.select([self.process.stdout], [], [], HANG_LIMIT)[0]
            assert ready, f"the program says nothing; its log: {self.log.read_text()}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the program has ended; its log: {self.log.read_text()}"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode().strip()

    def name(self) -> Address:
        """The next line, which is an address."""
        return parse_host_port(self.line(), 0)

    def say(self, line: str = "") -> None:
        """Give the program a line to read."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def agents(self) -> list[int]:
        """The pids of all agents that have registered something, in order."""
        found = re.findall(r"agent\[(\d+)\] listener \S+ \S+ by gcb", self.log.read_text())
        return [int(pid) for pid in dict.fromkeys(found)]

    def wait_for_agent(self, number: int) -> int:
        """Wait until the ``number``-th agent has registered a listener; return its pid."""
        deadline = time.monotonic() + HANG_LIMIT
        while len(self.agents()) < number:
            assert time.monotonic() < deadline, self.log.read_text()
            os.sched_yield()
        return self.agents()[number - 1]
