"""Runs one task of a job in a process of its own and passes on what it writes, as it comes."""

import codecs
import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import wire

# How often a silent task is reported to be alive, in seconds; a third of what the schedd allows.
ALIVE_S = 5.0
CHUNK = 64 * 1024
# How long output that a task's own children still write is waited for, in seconds.
LAST_WORDS_S = 2.0

Report = Callable[[wire.Message], None]


class Task:
    """A task from start to exit; `report` is called with every message that tells about it."""

    def __init__(self, script: str, data: str, report: Report) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pool-task-")
        self._report = report
        self._report_lock = threading.Lock()
        try:
            self._process = self._start(script, data)
        except OSError:
            self._folder.cleanup()
            raise

    def _start(self, script: str, data: str) -> subprocess.Popen[bytes]:
        folder = Path(self._folder.name)
        (folder / "job.py").write_bytes(script.encode(errors="replace"))
        (folder / "input").write_bytes(data.encode(errors="replace"))
        with (folder / "input").open("rb") as stdin:
            return subprocess.Popen(
                [sys.executable, "job.py"],
                cwd=folder,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    def run(self) -> None:
        """Waits for the task's end and reports its output and its exit status, in that order."""
        process = self._process
        pumps = [self._pump(process.stdout, "stdout"), self._pump(process.stderr, "stderr")]
        with self._folder:
            status = self._wait()
            for pump in pumps:
                pump.join(LAST_WORDS_S)
            self._tell({"type": "exit", "status": status})

    def kill(self) -> None:
        """Ends the task; run() then comes to its end too."""
        self._process.kill()

    def _wait(self) -> int:
        while True:
            try:
                return self._process.wait(ALIVE_S)
            except subprocess.TimeoutExpired:
                self._tell({"type": "alive"})

    def _pump(self, stream: IO[bytes] | None, name: str) -> threading.Thread:
        assert stream is not None, "the task was started with pipes"
        thread = threading.Thread(target=self._pass_on, args=(stream, name), daemon=True)
        thread.start()
        return thread

    def _pass_on(self, stream: IO[bytes], name: str) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with stream:
            while chunk := stream.read1(CHUNK):  # type: ignore[attr-defined]
                self._tell({"type": "output", "stream": name, "text": decoder.decode(chunk)})
        if rest := decoder.decode(b"", final=True):
            self._tell({"type": "output", "stream": name, "text": rest})

    def _tell(self, message: wire.Message) -> None:
        with self._report_lock:
            try:
                self._report(message)
            except OSError:
                # Nobody is left to hear it, so nobody wants the result either.
                with contextlib.suppress(ProcessLookupError):
                    self.kill()
