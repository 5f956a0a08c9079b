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
            import contextlib, os, socket, time
            folder = f"/proc/{os.environ['BROKER_PID']}/fd"
            def of_broker():
                for number in os.listdir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        yield os.readlink(f"{folder}/{number}")
            def listens(port):
                lines = [line.split() for line in open("/proc/net/tcp")]
                there = {f"socket:[{l[9]}]" for l in lines if l[1].endswith(":%04X" % port)
                         and l[3] == "0A"}
                return not there.isdisjoint(of_broker())
            until = time.monotonic() + 2
            while time.monotonic() < until:
                with socket.socket() as found:
                    found.bind(("127.0.0.1", 0))
                    port = found.getsockname()[1]
                with socket.socket() as wanted:
                    try:
                        wanted.bind(("", port))
                    except OSError:
                        assert not listens(port)  # others' listeners, or TIME_WAIT
            print("good")
            """,
            GCB_BROKER=format_address(broker.address),
            GCB_IDENTITY="local",
            BROKER_PID=str(broker.process.pid),
        )
    finally:
        broker.kill()
    assert done.stdout == "good\n", done.stderr


def test_a_denied_destination_is_refused_as_the_kernel_refuses_a_prohibited_one(
    tmp_path: Path,
) -> None:
    routes = tmp_path / "routes"
    routes.write_text("127.0.0.0/8 deny\n127.0.0.1/32 direct\n::1/128 deny\n")
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import errno, socket
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()

        def fails(do, *args):
            try:
                do(*args)
            except PermissionError as error:
                assert error.errno == errno.EACCES, error
            else:
                raise AssertionError(f"{do} {args}")

        for host in ("127.0.0.2", "127.1"):
            assert (host == "127.1") == (socket.socket().connect_ex((host, port)) == 0), host
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            fails(socket.socket(type=kind).connect, ("127.0.0.2", port))
            fails(socket.socket(socket.AF_INET6, kind).connect, ("::1", port))
            fails(socket.socket(socket.AF_INET6, kind).connect, ("::ffff:127.0.0.2", port))
            assert socket.socket(type=kind).connect_ex(("127.0.0.2", port)) == errno.EACCES
        with socket.socket(type=socket.SOCK_DGRAM) as near, \\
                socket.socket(type=socket.SOCK_DGRAM) as far:
            far.bind(("127.0.0.1", 0))
            near.sendto(b"direct", far.getsockname())
            near.sendmsg([b"again"], [], 0, far.getsockname())
            assert far.recv(9) + far.recv(9) == b"directagain"
            fails(near.sendto, b"denied", ("127.0.0.2", port))
            fails(near.sendto, b"denied", 0, ("127.0.0.2", port))
            fails(near.sendmsg, [b"denied"], [], 0, ("127.0.0.2", port))
        one, other = socket.socketpair()
        one.sendmsg([b"no address"])
        assert other.recv(99) == b"no address"
        print("good")
        """,
        GCB_ROUTES=str(routes),
    )
    assert done.stdout == "good\n", done.stderr


def test_a_denied_name_is_denied_by_its_address(broker: Broker) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all(routes=["127.0.0.0/8 deny"])
        import errno, socket
        from gevent import monkey
        for cls in (socket.socket, monkey.get_original("socket", "socket")):
            with cls(type=socket.SOCK_DGRAM) as sock:
                code = sock.connect_ex(("localhost", 9))
                assert code == (errno.EACCES if cls is socket.socket else 0), code
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(b"", ("localhost", 9))
            except PermissionError:
                print("good")
        """,
        GCB_BROKER=format_address(broker.address),
    )
    assert done.stdout == "good\n", done.stderr


def test_a_changed_table_holds_for_the_next_listener_and_connect(
    broker: Broker, tmp_path: Path
) -> None:
    routes, log = tmp_path / "routes", tmp_path / "log"
    routes.write_text("# nothing yet\n")
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import os, socket, sys
        routes = os.environ["ROUTES"]

        def pass_one():
            with socket.create_server(("127.0.0.1", 0)) as listener:
                near = socket.create_connection(listener.getsockname())
                far, _ = listener.accept()
                far.sendall(b"!")
                assert near.recv(1) == b"!"

        agent = socket.create_server(("", 0))  # registered: the agent has read the table
        pass_one()
        for text in ("127.0.0.0/8 gcb", "127.0.0.0/8 brokered"):
            with open(routes, "w") as file:
                file.write(text)
            pass_one()
            pass_one()
        with open(routes + ".new", "w") as file:
            file.write("127.0.0.0/8 direct")
        os.rename(routes + ".new", routes)
        pass_one()
        print("good")
        """,
        GCB_BROKER=format_address(broker.address),
        GCB_IDENTITY="local",
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(log),
        GCB_ROUTES=str(routes),
        ROUTES=str(routes),
    )
    assert done.stdout == "good\n", done.stderr
    told = log.read_text()
    assert told.count("] accepted ") == 4  # two by each of the tables that say gcb
    wrong = [line for line in told.splitlines() if "is not a route" in line]
    assert 1 <= len(wrong) <= 2, wrong  # the program, and the agent if it looked by then
    assert "the routes that were read before stay" in wrong[0]


def test_children_go_to_the_same_agent_though_the_table_has_changed(
    broker: Broker, tmp_path: Path
) -> None:
    routes = tmp_path / "routes"
    routes.write_text("127.0.0.0/8 gcb\n")
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import os, subprocess, sys
        from gcbpatch.sockets.layer import LAYER
        with open(os.environ["ROUTES"], "w") as file:
            file.write("127.0.0.0/8 dpf")
        child = (
            "import gcbpatch; gcbpatch.patch_all();"
            "from gcbpatch.sockets.layer import LAYER;"
            "print(LAYER.link.name, LAYER.link.config.routes.way('127.0.0.1').value)"
        )
        done = subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, check=True)
        assert done.stdout.decode().split() == [LAYER.link.name, "dpf"], done.stdout
        print("good")
        """,
        GCB_BROKER=format_address(broker.address),
        GCB_ROUTES=str(routes),
        ROUTES=str(routes),
    )
    assert done.stdout == "good\n", done.stderr
