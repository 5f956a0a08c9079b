"""Socket options: what a program sets before connect or listen, it finds on the connections."""

from __future__ import annotations

from pathlib import Path

from .broker_client import Broker
from .side_by_side import brokered, same

OPTIONS = """
from socket import IPPROTO_IP, IPPROTO_TCP
TCP_USER_TIMEOUT = 18
def numbers(*pairs):
    return [(level, option, struct.pack("i", value)) for level, option, value in pairs]
OPTIONS = numbers(
    (IPPROTO_IP, socket.IP_TOS, 0x10),
    (IPPROTO_IP, socket.IP_TTL, 33),
    (SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (SOL_SOCKET, socket.SO_OOBINLINE, 1),
    (SOL_SOCKET, socket.SO_PRIORITY, 3),
    (SOL_SOCKET, socket.SO_RCVLOWAT, 2),
    (SOL_SOCKET, socket.SO_REUSEADDR, 1),
    (IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (IPPROTO_TCP, socket.TCP_KEEPIDLE, 111),
    (IPPROTO_TCP, socket.TCP_KEEPINTVL, 11),
    (IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (IPPROTO_TCP, socket.TCP_LINGER2, 20),
    (IPPROTO_TCP, TCP_USER_TIMEOUT, 12345),
    (IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 9999),
    (SOL_SOCKET, socket.SO_RCVBUF, 50000),
    (SOL_SOCKET, socket.SO_SNDBUF, 60000),
) + [
    (SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 7)),
    (SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 41, 0)),
    (SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 42, 0)),
    (IPPROTO_TCP, socket.TCP_CONGESTION, b"reno" + bytes(12)),
]
def set_all(sock):
    for level, option, value in OPTIONS:
        sock.setsockopt(level, option, value)
def tell(what, sock):
    for level, option, value in OPTIONS:
        say(what, level, option, sock.getsockopt(level, option, len(value)))
"""


def test_options_set_before_connect_hold_on_the_connection(broker: Broker, tmp_path: Path) -> None:
    same(
        OPTIONS
        + """
pair(listening())
for when in "before", "while":
    with held() as listener:
        sock = socket.socket()
        if when == "before":
            set_all(sock)
        starting(listener.getsockname(), sock)
        if when == "while":
            set_all(sock)
        tell(when, sock)
    writable(sock)
    tell(when, sock)
    listener.accept()
""",
        broker,
        tmp_path / "log",
    )


def test_accepted_sockets_have_the_options_of_their_listener(
    broker: Broker, tmp_path: Path
) -> None:
    same(
        OPTIONS
        + """
for when in "before bind", "before listen", "after listen", "on a dup":
    listener = socket.socket()
    if when == "before bind":
        set_all(listener)
    listener.bind(("127.0.0.1", 0))
    if when == "before listen":
        listener.getsockname()
        set_all(listener)
    listener.listen()
    if when == "after listen":
        set_all(listener)
    if when == "on a dup":
        set_all(listener.dup())
    _, far = pair(listener)
    tell(when, far)
""",
        broker,
        tmp_path / "log",
    )


def test_the_kernel_goes_on_tuning_what_no_program_has_set(broker: Broker, tmp_path: Path) -> None:
    said = brokered(
        """
        SO_BUF_LOCK = 72
        listener = listening()
        for sock in pair(listener):
            say(sock.getsockopt(SOL_SOCKET, SO_BUF_LOCK))
        """,
        broker,
        tmp_path / "log",
    )
    assert said == "0\n0\n"
