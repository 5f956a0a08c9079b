"""What has happened when a call returns: as the kernel has it, though an agent is between.

After close() nobody can connect any more: a program that talks to itself may count on that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gcbpatch.addresses import format_address

from .broker_client import Broker
from .test_patched import run

TIMES = 50


def ask(broker: Broker, program: str, folder: Path) -> str:
    """Run a program whose loopback is brokered; returns what it has printed, and its log."""
    log = folder / "log"
    done = run(
        "import gcbpatch; gcbpatch.patch_all(routes=['127.0.0.0/8 gcb'])\n" + program,
        GCB_BROKER=format_address(broker.address),
        GCB_IDENTITY="local",
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(log),
    )
    assert done.stdout == "good\n", done.stderr
    return log.read_text()


CLOSED = {
    "of one address": 'socket.create_server(("127.0.0.1", 0))',
    "of every address": 'socket.create_server(("", 0))',
    "of both families": 'socket.create_server(("", 0), family=10, dualstack_ipv6=True)',
}


@pytest.mark.parametrize("server", CLOSED.values(), ids=CLOSED)
def test_a_listener_that_was_closed_refuses_at_once(
    broker: Broker, tmp_path: Path, server: str
) -> None:
    program = f"""
import errno, socket
for _ in range({TIMES}):
    listener = {server}
    name = "127.0.0.1", listener.getsockname()[1]
    with socket.create_connection(name) as first:
        pass
    listener.close()
    with socket.socket() as near:
        assert (error := near.connect_ex(name)) == errno.ECONNREFUSED, error
print("good")
"""
    assert ask(broker, program, tmp_path).count("program[") >= TIMES


def test_of_two_listeners_on_one_port_the_one_that_is_left_gets_the_connections(
    broker: Broker, tmp_path: Path
) -> None:
    program = """
import socket
def listener(port=0):
    return socket.create_server(("127.0.0.1", port), reuse_port=True)
for _ in range(20):
    one = listener()
    name = one.getsockname()
    two = listener(name[1])
    one.close()
    for _ in range(3):
        near = socket.create_connection(name)
        two.accept()[0].close()
        near.close()
    two.close()
print("good")
"""
    assert ask(broker, program, tmp_path).count("] accepted ") == 60
