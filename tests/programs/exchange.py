"""What the test programs say to each other: random bytes, hashes of them, half-closes.

The connector sends a megabyte and half-closes; only then the listener's side, which has
read to the end, sends its own megabyte over the half that is still open, and closes.
"""

import hashlib
import os
import socket

SIZE = 1_000_003


def exchange(sock: socket.socket, begins: bool) -> dict[str, str]:
    """Exchange bytes; return the hashes of what was sent and what was received."""
    if begins:
        sent = send_all(sock)
        sock.shutdown(socket.SHUT_WR)
        received = receive_all(sock)
    else:
        received = receive_all(sock)
        sent = send_all(sock)
        sock.shutdown(socket.SHUT_WR)
    return {"sent": sent, "received": received}


def send_all(sock: socket.socket) -> str:
    """Send SIZE random bytes and return their hash."""
    data = os.urandom(SIZE)
    sock.sendall(data)
    return hashlib.sha256(data).hexdigest()


def receive_all(sock: socket.socket) -> str:
    """Read to the end and return the hash of what came."""
    digest, size = hashlib.sha256(), 0
    while data := sock.recv(65536):
        digest.update(data)
        size += len(data)
    if size != SIZE:
        raise ConnectionError(f"{size} bytes came; {SIZE} would be right")
    return digest.hexdigest()
