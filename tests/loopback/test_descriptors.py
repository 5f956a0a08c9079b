"""Descriptors: none is left open by what has ended, and to have none left breaks nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcbpatch.addresses import format_address

from .broker_client import Broker
from .test_patched import run

PROGRAM = """
    import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
    import errno, os, posix, re, resource, socket, time

    def opened(pid="self"):
        return len(os.listdir(f"/proc/{pid}/fd"))

    def until(number, pid):
        limit = time.monotonic() + 60
        while opened(pid) > number:
            assert time.monotonic() < limit, (opened(pid), number)
            time.sleep(0.05)

    def listen():
        with socket.create_server(("", 0)) as listener:
            assert listener.getsockname()[0] == os.environ["GCB_BROKER"].split(":")[0]

    server = socket.create_server(("", 0))
    public = server.getsockname()

    def connect():
        with socket.create_connection(public) as near:
            far, peer = server.accept()
            with far:
                near.sendall(b"x")
                assert far.recv(10) == b"x"

    listen()
    connect()
    agent = re.search(r"agent\\[(\\d+)\\]", open(os.environ["GCB_LOG_FILE"]).read()).group(1)
"""


def outcome(broker: Broker, tmp_path: Path, program: str) -> None:
    """Run a continuation of PROGRAM that says good at its end."""
    done = run(
        PROGRAM + program,
        GCB_BROKER=format_address(broker.address),
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(tmp_path / "log"),
    )
    assert done.stdout == "good\n", done.stderr
    warnings = done.stderr.splitlines()
    assert len(warnings) <= 1, done.stderr
    assert all(line.endswith("going on as if unpatched") for line in warnings), done.stderr


@pytest.mark.parametrize("what", ["listen", "connect"])
def test_a_thousand_sockets_leave_nothing_open(broker: Broker, tmp_path: Path, what: str) -> None:
    outcome(
        broker,
        tmp_path,
        f"""
    listen(), connect()
    mine, agents = opened(), opened(agent)
    for _ in range(1000):
        {what}()
    assert opened() <= mine, (opened(), mine)
    until(agents, agent)
    print("good")
    """,
    )


@pytest.mark.parametrize("what", ["listen", "connect"])
def test_a_program_that_runs_out_of_descriptors(broker: Broker, tmp_path: Path, what: str) -> None:
    outcome(
        broker,
        tmp_path,
        f"""
    listen(), connect()
    mine, agents = opened(), opened(agent)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    ended = set()
    for left in range(1, 16):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
        fillers = []
        try:
            while True:
                fillers.append(os.dup(0))
        except OSError as error:
            assert error.errno == errno.EMFILE
        for number in fillers[-left:]:
            posix.close(number)  # at once: gevent's os.close leaves it to its hub
        try:
            if "{what}" == "listen":
                socket.create_server(("", 0)).close()
            else:
                sock = socket.socket()
                with sock:
                    sock.connect(public)
            ended.add("well")
        except OSError as error:
            assert error.errno == errno.EMFILE, error
            ended.add("EMFILE")
        finally:
            for number in fillers[:-left]:
                posix.close(number)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        if "{what}" == "connect":
            server.settimeout(0.3)
            try:
                server.accept()[0].close()
            except TimeoutError:
                pass
        assert opened() <= mine, (left, opened(), mine)
    server.settimeout(None)
    listen(), connect()
    until(agents, agent)
    assert ended <= {{"well", "EMFILE"}} and "well" in ended, ended
    print("good")
    """,
    )
