"""A plain program of the tests: echoes lines on any number of connections, a thread each.

Prints `listening on HOST:PORT`, then `connection from HOST:PORT` for each.
"""

import argparse
import socket
import sys
import threading


def main() -> None:
    """Listen and serve for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    listener = socket.socket()
    listener.bind(("", arguments.port))
    try:
        listener.listen(16)
    except OSError as error:
        print(f"listen failed: {error.errno} {error.strerror}", flush=True)
        sys.exit(3)
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    while True:
        sock, peer = listener.accept()
        print("connection from {}:{}".format(*peer[:2]), flush=True)
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def serve(sock: socket.socket) -> None:
    """Send every line back."""
    with sock, sock.makefile("rwb", buffering=0) as stream:
        for line in stream:
            stream.write(line)


if __name__ == "__main__":
    main()
