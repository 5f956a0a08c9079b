"""The pool's queue: takes jobs, gets startds for their tasks, and sends each task to one.

A task whose startd cannot be reached, or dies under it, is sent to another one, a limited number
of times. A task that ends by itself has ended, whatever its exit status. When the submitter goes
away, tasks that run come to their end and the others are not started.

    python schedd.py --master HOST:PORT [--host HOST] [--port PORT]
                     [--connect-timeout S] [--match-timeout S] [--tries N]

Messages:  submit {script, inputs}  ->  result {report} for each task as it ends, done
"""

import argparse
import queue
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import NoReturn

import claim
import matchmaker
import service
import wire

MAX_TASKS = 1000
# Tasks of one job that are on their way at a time.
MAX_RUNNING = 50
# How long a task waits before its next try, in seconds.
RETRY_S = 0.5
MAX_WORDS = 500


@dataclass(frozen=True)
class Limits:
    """How long, in seconds, a connect and the wait for a startd may take; tries for each task."""

    connect: float
    match: float
    tries: int


@dataclass
class FailedTry:
    """Where a try failed, and why in words."""

    startd: str
    address: str
    error: str


@dataclass
class Report:
    """What became of a task: where it ran, as what the startd saw us, and what it wrote.

    `error` is set where the task has not run to its end; exit_status is then None.
    """

    task: int
    startd: str | None = None
    address: str | None = None
    connect_ms: float | None = None
    peer: str | None = None
    exit_status: int | None = None
    stdout: str = ""
    stderr: str = ""
    error: str | None = None
    failed_tries: list[FailedTry] = field(default_factory=list)


class Task:
    """One input of a job, until it has run or cannot be run."""

    def __init__(self, number: int, script: str, data: str, limits: Limits) -> None:
        self.report = Report(number)
        self._script = script
        self._data = data
        self._limits = limits

    def run(self, startds: matchmaker.Matchmaker) -> None:
        """Tries one startd after another; the report tells the outcome."""
        failed = self.report.failed_tries
        try:
            while len(failed) < self._limits.tries:
                with startds.match({failure.startd for failure in failed}) as startd:
                    if self._run_at(startd):
                        return
                    time.sleep(RETRY_S)
            self.report.error = failed[-1].error
        except matchmaker.NoMatch as error:
            self.report.error = str(error)

    def _run_at(self, startd: matchmaker.Startd) -> bool:
        """Says whether the task is over, for better or worse."""
        try:
            result = claim.run_task(startd.address, self._script, self._data, self._limits.connect)
        except claim.Busy:
            service.log.info("task %d: %s is busy", self.report.task, startd.name)
            return False
        except claim.TooMuchOutput as error:
            self.report.error = str(error)
            return True
        except (OSError, wire.Refused, wire.BadMessage) as error:
            self._failed(startd, error)
            return False
        self._ran(startd, result)
        return True

    def _failed(self, startd: matchmaker.Startd, error: Exception) -> None:
        words = str(error)[:MAX_WORDS]
        service.log.warning("task %d: %s: %s", self.report.task, startd.name, words)
        self.report.failed_tries.append(FailedTry(startd.name, startd.address, words))

    def _ran(self, startd: matchmaker.Startd, result: claim.Result) -> None:
        report = self.report
        report.startd, report.address = startd.name, startd.address
        report.connect_ms, report.peer = result.connect_ms, result.peer
        report.stdout, report.stderr = result.output["stdout"], result.output["stderr"]
        report.exit_status = result.exit_status
        service.log.info("task %d: %s: exit %d", report.task, startd.name, report.exit_status)


class Job:
    """All tasks of one submission; some run side by side, the rest wait."""

    def __init__(self, tasks: list[Task], startds: matchmaker.Matchmaker) -> None:
        self._startds = startds
        self._size = len(tasks)
        self._waiting: queue.Queue[Task] = queue.Queue()
        self._ended: queue.Queue[Report] = queue.Queue()
        for task in tasks:
            self._waiting.put(task)

    def run(self, sock: socket.socket) -> None:
        """Sends the report of each task to `sock` as it ends, and then that all is done."""
        for _ in range(min(self._size, MAX_RUNNING)):
            threading.Thread(target=self._work, daemon=True).start()
        try:
            for _ in range(self._size):
                wire.send(sock, {"type": "result", "report": asdict(self._ended.get())})
            wire.send(sock, {"type": "done"})
        finally:
            self._forget_waiting()

    def _work(self) -> None:
        while (task := self._next()) is not None:
            task.run(self._startds)
            self._ended.put(task.report)

    def _next(self) -> Task | None:
        try:
            return self._waiting.get_nowait()
        except queue.Empty:
            return None

    def _forget_waiting(self) -> None:
        while self._next() is not None:
            pass


class Schedd:
    """Takes jobs, each on a connection of its own."""

    def __init__(self, master: service.Address, limits: Limits) -> None:
        self._master = master
        self._limits = limits

    def attend(self, sock: socket.socket, peer: service.Address) -> None:
        """Takes one job and stays with its submitter until it is done."""
        message = wire.receive(sock)
        if message is None:
            return
        if message.get("type") != "submit":
            raise wire.BadMessage(f"no such command: {message.get('type')!r}")
        script, inputs = wire.field(message, "script", str), wire.strings(message, "inputs")
        if not 0 < len(inputs) <= MAX_TASKS:
            raise wire.BadMessage(f"a job of {len(inputs)} tasks; it has 1 to {MAX_TASKS}")
        service.log.info("a job of %d tasks from %s", len(inputs), wire.format_address(*peer))
        tasks = [Task(n, script, data, self._limits) for n, data in enumerate(inputs)]
        Job(tasks, matchmaker.Matchmaker(self._master, self._limits.match)).run(sock)


def parse_arguments() -> argparse.Namespace:
    seconds, count = service.seconds_argument, service.count_argument
    parser = argparse.ArgumentParser(description="the pool's queue of jobs")
    parser.add_argument("--master", required=True, type=service.address_argument)
    parser.add_argument("--host", default="", help="interface to listen on (default: all)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any)")
    parser.add_argument("--connect-timeout", type=seconds, default=10.0, metavar="S")
    parser.add_argument(
        "--match-timeout", type=seconds, default=60.0, metavar="S", help="with an idle pool"
    )
    parser.add_argument("--tries", type=count, default=3, help="for each task (default: 3)")
    return parser.parse_args()


def main() -> NoReturn:
    arguments = parse_arguments()
    service.set_up("schedd")
    listener = service.listen(arguments.host, arguments.port)
    limits = Limits(arguments.connect_timeout, arguments.match_timeout, arguments.tries)
    service.ready("schedd", listener.getsockname()[:2])
    service.serve(listener, Schedd(arguments.master, limits).attend)


if __name__ == "__main__":
    main()
