"""Programs that run in the lab: started, listened to, waited for.

One thread per program takes in what it writes, as it comes, so no program ever blocks on a full
pipe and waiting for a line or for the end is waiting for an event. Waits have a hang limit, which
says that something hangs, not how fast anything is. It must never lose a byte of output.
"""

import contextlib
import os
import re
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Literal

from tests.netns.lab.errors import ProgramError

HANG_LIMIT = 60.0  # seconds
REPOSITORY = Path(__file__).resolve().parents[3]
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
Stream = Literal["stdout", "stderr"]


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment of a program: ours, without settings for DPF or GCB, and with `extra`.

    Python programs find the checkout's packages and write their lines at once.
    """
    base = {k: v for k, v in os.environ.items() if not k.startswith(("GCB_", "DPF_"))}
    paths = [str(REPOSITORY), *filter(None, [base.get("PYTHONPATH")])]
    base["PYTHONPATH"] = os.pathsep.join(paths)
    base["PYTHONUNBUFFERED"] = "1"
    base["PATH"] = f"{base.get('PATH', '/usr/bin:/bin')}:{SYSTEM_PATH}"
    return base | (extra or {})


class Program:
    """A running program. `name` is for messages; `argv` is complete, with all its wrappers."""

    def __init__(
        self,
        name: str,
        argv: list[str],
        *,
        env: dict[str, str],
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        cwd: str | None = None,
    ) -> None:
        self.name = name
        # A session of its own: Ctrl-C is for the lab, which then ends its programs.
        self._process = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        self.pid = self._process.pid
        # Opened before anybody can reap it, so it never names another process.
        self._pidfd = os.pidfd_open(self.pid)
        self._changed = threading.Condition()
        self._written: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._seen: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._returncode: int | None = None
        self._pump = threading.Thread(target=self._take_in, name=f"lab {name}", daemon=True)
        self._pump.start()

    @property
    def stdin(self) -> IO[bytes]:
        """Its standard input, where `stdin=subprocess.PIPE` was asked for."""
        if self._process.stdin is None:
            raise ProgramError(f"{self.name} has no pipe as stdin; pass stdin=subprocess.PIPE")
        return self._process.stdin

    @property
    def stdout(self) -> str:
        """All that it has written to standard output so far."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """All that it has written to standard error so far."""
        return self._text("stderr")

    @property
    def returncode(self) -> int | None:
        """As subprocess has it; None while it runs."""
        with self._changed:
            return self._returncode

    def wait_line(
        self, pattern: str, *, stream: Stream = "stdout", hang_limit: float = HANG_LIMIT
    ) -> re.Match[str]:
        """Wait for the next complete line in which the regular expression is found.

        The search goes on behind the line found last. ProgramError if the program ends first,
        or if the hang limit (seconds) passes; the message has all that the program has said.
        """
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = self._next_match(pattern, stream)
            found.extend([match] if match else [])
            return bool(match) or self._returncode is not None

        self._await(look, f"a line like {pattern!r} on {stream}", hang_limit)
        if not found:
            raise ProgramError(self._report(f"ended without a line like {pattern!r}"))
        return found[0]

    def wait(self, *, hang_limit: float = HANG_LIMIT) -> int:
        """Wait for its end; the exit status as subprocess has it (-N: killed by signal N)."""
        self._await(lambda: self._returncode is not None, "its end", hang_limit)
        with self._changed:
            assert self._returncode is not None
            return self._returncode

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self, *, hang_limit: float = HANG_LIMIT) -> int:
        """SIGTERM, then wait for the end; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(hang_limit=hang_limit)

    def kill(self, *, hang_limit: float = HANG_LIMIT) -> int:
        """SIGKILL, then wait for the end; the exit status."""
        self.signal(signal.SIGKILL)
        return self.wait(hang_limit=hang_limit)

    def result(self, *, check: bool, hang_limit: float) -> subprocess.CompletedProcess[str]:
        """Wait for the end and give everything. ProgramError if `check` and it failed.

        A program that reaches the hang limit is killed.
        """
        try:
            status = self.wait(hang_limit=hang_limit)
        except ProgramError:
            self.kill()
            raise
        if check and status != 0:
            raise ProgramError(self._report(f"exited with status {status}"))
        return subprocess.CompletedProcess(self._process.args, status, self.stdout, self.stderr)

    def close(self) -> None:
        """End it if it still runs, and let go of its pipes. Its descendants must be dead."""
        self.kill()
        self._pump.join(HANG_LIMIT)
        if self._pump.is_alive():
            raise ProgramError(f"somebody outside the lab holds the output of {self.name}")
        os.close(self._pidfd)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _text(self, stream: Stream) -> str:
        with self._changed:
            return self._written[stream].decode(errors="replace")

    def _next_match(self, pattern: str, stream: Stream) -> re.Match[str] | None:
        written = self._written[stream]
        while (end := written.find(b"\n", self._seen[stream])) >= 0:
            line = bytes(written[self._seen[stream] : end]).decode(errors="replace")
            self._seen[stream] = end + 1
            if match := re.search(pattern, line):
                return match
        return None

    def _await(self, condition: Callable[[], bool], what: str, hang_limit: float) -> None:
        with self._changed:
            if self._changed.wait_for(condition, hang_limit):
                return
        raise ProgramError(self._report(f"hangs: waited {hang_limit:g} s for {what}"))

    def _report(self, complaint: str) -> str:
        said = f"--- stdout ---\n{self.stdout}\n--- stderr ---\n{self.stderr}"
        return f"{self.name} (pid {self.pid}) {complaint}\n{said}"

    def _take_in(self) -> None:
        """The thread: read both pipes until nobody can write to them, and see the end."""
        with selectors.DefaultSelector() as selector:
            self._register_pipes(selector)
            selector.register(self._pidfd, selectors.EVENT_READ, None)
            while selector.get_map():
                # The program's end last: what it had written by then is taken in before.
                events = selector.select()
                for key, _ in events:
                    if key.data is not None and self._read(key.fd, key.data):
                        selector.unregister(key.fileobj)
                if any(key.fd == self._pidfd for key, _ in events):
                    selector.unregister(self._pidfd)
                    self._end(selector)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _register_pipes(self, selector: selectors.BaseSelector) -> None:
        pipes: list[tuple[IO[bytes] | None, Stream]] = [
            (self._process.stdout, "stdout"),
            (self._process.stderr, "stderr"),
        ]
        for pipe, stream in pipes:
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, stream)

    def _read(self, descriptor: int, stream: Stream) -> bool:
        """Take in what is there; true at the end of the stream."""
        while True:
            try:
                data = os.read(descriptor, 65536)
            except BlockingIOError:
                return False
            if not data:
                return True
            with self._changed:
                self._written[stream] += data
                self._changed.notify_all()

    def _end(self, selector: selectors.BaseSelector) -> None:
        for key in list(selector.get_map().values()):
            if self._read(key.fd, key.data):
                selector.unregister(key.fileobj)
        status = self._process.wait()
        with self._changed:
            self._returncode = status
            self._changed.notify_all()
