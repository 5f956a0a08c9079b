"""The programs of the measurement of datagrams: `talker.py plain|layer listen|call ...`.

A listener prints its address and acknowledges every BATCH-th datagram, and any that asks for it. A
caller reads commands: `warm SECONDS`, `trips N SIZE`, `stream N SIZE`, each answered with a line of
nanoseconds. Everything below the first lines is what any program would do with sockets.
"""

import sys

if sys.argv[1] == "layer":
    import gcbpatch

    gcbpatch.patch_all()
else:
    from gevent import monkey

    monkey.patch_all()

import socket
import time

BATCH, WINDOW = 32, 128
DATA, ASK = b"d", b"a"
LOST_SECONDS = 2.0
BUFFER = 4 << 20


def bound(port: int) -> socket.socket:
    """A socket with room for a whole window."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    sock.bind(("", port))
    return sock


def listen(port: int) -> None:
    """Serve for ever."""
    sock = bound(port)
    print("listening on {}:{}".format(*sock.getsockname()), flush=True)
    count = 0
    while True:
        data, peer = sock.recvfrom(2048)
        count += 1
        if data[:1] == ASK:
            sock.sendto(data[:8], peer)
            count = 0
        elif count % BATCH == 0:
            sock.sendto(DATA, peer)


def trips(sock: socket.socket, peer: tuple[str, int], times: int, size: int) -> int:
    """There and back, one after the other."""
    data = ASK + bytes(size - 1)
    began = time.perf_counter_ns()
    for _ in range(times):
        sock.sendto(data, peer)
        sock.recvfrom(2048)
    return time.perf_counter_ns() - began


def stream(sock: socket.socket, peer: tuple[str, int], times: int, size: int) -> int:
    """One after the other, WINDOW on the way at most; none may be lost."""
    trips(sock, peer, 1, size)
    data = DATA + bytes(size - 1)
    began = time.perf_counter_ns()
    for number in range(1, times + 1):
        sock.sendto(data, peer)
        if number >= WINDOW and number % BATCH == 0:
            sock.recvfrom(2048)
    for _ in range(WINDOW // BATCH - 1):
        sock.recvfrom(2048)
    return time.perf_counter_ns() - began


def call(peer: tuple[str, int]) -> None:
    """Do what is said."""
    sock = bound(0)
    sock.settimeout(LOST_SECONDS)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == "warm":
            until = time.monotonic() + float(numbers[0])
            while time.monotonic() < until:
                trips(sock, peer, 1, 64)
                time.sleep(0.01)
            print("warm", flush=True)
        else:
            how = {"trips": trips, "stream": stream}[word]
            print("took", how(sock, peer, *map(int, numbers)), flush=True)


if __name__ == "__main__":
    if sys.argv[2] == "listen":
        listen(int(sys.argv[3]))
    else:
        call((sys.argv[3], int(sys.argv[4])))
