"""What a program may do with TCP sockets: brokered, it sees what it sees without a broker."""

from __future__ import annotations

from pathlib import Path

from .broker_client import Broker
from .side_by_side import same


def test_data_goes_every_way_that_sockets_have(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        import tempfile
        listener = listening()
        near, far = pair(listener)
        say(near.send(b"abc"), far.recv(2, socket.MSG_PEEK), far.recv(10))
        say(near.sendmsg([b"de", b"f"]), far.recvmsg(10)[0])
        buffer = bytearray(5)
        far.sendall(b"12345")
        say(near.recv_into(buffer), bytes(buffer))
        far.sendall(b"67")
        say(near.recvmsg_into([bytearray(1), buffer])[0])
        far.sendall(b"xyz")
        say(near.recvfrom(10)[0])
        near.setsockopt(SOL_SOCKET, socket.SO_OOBINLINE, 0)
        far.send(b"!", socket.MSG_OOB)
        far.send(b".")
        while near.recv(1, socket.MSG_PEEK) != b".":
            pass
        say(near.recv(1, socket.MSG_OOB), near.recv(10))
        with tempfile.TemporaryFile() as file:
            file.write(bytes(range(256)) * 4000)
            file.seek(0)
            got = []
            reading = threading.Thread(target=lambda: got.append(far.makefile("rb").read()))
            reading.start()
            say(near.sendfile(file, 256), file.tell())
            near.shutdown(socket.SHUT_WR)
            reading.join()
            say(len(got[0]), got[0][:3])
        far.sendall(b"half closed")
        far.close()
        say(near.recv(100), near.recv(100))
        """,
        broker,
        tmp_path / "log",
    )


def test_files_made_of_sockets(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        listener = listening()
        near, far = pair(listener)
        files = near.makefile("rw", encoding="utf-8"), far.makefile("rwb", 0)
        near.close()
        files[0].write("line 1\\nlin€ 2\\n")
        files[0].flush()
        say(files[1].readline(), files[1].readline().decode())
        files[1].write(b"answer\\n")
        say(files[0].readline())
        files[0].close()
        say(files[1].read())
        """,
        broker,
        tmp_path / "log",
    )


def test_sockets_that_change_hands(broker: Broker, tmp_path: Path) -> None:
    said = same(
        """
        def passed(number):
            ours, theirs = socket.socketpair()
            socket.send_fds(ours, [b"x"], [number])
            return socket.recv_fds(theirs, 1, 1)[1][0]
        def forms(sock):
            yield "dup", sock.dup()
            yield "fromfd", socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_STREAM)
            yield "fileno", socket.socket(fileno=os.dup(sock.fileno()))
            yield "SCM_RIGHTS", socket.socket(fileno=passed(sock.fileno()))
            yield "detach", socket.socket(fileno=sock.detach())
        listener = listening()
        public = listener.getsockname()
        for name, again in forms(listener):
            again.settimeout(30)
            near = socket.create_connection(public)
            far, peer = again.accept()
            say(name, again.getsockname() == public, peer == near.getsockname())
        near.settimeout(30)
        for side in near, far:
            names = side.getsockname(), side.getpeername()
            other = far if side is near else near
            for name, again in forms(side):
                again.sendall(name.encode())
                say(other.recv(100), (again.getsockname(), again.getpeername()) == names)
            near = again
        say(again.family.name, again.getblocking())
        """,
        broker,
        tmp_path / "log",
    )
    assert "False" not in said


def test_a_lingering_close_resets(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        listener = listening()
        for closing in "near", "far":
            for when in "before", "after":
                near = socket.socket()
                if (closing, when) == ("near", "before"):
                    near.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                near.connect(listener.getsockname())
                far, _ = listener.accept()
                one, other = (near, far) if closing == "near" else (far, near)
                if when == "after":
                    one.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                    one.close()
                    say(closing, when, error_of(other.recv, 1), error_of(other.send, b"x"))
                else:
                    one.close()
                    say(closing, when, error_of(other.recv, 1))
        """,
        broker,
        tmp_path / "log",
    )


def test_shutdown_in_both_directions(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        listener = listening()
        near, far = pair(listener)
        near.shutdown(socket.SHUT_RD)
        say(near.recv(1), error_of(near.send, b"still"), far.recv(10))
        far.shutdown(socket.SHUT_WR)
        say(error_of(far.send, b"x"))
        near.shutdown(socket.SHUT_RDWR)
        say(far.recv(1), error_of(near.send, b"x"))
        near, far = pair(listener)
        waiting = []
        thread = threading.Thread(target=lambda: waiting.append(error_of(near.recv, 1)))
        thread.start()
        time.sleep(0.1)
        near.shutdown(socket.SHUT_RDWR)
        thread.join()
        say(waiting, far.recv(1))
        """,
        broker,
        tmp_path / "log",
    )


