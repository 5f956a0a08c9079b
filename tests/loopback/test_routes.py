"""Routes at work: loopback brokered though it usually is not, and the reverse."""

from __future__ import annotations

from pathlib import Path

from gcbpatch.addresses import format_address

from .broker_client import Broker
from .test_patched import run


def test_a_routed_loopback_connects_through_the_broker_under_the_same_literals(
    broker: Broker, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
        import socket
        with socket.create_server(("127.0.0.1", 0)) as listener:
            bound = listener.getsockname()
            for _ in range(3):
                near = socket.create_connection(bound)
                far, peer = listener.accept()
                assert near.getpeername() == bound == far.getsockname()
                assert near.getsockname() == peer == far.getpeername(), (near.getsockname(), peer)
                near.sendall(b"through the broker")
                assert far.recv(100) == b"through the broker"
        print("good")
        """,
        GCB_BROKER=format_address(broker.address),
        GCB_IDENTITY="local",
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(log),
    )
    assert done.stdout == "good\n", done.stderr
    assert log.read_text().count("] accepted ") == 3


def test_a_connector_is_known_by_the_port_that_it_bound(broker: Broker) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
        import socket
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as near:
            near.bind(("127.0.0.1", 0))
            name = near.getsockname()
            near.connect(listener.getsockname())
            assert listener.accept()[1] == near.getsockname() == name
        print("good")
        """,
        GCB_BROKER=format_address(broker.address),
        GCB_IDENTITY="local",
    )
    assert done.stdout == "good\n", done.stderr


def test_a_route_to_the_kernel_keeps_an_interface_out(broker: Broker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all(routes=["0.0.0.0/0 kernel"])
        import socket
        with socket.create_server(("", 0)) as listener:
            assert listener.getsockname()[0] == "0.0.0.0"
        print("good")
        """,
        GCB_BROKER=format_address(broker.address),
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(log),
    )
    assert done.stdout == "good\n", done.stderr
    assert "agent[" not in log.read_text()


def test_a_broker_on_the_same_host_does_not_take_the_ports_that_the_program_gave_back(
    tmp_path: Path,
) -> None:
    broker = Broker(tmp_path, "--lifetime", "1")  # only so long it keeps ports for old clients
    try:
        done = run(
            """
            import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 gcb"])
            import socket, time
            def listens(port):
                lines = [line.split() for line in open("/proc/net/tcp")]
                return any(l[1].endswith(":%04X" % port) and l[3] == "0A" for l in lines)
            until = time.monotonic() + 2
            while time.monotonic() < until:
                with socket.socket() as found:
                    found.bind(("127.0.0.1", 0))
                    port = found.getsockname()[1]
                with socket.socket() as wanted:
                    try:
                        wanted.bind(("", port))
                    except OSError:
                        assert not listens(port)  # others' connections in TIME_WAIT
            print("good")
            """,
            GCB_BROKER=format_address(broker.address),
            GCB_IDENTITY="local",
        )
    finally:
        broker.kill()
    assert done.stdout == "good\n", done.stderr
