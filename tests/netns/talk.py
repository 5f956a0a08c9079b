"""Short words for what tests in the lab do with sockets of its nodes.

The sockets are the test's own and live inside a node; they are closed with the lab.
"""

import errno
import socket

from tests.netns.lab import Node
from tests.netns.lab.program import HANG_LIMIT

SILENCE = 1.0  # seconds without an answer that count as none; no answer is expected ever


def listen(node: Node, port: int) -> socket.socket:
    """A listening TCP socket."""
    listener = node.socket()
    listener.settimeout(HANG_LIMIT)
    listener.bind(("0.0.0.0", port))
    listener.listen()
    return listener


def udp(node: Node, port: int = 0) -> socket.socket:
    """A bound UDP socket."""
    made = node.socket(socket.SOCK_DGRAM)
    made.settimeout(HANG_LIMIT)
    made.bind(("0.0.0.0", port))
    return made


def dial(node: Node, address: str, port: int, *, own_port: int = 0) -> socket.socket:
    """A TCP connection, from a port of one's own choice if need be."""
    connector = node.socket()
    connector.settimeout(HANG_LIMIT)
    connector.bind(("0.0.0.0", own_port))
    connector.connect((address, port))
    return connector


def outcome(node: Node, address: str, port: int, patience: float = HANG_LIMIT) -> str:
    """What comes of an attempt to connect: connected, the error's name, or silence."""
    with node.socket() as connector:
        connector.settimeout(patience)
        try:
            connector.connect((address, port))
        except TimeoutError:
            return "silence"
        except OSError as error:
            assert error.errno is not None
            return errno.errorcode[error.errno]
    return "connected"
