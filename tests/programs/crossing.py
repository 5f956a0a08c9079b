"""A plain program of the tests: both ends of the matrix, TCP and UDP at once.

crossing.py: listens, prints `listening on HOST:PORT` and `bound to HOST:PORT`, and answers what it
gets backwards. crossing.py call: reads one JSON line, a list of [NAME, PROTOCOL, HOST, PORT, SIZE,
SECONDS], tries all of them at the same time, and prints a JSON object: for each NAME `null`, or
what went wrong. It knows nothing of brokers and gateways.
"""

import json
import os
import socket
import sys
import threading
import time

AGAIN_SECONDS = 0.25
"""A datagram that was not answered by then is sent again."""
EXCHANGES = 3
LOOKING = 1.5
"""Seconds for which datagrams are exchanged at least: a better path is found meanwhile."""
PAUSE = 0.1


def listen() -> None:
    """Serve for ever."""
    listener = socket.create_server(("", 0), backlog=64)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("", 0))
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    print("bound to {}:{}".format(*datagrams.getsockname()), flush=True)
    threading.Thread(target=echo, args=[datagrams], daemon=True).start()
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=[sock], daemon=True).start()


def echo(sock: socket.socket) -> None:
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(data[::-1], peer)


def serve(sock: socket.socket) -> None:
    with sock, sock.makefile("rb") as stream:
        sock.sendall(stream.read()[::-1])


def call() -> None:
    """Try all, and tell what came of them."""
    found: dict[str, str | None] = {}
    threads = [
        threading.Thread(target=attempt, args=[found, *one])
        for one in json.loads(sys.stdin.readline())
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(found), flush=True)


def attempt(
    found: dict[str, str | None], name: str, protocol: str, host: str, port: int, size: int,
    seconds: float,
) -> None:
    try:
        {"TCP": by_tcp, "UDP": by_udp}[protocol]((host, port), size, seconds)
        found[name] = None
    except OSError as error:
        found[name] = f"{type(error).__name__}: {error}"


def by_tcp(address: tuple[str, int], size: int, seconds: float) -> None:
    data = os.urandom(size)
    with socket.create_connection(address, timeout=seconds) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as stream:
            right = stream.read() == data[::-1]
    if not right:
        raise OSError("other bytes came back")


def by_udp(address: tuple[str, int], size: int, seconds: float) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 0))
        begin = time.monotonic()
        exchanges = 0
        while exchanges < EXCHANGES or time.monotonic() < begin + LOOKING:
            answered(sock, address, os.urandom(size), begin + seconds)
            exchanges += 1
            time.sleep(PAUSE)


def answered(sock: socket.socket, address: tuple[str, int], data: bytes, until: float) -> None:
    sock.settimeout(AGAIN_SECONDS)
    while True:
        sock.sendto(data, address)
        try:
            answer = sock.recvfrom(65536)
        except TimeoutError:
            if time.monotonic() >= until:
                raise
            continue
        if answer == (data[::-1], address):
            return


if __name__ == "__main__":
    call() if sys.argv[1:] else listen()
