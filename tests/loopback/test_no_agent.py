"""Where no agent can be started: the program works as if unpatched, after one warning, at once."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from gcbpatch.addresses import format_address

from .broker_client import Broker
from .test_patched import run

WORKS = """
    import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
    import os, resource, socket, sys, time
    {before}
    began = time.monotonic()
    for _ in range({times}):
        with socket.create_server(("", 0)) as listener:
            host, port = listener.getsockname()
            assert host == "0.0.0.0", host
            with socket.create_connection(("127.0.0.1", port)) as near:
                far, peer = listener.accept()
                assert (near.getsockname(), near.getpeername()[1]) == (peer, port)
                near.sendall(b"as ever")
                assert far.recv(100) == b"as ever"
                far.close()
    print("good", time.monotonic() - began)
"""


def seconds_of(broker: Broker, before: str = "", times: int = 20, **environ: str) -> float:
    """Run the program; return how long its sockets took all together."""
    program = WORKS.format(before=before, times=times)
    done = run(program, GCB_BROKER=format_address(broker.address), **environ)
    assert done.stdout.startswith("good "), done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith(("no agent: ", "no queue: ")), warning
    assert warning.endswith("going on as if unpatched"), warning
    assert "registered" not in broker.log()
    return float(done.stdout.split()[1])


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_no_interpreter_where_one_is_said_to_be(broker: Broker) -> None:
    seconds_of(broker, GCB_AGENT_PYTHON="/nonexistent/python")


def test_an_interpreter_that_fails(broker: Broker) -> None:
    seconds_of(broker, GCB_AGENT_PYTHON="/bin/false")


def test_an_interpreter_without_our_modules_is_tried_a_few_times_only(
    broker: Broker, tmp_path: Path
) -> None:
    tried = tmp_path / "tried"
    python = script(
        tmp_path / "python",
        f"echo >> {tried}\n"
        'boot="$4"; shift 4\n'
        f"exec {sys.executable} -I -S -c \"$boot\" /nonexistent /nonexistent",
    )
    seconds_of(broker, times=50, GCB_AGENT_PYTHON=python)
    assert len(tried.read_text().splitlines()) <= 4


def test_an_interpreter_that_never_ends_is_ended(broker: Broker, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    python = script(tmp_path / "python", f"echo $$ >> {pids}\nexec sleep 1000")
    seconds_of(broker, GCB_AGENT_PYTHON=python)
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_frozen_program_is_not_started_again_as_its_own_agent(
    broker: Broker, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    program = script(tmp_path / "program", f"echo >> {started}")
    seconds_of(broker, f"sys.frozen = True; sys.executable = {program!r}")
    assert not started.exists()


def test_a_program_that_knows_no_interpreter(broker: Broker) -> None:
    seconds_of(broker, "sys.executable = ''")


def test_a_user_that_may_have_no_more_processes(broker: Broker) -> None:
    # Root may always have more; and the other user may not read all of Python's own files.
    seconds_of(
        broker,
        "socket.getaddrinfo('127.0.0.1', 1); os.getuid() or os.setuid(54321); "
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))",
    )


@pytest.mark.parametrize("call", ["'execve'", "'socket', 1", "'socketpair', 1"])
def test_a_sandbox_that_lets_nobody_start_or_ask_an_agent(broker: Broker, call: str) -> None:
    seconds_of(broker, f"from tests.programs import sandbox; sandbox.forbid({call})")


def test_a_program_without_standard_descriptors_gets_its_agent(tmp_path: Path) -> None:
    said = tmp_path / "said"
    run(
        f"""
        import os, socket
        from gcbpatch.agent import door
        from gcbpatch.tree import new_name
        output = open({str(said)!r}, "w")
        for number in (0, 1, 2):
            os.close(number)
        name = new_name()
        listening = door.bind(name)
        assert listening.fileno() == 0
        door.spawn(listening, dict())
        listening.close()
        conn = door.connect(name)
        conn.setblocking(True)
        door.send(conn, door.Attach(os.getpid()))
        print(conn.recv(10) == door.WELCOME, file=output, flush=True)
        """
    )
    assert said.read_text() == "True\n"


NAMED = """
    import gcbpatch; gcbpatch.patch_all()
    import socket
    try:
        socket.create_connection(("{host}", 9), timeout=0.2)
    except OSError:
        pass
    from gcbpatch.agent import door
    from gcbpatch.sockets.layer import LAYER
    try:
        door.connect(LAYER.link.name).close()
    except ConnectionRefusedError:
        print("none")
    else:
        print("one")
"""


def agent_after_a_connect(broker: str) -> str:
    """Connect to an ordinary address that is not loopback's; say whether there is an agent."""
    done = run(NAMED.format(host="198.51.100.1"), GCB_BROKER=broker)
    assert done.stderr == ""
    return done.stdout.strip()


def test_a_connect_starts_no_agent_where_the_brokers_name_means_a_public_address() -> None:
    # No address as we write them, yet every resolver knows it without asking anybody.
    assert agent_after_a_connect("198.51.25609") == "none"


def test_a_connect_starts_one_where_the_broker_has_a_private_address(broker: Broker) -> None:
    assert agent_after_a_connect(format_address(broker.address)) == "one"


IN_TIME = """
    import gcbpatch; gcbpatch.patch_all()
    import socket
    try:
        socket.create_connection(("198.51.100.1", 9), timeout=0.3)
    except OSError as error:
        print(repr(error))
"""


def test_a_connect_keeps_its_timeout_while_the_agent_waits_for_a_silent_broker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = run(IN_TIME, GCB_BROKER=format_address(silent.getsockname()))
    assert (done.stdout, done.stderr) == ("TimeoutError('timed out')\n", "")
