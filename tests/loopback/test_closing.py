"""What a program closes, or we for it, is closed then and not when the hub next wakes."""

from __future__ import annotations

from gcbpatch.addresses import format_address

from .broker_client import Broker
from .test_patched import run


def run_brokered(broker: Broker, program: str) -> None:
    done = run(
        "import gcbpatch; gcbpatch.patch_all(routes=['127.0.0.0/8 gcb'])\n" + program,
        GCB_BROKER=format_address(broker.address),
        GCB_IDENTITY="local",
    )
    assert done.stdout == "good\n", done.stderr


def test_a_connection_that_is_closed_at_once_ends_at_its_peer(broker: Broker) -> None:
    run_brokered(
        broker,
        """
import socket, threading
with socket.create_server(("127.0.0.1", 0)) as listener:
    def client():
        with socket.create_connection(listener.getsockname()) as near:
            near.sendall(b"all")
    for _ in range(20):
        thread = threading.Thread(target=client)
        thread.start()
        far, _ = listener.accept()
        assert far.recv(3) == b"all"
        assert far.recv(1) == b""  # nothing else happens in this program that wakes the hub
        far.close()
        thread.join()
print("good")
""",
    )


def test_accepting_a_brokered_connection_leaves_one_descriptor_more(broker: Broker) -> None:
    run_brokered(
        broker,
        """
import os, select, socket
with socket.create_server(("127.0.0.1", 0)) as listener:
    near = socket.create_connection(listener.getsockname())
    select.select([listener], [], [])
    listener.setblocking(False)
    before = len(os.listdir("/proc/self/fd"))
    far, _ = listener.accept()
    assert len(os.listdir("/proc/self/fd")) == before + 1, os.listdir("/proc/self/fd")
print("good")
""",
    )
