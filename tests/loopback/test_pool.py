"""The example pool as a whole, unpatched, on loopback: real programs, real sockets, a real job."""

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

POOL = Path(__file__).parents[2] / "examples" / "pool"
PRIMES = POOL / "jobs" / "primes.py"
# A hang limit, not a measure.
HANG_S = 60.0

Address = tuple[str, int]


class Daemon:
    """One program of the pool, started, and ready when the constructor returns."""

    def __init__(self, folder: Path, program: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(POOL / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            # One that is killed leaves its files there.
            env=os.environ | {"TMPDIR": str(folder)},
            # Its jobs are in its process group, so that none outlives a failed test.
            start_new_session=True,
        )
        self.ready_line = self._read_line()
        host, _, port = self.ready_line.rpartition(" ")[2].rpartition(":")
        self.address: Address = (host, int(port))

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], HANG_S)
        line = self.process.stdout.readline().decode() if readable else ""
        if not line:
            self.kill()
            raise AssertionError(f"{self.process.args!r} did not become ready")
        return line.strip()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(HANG_S)

    def kill(self) -> None:
        """Ends it, if it still runs, and all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(HANG_S)
        if self.process.stdout:
            self.process.stdout.close()


class Pool:
    """A master and a schedd on loopback, and what is added to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.daemons: list[Daemon] = []

    def begin(self) -> None:
        self.master = self.start("master.py", "--host", "127.0.0.1")
        self.schedd = self.start("schedd.py", "--host", "127.0.0.1", *self._master(), *LIMITS)

    def start(self, program: str, *arguments: str) -> Daemon:
        daemon = Daemon(self._folder, program, *arguments)
        self.daemons.append(daemon)
        return daemon

    def startd(self, name: str, *arguments: str) -> Daemon:
        return self.start("startd.py", *self._master(), "--name", name, *arguments)

    def submit(self, script: Path, *inputs: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                *(sys.executable, str(POOL / "submit.py"), "--json"),
                *("--schedd", text(self.schedd.address), str(script), *inputs),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: Path, *inputs: str) -> tuple[int, list[dict[str, Any]]]:
        """Submits a job and returns submit's exit status and the reports of the tasks."""
        return outcome(self.submit(script, *inputs))

    def advertise(self, name: str, address: Address, lifetime: float = 600.0) -> None:
        """Says to the master, in the place of a startd, that one is at this address."""
        ad = {"type": "update", "name": name, "cpus": 1, "lifetime": lifetime}
        assert ask(self.master.address, ad | {"address": text(address)}) == {"type": "ok"}

    def query(self) -> list[dict[str, Any]]:
        ads: list[dict[str, Any]] = ask(self.master.address, {"type": "query"})["ads"]
        return ads

    def advertised(self) -> list[str]:
        return [ad["name"] for ad in self.query()]

    def end(self) -> None:
        for daemon in self.daemons:
            daemon.kill()

    def _master(self) -> tuple[str, str]:
        return "--master", text(self.master.address)


LIMITS = ("--connect-timeout", "10", "--match-timeout", "2", "--tries", "3")