def test_close_wakes_whoever_waits(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        listener = listening()
        near, far = pair(listener)
        for sock, wait in ((listener, listener.accept), (far, lambda: far.recv(1))):
            said = []
            thread = threading.Thread(target=lambda: said.append(error_of(wait)))
            thread.start()
            time.sleep(0.1)
            sock.close()
            thread.join()
            say(said)
        say(error_of(near.recv, 1))
        """,
        broker,
        tmp_path / "log",
    )


def test_connecting_by_name_and_with_all_the_helpers(broker: Broker, tmp_path: Path) -> None:
    said = same(
        """
        listener = listening()
        host, port = listener.getsockname()
        def check(near, what):
            far, peer = listener.accept()
            near.setblocking(True)
            near.sendall(b"hello")
            named = near.getpeername(), near.getsockname()
            say(what, far.recv(5), named == ((host, port), peer))
        for name in "localhost", "127.1", "127.0.0.1", "2130706433":
            near = socket.socket()
            near.settimeout(30)
            near.connect((name, port))
            check(near, name)
            near = socket.socket()
            near.setblocking(False)
            say(errno.errorcode[near.connect_ex((name, port))], writable(near))
            say(near.getsockopt(SOL_SOCKET, SO_ERROR))
            check(near, name)
        check(socket.create_connection(("localhost", port), timeout=30), "create_connection")
        source = ("127.0.0.1", 0)
        check(socket.create_connection((host, port), source_address=source), "with a source")
        check(socket.create_connection((host, port), all_errors=True), "all_errors")
        try:
            socket.create_connection(REFUSING, all_errors=True)
        except ExceptionGroup as group:
            say([error_of(lambda error=error: (_ for _ in ()).throw(error))
                 for error in group.exceptions])
        say(error_of(socket.create_connection, REFUSING))
        """,
        broker,
        tmp_path / "log",
    )
    assert "False" not in said


def test_ipv6_sockets_connect_to_mapped_addresses(broker: Broker, tmp_path: Path) -> None:
    said = same(
        """
        listener = listening()
        host, port = listener.getsockname()
        for mapped in (f"::ffff:{host}",), (f"::FFFF:{host}", 0, 0), ("::ffff:7f00:1",):
            address = mapped[0], port, *mapped[1:]
            near = socket.socket(socket.AF_INET6)
            near.settimeout(30)
            near.connect(address)
            far, peer = listener.accept()
            say(near.getpeername()[0], near.getpeername()[1] == port, near.getpeername()[2:])
            name = near.getsockname()
            say(name[0], name[1] == peer[1], name[2:], near.family.name)
            again = near.dup()
            say(again.getsockname() == name, again.family.name)
            again.sendall(b"mapped")
            say(far.recv(10))
        only = socket.socket(socket.AF_INET6)
        only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        say(error_of(only.connect, (f"::ffff:{host}", port)))
        """,
        broker,
        tmp_path / "log",
    )
    assert "False" not in said


def test_accept_in_every_form(broker: Broker, tmp_path: Path) -> None:
    said = same(
        """
        listener = listening(backlog=50)
        public = listener.getsockname()
        listener.setblocking(False)
        say(error_of(listener.accept))
        listener.settimeout(0.1)
        say(error_of(listener.accept))
        for seconds in (None, 30.0):
            listener.settimeout(seconds)
            near = socket.create_connection(public)
            far, peer = listener.accept()
            say(peer == near.getsockname() == far.getpeername(), far.gettimeout())
        near = socket.create_connection(public)
        listener.setblocking(False)
        say(bool(select.select([listener], [], [], 30)[0]))
        far, peer = listener.accept()
        say(peer == near.getsockname(), far.gettimeout(), error_of(listener.accept))
        listener.settimeout(None)
        taken, named = [], []
        def take():
            far, peer = listener.accept()
            named.append(far.recv(100))
            taken.append(peer)
        threads = [threading.Thread(target=take) for _ in range(20)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        nears = [socket.create_connection(public) for _ in threads]
        for number, near in enumerate(nears):
            near.sendall(b"%d" % number)
        for thread in threads:
            thread.join()
        say(sorted(taken) == sorted(near.getsockname() for near in nears))
        say(sorted(map(int, named)) == list(range(20)))
        """,
        broker,
        tmp_path / "log",
    )
    assert "False False" not in said
