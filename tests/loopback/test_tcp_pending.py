"""A connect under way, and what a program may do to its socket meanwhile: as in the kernel."""

from __future__ import annotations

from pathlib import Path

from .broker_client import Broker
from .side_by_side import same


def test_a_connecting_socket_answers_as_in_the_kernel(broker: Broker, tmp_path: Path) -> None:
    said = same(
        """
        with held() as listener:
            sock = starting(listener.getsockname())
            say("again", errno.errorcode[sock.connect_ex(listener.getsockname())])
            say("error", sock.getsockopt(SOL_SOCKET, SO_ERROR))
            say("peer", error_of(sock.getpeername))
            for call in (sock.send, sock.sendall):
                say(call.__name__, error_of(call, b"x"))
            say("sendmsg", error_of(sock.sendmsg, [b"x"]))
            say("recv", error_of(sock.recv, 10), error_of(sock.recv, 10, socket.MSG_PEEK))
            say("recv_into", error_of(sock.recv_into, bytearray(10)))
            say("recvfrom", error_of(sock.recvfrom, 10))
            say("recvmsg", error_of(sock.recvmsg, 10))
            say("bind", error_of(sock.bind, ("127.0.0.1", 0)))
            say("listen", error_of(sock.listen))
            say("accept", error_of(sock.accept))
            say("polled", select.select([sock], [sock], [], 0.1))
        say("writable", writable(sock))
        say("error", sock.getsockopt(SOL_SOCKET, SO_ERROR))
        say("peer", sock.getpeername() == listener.getsockname())
        say("connect_ex", sock.connect_ex(listener.getsockname()))
        say("connect_ex", errno.errorcode[sock.connect_ex(listener.getsockname())])
        far, name = listener.accept()
        say("name", name == sock.getsockname())
        sock.setblocking(True)
        sock.sendall(b"nothing else")
        sock.shutdown(socket.SHUT_WR)
        say(far.makefile("rb").read())
        """,
        broker,
        tmp_path / "log",
    )
    assert "again EALREADY\n" in said
    assert said.endswith("b'nothing else'\n")


def test_shutdown_ends_a_connect(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        pair(listening())
        for how in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            with held() as listener:
                sock = starting(listener.getsockname())
                say(how, error_of(sock.shutdown, how), writable(sock))
                say(errno.errorcode[sock.getsockopt(SOL_SOCKET, SO_ERROR)])
                say(error_of(sock.getpeername), error_of(sock.shutdown, how))
        """,
        broker,
        tmp_path / "log",
    )


def test_who_reads_or_writes_in_blocking_mode_waits_for_the_connection(
    broker: Broker, tmp_path: Path
) -> None:
    same(
        """
        for first in ("recv", "send"):
            with held() as listener:
                sock = starting(listener.getsockname())
                sock.setblocking(True)
                results = []
                def use():
                    results.append(sock.recv(10) if first == "recv" else sock.send(b"ping"))
                using = threading.Thread(target=use)
                using.start()
                time.sleep(0.1)
                say("waits", results)
            far, _ = listener.accept()
            if first == "recv":
                far.sendall(b"pong")
            using.join()
            say(first, results, far.recv(10) if first == "send" else "")
        """,
        broker,
        tmp_path / "log",
    )


def test_who_only_waits_to_read_is_woken_by_what_comes(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        for wait in (
            lambda sock: bool(select.select([sock], [], [], 30)[0]),
            lambda sock: [mask for _, mask in polled(sock)],
        ):
            def polled(sock):
                poll = select.poll()
                poll.register(sock, select.POLLIN)
                return poll.poll(30000)
            with held() as listener:
                sock = starting(listener.getsockname())
                seen = []
                waiting = threading.Thread(target=lambda: seen.append(wait(sock)))
                waiting.start()
                time.sleep(0.1)
            far, _ = listener.accept()
            far.sendall(b"greeting")
            waiting.join()
            say(seen, sock.recv(100))
        """,
        broker,
        tmp_path / "log",
    )