def text(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def outcome(submit: subprocess.Popen[str]) -> tuple[int, list[dict[str, Any]]]:
    try:
        output, _ = submit.communicate(timeout=HANG_S)
    finally:
        submit.kill()
    report = json.loads(output)
    assert report["ok"] == (submit.returncode == 0)
    return submit.returncode, report["tasks"]


def frame(body: bytes) -> bytes:
    return struct.pack("!I", len(body)) + body


def ask(address: Address, message: dict[str, Any]) -> dict[str, Any]:
    """One message and its answer, read and written without the pool's own code."""
    answer = exchange(address, frame(json.dumps(message).encode()))
    return answer[0]


def exchange(address: Address, data: bytes) -> list[dict[str, Any]]:
    """Sends bytes, ends the sending direction, and returns all messages that come back."""
    with socket.create_connection(address, HANG_S) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        stream = b"".join(iter(lambda: sock.recv(65536), b""))
    messages = []
    while stream:
        (length,) = struct.unpack_from("!I", stream)
        messages.append(json.loads(stream[4 : 4 + length]))
        stream = stream[4 + length :]
    return messages


def closed_port() -> Address:
    """An address on loopback at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address: Address = listener.getsockname()
    return address


@pytest.fixture
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    pool = Pool(tmp_path_factory.mktemp("pool"))
    try:
        pool.begin()
        yield pool
    finally:
        pool.end()


def test_a_job_is_split_over_both_startds_and_comes_back_right(pool: Pool) -> None:
    startds = {name: pool.startd(name) for name in ("slot1", "slot2")}
    status, tasks = pool.run(PRIMES, "0 10000", "10000 20000")
    assert status == 0
    assert [int(task["stdout"]) for task in tasks] == [1229, 1033]
    assert {task["startd"] for task in tasks} == {"slot1", "slot2"}
    for task in tasks:
        assert task["address"] == text(startds[task["startd"]].address)
        assert task["peer"].startswith("127.0.0.1:")
        assert task["connect_ms"] > 0
        assert task["failed_tries"] == [] and task["error"] is None


def test_more_tasks_than_cpus_wait_for_their_turn(pool: Pool) -> None:
    pool.startd("slot1")
    pool.startd("slot2", "--cpus", "2")
    ranges = [(low, low + 1000) for low in range(0, 10000, 1000)]
    status, tasks = pool.run(PRIMES, *(f"{low} {high}" for low, high in ranges))
    assert status == 0
    assert sum(int(task["stdout"]) for task in tasks) == 1229
    assert all(task["failed_tries"] == [] for task in tasks)


def test_a_ready_line_names_the_daemon_and_the_advertised_address(pool: Pool) -> None:
    startd = pool.startd("slot1")
    assert pool.master.ready_line == f"master ready on {text(pool.master.address)}"
    assert pool.schedd.ready_line == f"schedd ready on {text(pool.schedd.address)}"
    assert startd.ready_line == f"startd slot1 ready on {text(startd.address)}"
    assert startd.address[0] == "127.0.0.1"
    assert pool.advertised() == ["slot1"]


def test_output_of_both_kinds_and_the_exit_status_come_back(pool: Pool, tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        "import sys\n"
        "print('out', sys.stdin.read() * 20000, '\\u00e9', flush=True)\n"
        "print('err', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    pool.startd("slot1")
    status, (task,) = pool.run(job, "x")
    assert status == 1
    assert task["exit_status"] == 3 and task["error"] is None
    assert task["stdout"] == f"out {'x' * 20000} \u00e9\n"
    assert task["stderr"] == "err\n"


def test_a_task_that_writes_without_end_is_stopped(pool: Pool, tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text("while True:\n    print('x' * 1000)\n")
    pool.startd("slot1")
    status, (task,) = pool.run(job, "")
    assert status == 1
    assert "more than 131072 characters" in task["error"] and task["exit_status"] is None
    assert pool.run(PRIMES, "0 10")[0] == 0, "the startd's cpu is free again"


def test_a_task_whose_startd_is_killed_runs_elsewhere(pool: Pool, tmp_path: Path) -> None:
    # The first run of the job tells that it runs and then waits for ever; the next one ends.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    job = tmp_path / "job.py"
    job.write_text(
        "import os, pathlib, sys, time\n"
        f"if not pathlib.Path({str(tmp_path / 'ran')!r}).exists():\n"
        f"    pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        f"    pathlib.Path({str(fifo)!r}).write_text(str(os.getppid()))\n"
        "    time.sleep(3600)\n"
        "print('done', sys.stdin.read())\n"
    )
    startds = {daemon.process.pid: daemon for daemon in (pool.startd("a"), pool.startd("b"))}
    submit = pool.submit(job, "it")
    victim = startds.pop(int(read_fifo(fifo)))
    (survivor,) = startds.values()
    victim.kill()
    status, (task,) = outcome(submit)
    assert status == 0 and task["stdout"] == "done it\n"
    assert task["address"] == text(survivor.address)
    (failure,) = task["failed_tries"]
    assert failure["address"] == text(victim.address)


def test_an_advertised_address_without_a_listener_sends_the_task_elsewhere(pool: Pool) -> None:
    nowhere = closed_port()
    pool.advertise("nobody", nowhere)
    pool.startd("slot1")
    status, tasks = pool.run(PRIMES, "0 100", "100 200")
    assert status == 0
    assert [(task["startd"], int(task["stdout"])) for task in tasks] == [
        ("slot1", 25),
        ("slot1", 21),
    ]
    failures = [failure for task in tasks for failure in task["failed_tries"]]
    assert failures and all(failure["address"] == text(nowhere) for failure in failures)


def test_a_pool_without_a_reachable_startd_gives_up_in_the_system_s_words(pool: Pool) -> None:
    pool.advertise("nobody", closed_port())
    status, (task,) = pool.run(PRIMES, "0 100")
    assert status == 1
    assert "Connection refused" in task["error"] and task["exit_status"] is None
    assert [failure["startd"] for failure in task["failed_tries"]] == ["nobody"] * 3


def test_a_pool_without_startds_says_so(pool: Pool) -> None:
    status, tasks = pool.run(PRIMES, "0 100", "100 200")
    assert status == 1
    assert all("no startd advertises itself" in task["error"] for task in tasks)


def test_an_ad_that_is_not_renewed_is_forgotten(pool: Pool) -> None:
    pool.advertise("brief", closed_port(), lifetime=0.05)
    pool.startd("slot1", "--lifetime", "2.0")
    wait_until(lambda: pool.advertised() == ["slot1"])


def test_a_startd_renews_its_ad(pool: Pool) -> None:
    startd = pool.startd("slot1", "--lifetime", "0.6")
    pool.advertise("slot1", closed_port())
    wait_until(lambda: pool.query()[0]["address"] == text(startd.address))


def test_a_busy_startd_refuses_a_second_claim_and_is_free_after_the_first(pool: Pool) -> None:
    startd = pool.startd("slot1")
    claim = frame(b'{"type": "claim"}')
    with socket.create_connection(startd.address, HANG_S) as first:
        first.sendall(claim)
        assert first.recv(4), "the claim is granted"
        assert exchange(startd.address, claim) == [{"type": "busy"}]
    wait_until(lambda: exchange(startd.address, claim)[0]["type"] == "claimed")


def test_sigterm_ends_each_daemon_with_0_and_the_running_task_with_it(
    pool: Pool, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    job = tmp_path / "job.py"
    job.write_text(
        "import os, pathlib, time\n"
        f"pathlib.Path({str(fifo)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(3600)\n"
    )
    startd = pool.startd("slot1")
    submit = pool.submit(job, "")
    task = os.pidfd_open(int(read_fifo(fifo)))
    try:
        assert [startd.stop(), pool.schedd.stop(), pool.master.stop()] == [0, 0, 0]
        assert select.select([task], [], [], HANG_S)[0], "the task has ended"
    finally:
        os.close(task)
    assert submit.wait(HANG_S) == 1


GARBAGE = {
    "a frame too large": struct.pack("!I", 2**32 - 1) + b"x" * 100,
    "a frame cut short": struct.pack("!I", 100) + b"{}",
    "a length cut short": b"\0\0",
    "another protocol": b"GET / HTTP/1.1\r\nHost: pool\r\n\r\n",
    "not JSON": frame(b"\xff\xfe\x00"),
    "deep JSON": frame(b"[" * 100_000),
    "not an object": frame(b"[1, 2]"),
    "an unknown command": frame(b'{"type": "reboot"}'),
    "no command": frame(b"{}"),
    "fields missing": frame(b'{"type": "update"}'),
    "no inputs": frame(b'{"type": "submit", "script": "", "inputs": []}'),
    "fields of another type": frame(b'{"type": "match", "exclude": [1], "avoid": null}'),
    "a lifetime that is no number": frame(
        b'{"type": "update", "name": "x", "cpus": 1, "address": "192.0.2.1:1", "lifetime": NaN}'
    ),
    "an address that is none": frame(
        b'{"type": "update", "name": "x", "cpus": 1, "address": "home", "lifetime": 9.0}'
    ),
}


def test_garbage_is_refused_and_harms_nobody(pool: Pool) -> None:
    startd = pool.startd("slot1")
    for daemon in (pool.master, pool.schedd, startd):
        for what, data in GARBAGE.items():
            answers = exchange(daemon.address, data)
            assert [answer["type"] for answer in answers] == ["error"], (what, daemon.ready_line)
    status, (task,) = pool.run(PRIMES, "0 100")
    assert (status, task["stdout"]) == (0, "25\n")
    assert pool.advertised() == ["slot1"]


def test_a_job_that_is_none_frees_the_claim(pool: Pool) -> None:
    startd = pool.startd("slot1")
    claim = frame(b'{"type": "claim"}')
    answers = exchange(startd.address, claim + frame(b'{"type": "job", "script": 7}'))
    assert [answer["type"] for answer in answers] == ["claimed", "error"]
    assert pool.run(PRIMES, "0 100")[0] == 0


def read_fifo(fifo: Path) -> str:
    """What the task writes; waits for it, for as long as a hang limit allows."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert select.select([reader], [], [], HANG_S)[0], "the task did not start"
        return os.read(reader, 100).decode()
    finally:
        os.close(reader)


def wait_until(condition: Callable[[], bool]) -> None:
    """Asks again and again for something that is bound to become true, with a hang limit."""
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.05)
