"""What the pool's three daemons have in common: listening, a thread per connection, an end.

A daemon prints one line to stdout when it serves, logs to stderr, and ends with exit status 0
on SIGTERM or Ctrl-C.
"""

import argparse
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import wire

# How long a connection may stay silent before it has said what it wants.
PATIENCE_S = 30.0
# How long a refused connection is kept for the other side to read the reason, in seconds.
LINGER_S = 2.0

log = logging.getLogger("pool")

Address = tuple[str, int]
Handler = Callable[[socket.socket, Address], None]


def set_up(name: str) -> None:
    """Logs to stderr under the daemon's name and turns SIGTERM into an orderly exit."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening TCP socket; host '' is every interface, port 0 any free port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
    return listener


def ready(name: str, address: Address) -> None:
    """Prints the one line by which others know that the daemon serves, and where."""
    print(f"{name} ready on {wire.format_address(*address)}", flush=True)


def serve(listener: socket.socket, handler: Handler) -> NoReturn:
    """Accepts for ever and gives each connection to `handler` in a thread of its own."""
    while True:
        try:
            sock, peer = listener.accept()
        except OSError as error:
            # A connection that was gone before it was accepted, or no descriptor left for it.
            log.warning("accept: %s", error)
            time.sleep(0.1)
            continue
        address = (peer[0], peer[1])
        threading.Thread(target=_attend, args=(handler, sock, address), daemon=True).start()


def address_argument(text: str) -> Address:
    """HOST:PORT of a command line, for argparse."""
    try:
        return wire.parse_address(text)
    except wire.BadMessage as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count_argument(text: str) -> int:
    """A whole number from 1 up of a command line, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def seconds_argument(text: str) -> float:
    """A time above zero of a command line, for argparse."""
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above zero, in seconds")
    return seconds


def _attend(handler: Handler, sock: socket.socket, peer: Address) -> None:
    with sock:
        sock.settimeout(PATIENCE_S)
        try:
            handler(sock, peer)
        except wire.BadMessage as error:
            log.warning("%s: refused: %s", wire.format_address(*peer), error)
            _answer_error(sock, str(error))
        except OSError as error:
            log.warning("%s: %s", wire.format_address(*peer), error)


def _answer_error(sock: socket.socket, words: str) -> None:
    try:
        wire.send(sock, {"type": "error", "error": words})
        sock.shutdown(socket.SHUT_WR)
        _drain(sock)
    except OSError as error:
        log.info("the refusal did not arrive: %s", error)


def _drain(sock: socket.socket) -> None:
    """Reads away what was sent before the refusal: closing over unread bytes would reset the
    connection, and the other side might never read why."""
    deadline = time.monotonic() + LINGER_S
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        if not sock.recv(65536):
            return


def _leave(number: int, _frame: object) -> NoReturn:
    log.info("leaving on %s", signal.Signals(number).name)
    raise SystemExit(0)