def test_a_refused_connect_is_told_once_and_the_socket_may_try_again(
    broker: Broker, tmp_path: Path
) -> None:
    same(
        """
        pair(listening())
        def failed():
            sock = starting(REFUSING)
            assert writable(sock)
            return sock
        say("SO_ERROR", errno.errorcode[failed().getsockopt(SOL_SOCKET, SO_ERROR)])
        say("connect_ex", errno.errorcode[failed().connect_ex(REFUSING)])
        for use in (lambda s: s.send(b"x"), lambda s: s.recv(1), lambda s: s.getpeername()):
            sock = failed()
            say(error_of(use, sock))
        sock = socket.socket()
        say("blocking", error_of(sock.connect, REFUSING))
        sock = failed()
        say(errno.errorcode[sock.connect_ex(REFUSING)])
        again = listening()
        sock.settimeout(30)
        sock.connect(again.getsockname())
        far, _ = again.accept()
        sock.sendall(b"in the end")
        say(far.recv(100))
        """,
        broker,
        tmp_path / "log",
    )


def test_a_connect_times_out_and_goes_on(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        with held() as listener:
            sock = socket.socket()
            sock.settimeout(0.2)
            for _ in range(2):
                try:
                    sock.connect(listener.getsockname())
                except TimeoutError as error:
                    say(repr(error))
            say("connect_ex", errno.errorcode[sock.connect_ex(listener.getsockname())])
        sock.settimeout(30)
        sock.connect(listener.getsockname())
        far, _ = listener.accept()
        sock.sendall(b"late")
        say(far.recv(10))
        """,
        broker,
        tmp_path / "log",
    )


def test_a_socket_is_closed_dropped_or_detached_while_it_connects(
    broker: Broker, tmp_path: Path
) -> None:
    same(
        """
        import gc
        with held() as listener:
            waiting = socket.socket()
            said = []
            thread = threading.Thread(
                target=lambda: said.append(error_of(waiting.connect, listener.getsockname()))
            )
            thread.start()
            time.sleep(0.1)
            waiting.close()
            thread.join()
            say("closed under a waiting connect", said)
            number = starting(listener.getsockname()).fileno()
            gc.collect()
            time.sleep(0.1)
            say("dropped", error_of(os.fstat, number))
            kept = starting(listener.getsockname())
            taken = socket.socket(fileno=kept.detach())
            taken.setblocking(False)
            say("detached", error_of(taken.getpeername), error_of(taken.send, b"x"))
            say(errno.errorcode[taken.connect_ex(listener.getsockname())])
        say(writable(taken), taken.getsockopt(SOL_SOCKET, SO_ERROR))
        taken.sendall(b"taken")
        while True:
            far, _ = listener.accept()
            got = error_of(far.recv, 10)
            if got == b"taken":
                break
        say(got, taken.getpeername() == listener.getsockname())
        """,
        broker,
        tmp_path / "log",
    )


def test_all_that_are_one_socket_get_the_connection(broker: Broker, tmp_path: Path) -> None:
    said = same(
        """
        for when in ("before connect", "while it connects"):
            with held() as listener:
                sock = socket.socket()
                def twins():
                    ours, theirs = socket.socketpair()
                    socket.send_fds(ours, [b"x"], [sock.fileno()])
                    passed = socket.recv_fds(theirs, 1, 1)[1][0]
                    return [sock.dup(), socket.socket(fileno=passed)]
                made = twins() if when == "before connect" else []
                starting(listener.getsockname(), sock)
                made = made or twins()
                for one in made:
                    one.setblocking(False)
                    say(when, error_of(one.send, b"x"))
            say(writable(made[0]), [writable(one) for one in made])
            far, _ = listener.accept()
            for number, one in enumerate([sock, *made]):
                one.setblocking(True)
                one.sendall(b"%d" % number)
                say(far.recv(1), one.getpeername() == listener.getsockname())
        """,
        broker,
        tmp_path / "log",
    )
    assert said.count("True") == 12


def test_a_forked_child_does_not_take_the_answer(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        with held() as listener:
            sock = starting(listener.getsockname())
            child = os.fork()
            if child == 0:
                time.sleep(1.5)  # its hub runs meanwhile
                os._exit(0)
            time.sleep(0.2)
        say(writable(sock), sock.getsockopt(SOL_SOCKET, SO_ERROR))
        far, _ = listener.accept()
        sock.sendall(b"the parent's")
        say(far.recv(100))
        os.waitpid(child, 0)
        """,
        broker,
        tmp_path / "log",
    )
