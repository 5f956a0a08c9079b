"""What workers bring: relays a second and throughput, with one process and with two workers.

Prints ratios and asserts nothing: on two cores that also run both ends, a second process has
little to win. `python -m tests.bench.workers`.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import threading
import time
from pathlib import Path

from tests.loopback.broker_client import HANG_S, Broker, Client
from tests.loopback.broker_ground import LISTENER, greeted

ROUNDS = 3
RELAYS = 300
STREAMS = 4
MEGABYTES = 200


def pair(client: Client, proxy: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    """Return an ordinary connection and the listener's half of it."""
    one = socket.create_connection(proxy, HANG_S)
    return one, client.join(client.next_call())


def relays_a_second(client: Client, proxy: tuple[str, int]) -> float:
    """Connect, pass a byte, and close, one after the other."""
    began = time.perf_counter()
    for _ in range(RELAYS):
        one, other = pair(client, proxy)
        one.sendall(b"!")
        other.recv(1)
        one.close()
        other.close()
    return RELAYS / (time.perf_counter() - began)


def megabytes_a_second(client: Client, proxy: tuple[str, int]) -> float:
    """Stream through several relays at once."""
    pairs = [pair(client, proxy) for _ in range(STREAMS)]
    block = bytes(1 << 20)

    def send(sock: socket.socket) -> None:
        for _ in range(MEGABYTES):
            sock.sendall(block)
        sock.close()

    def receive(sock: socket.socket) -> None:
        while sock.recv_into(room, len(room)):
            pass
        sock.close()

    room = bytearray(1 << 20)
    threads = [threading.Thread(target=send, args=[one]) for one, _ in pairs]
    threads += [threading.Thread(target=receive, args=[other]) for _, other in pairs]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return STREAMS * MEGABYTES / (time.perf_counter() - began)


def measure(workers: int) -> tuple[float, float]:
    """Return relays and megabytes a second with so many workers."""
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder), "--workers", str(workers))
        try:
            with greeted(broker) as client:
                proxy = client.register(LISTENER).proxy.address
                relays_a_second(client, proxy)
                return relays_a_second(client, proxy), megabytes_a_second(client, proxy)
        finally:
            broker.kill()


def main() -> None:
    """Alternate, and print medians and their ratios."""
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for workers, results in found.items():
            results.append(measure(workers))
    medians = {n: [statistics.median(r) for r in zip(*f, strict=True)] for n, f in found.items()}
    for number, what in enumerate(("relays/s", "MB/s")):
        one, two = medians[1][number], medians[2][number]
        print(f"{what:9} 1 process {one:8.0f}   2 workers {two:8.0f}   ratio {two / one:.2f}")


if __name__ == "__main__":
    main()
