"""A plain program of the tests: a listener that computes until its name is another one.

Prints `listening on HOST:PORT`, and again when getsockname() says something else. Until then
it never waits for anything; with --waits it accepts connections meanwhile. Then it echoes lines
on any number of connections, a thread each.
"""

import argparse
import socket
import threading

from echo import serve


def main() -> None:
    """Listen, look, and serve for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--waits", action="store_true")
    arguments = parser.parse_args()
    listener = socket.socket()
    listener.bind(("", 0))
    listener.listen(16)
    before = tell(listener)
    if arguments.waits:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        watch(listener, before)
    while listener.getsockname() == before:
        sum(range(10000))
    tell(listener)
    accept(listener)


def tell(listener: socket.socket) -> object:
    """Say what the listener is called."""
    name = listener.getsockname()
    print("listening on {}:{}".format(*name), flush=True)
    return name


def watch(listener: socket.socket, before: object) -> None:
    """Say every other name, for ever."""
    pause = threading.Event()
    while not pause.wait(0.05):
        if listener.getsockname() != before:
            before = tell(listener)


def accept(listener: socket.socket) -> None:
    """Accept for ever."""
    while True:
        sock, _ = listener.accept()
        print("accepted as {}:{}".format(*sock.getsockname()), flush=True)
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
