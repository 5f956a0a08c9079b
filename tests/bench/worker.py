"""The program that is measured: `worker.py plain` under gevent, `worker.py layer` under gcbpatch.

Each line of standard input is a command; the answer is one line. Everything below the first lines
is what any program would do with sockets: it must never know which of the two it is.
"""

import sys

if sys.argv[1] == "layer":
    import gcbpatch

    gcbpatch.patch_all()
else:
    from gevent import monkey

    monkey.patch_all()

import socket
import threading
import time

Pair = tuple[socket.socket, socket.socket]
SMALL, LARGE = b"x" * 64, b"x" * 65536


def listen(host: str) -> socket.socket:
    """Listen on all addresses, or on loopback where this machine has no other."""
    return socket.create_server(("" if host != "127.0.0.1" else host, 0), backlog=128)


def connected(host: str) -> Pair:
    """Return both ends of a connection to a listener of ours, by the name it has."""
    with listen(host) as listener:
        name = listener.getsockname()
        near = socket.create_connection((host if name[0] == "0.0.0.0" else name[0], name[1]))
        far, _ = listener.accept()
    return near, far


def send(pair: Pair, times: int, data: bytes) -> None:
    """Send and receive what is there at once: nobody ever waits."""
    near, far = pair
    for _ in range(times):
        near.sendall(data)
        got = 0
        while got < len(data):
            got += len(far.recv(65536))


def echo(pair: Pair, times: int) -> None:
    """Send to another thread, and wait until it has sent it back."""
    near, far = pair

    def answer() -> None:
        for _ in range(times):
            far.sendall(far.recv(100))

    thread = threading.Thread(target=answer)
    thread.start()
    for _ in range(times):
        near.sendall(SMALL)
        near.recv(100)
    thread.join()


def connect(address: tuple[str, int], times: int) -> None:
    """Connect and close."""
    for _ in range(times):
        sock = socket.socket()
        sock.connect(address)
        sock.close()


def accept_for_ever(listener: socket.socket) -> None:
    """Say a byte to whoever comes."""
    while True:
        sock, _ = listener.accept()
        sock.send(b"x")
        sock.close()


def serve(host: str) -> int:
    """Accept in the background; return the port."""
    listener = listen(host)
    port = int(listener.getsockname()[1])
    threading.Thread(target=accept_for_ever, args=(listener,), daemon=True).start()
    return port


def door_name() -> str:
    """The door of this program's tree, whether or not there is an agent behind it."""
    from gcbpatch.sockets.layer import LAYER

    assert LAYER.link is not None, "the layer is not configured"
    return LAYER.link.name


def agent_runs() -> bool:
    """Whether anybody sits behind the door."""
    from gcbpatch.agent import door

    try:
        door.connect(door_name()).close()
    except ConnectionRefusedError:
        return False
    return True


def local() -> bool:
    """Talk over loopback."""
    send(connected("127.0.0.1"), 10, SMALL)
    return True


ASKED = {"agent": agent_runs, "door": door_name, "local": local}


def main() -> None:
    """Do what standard input says; times are nanoseconds for one of many."""
    own = sys.argv[2]
    pair: Pair | None = None
    for line in sys.stdin:
        command, *words = line.split()
        if command == "accept":
            print(serve(own), flush=True)
            threading.Event().wait()  # from now on others ask
        if command in ASKED:
            print(ASKED[command](), flush=True)
            continue
        if command != "connect" and pair is None:
            pair = connected(own)
        times = int(words[0])
        began = time.perf_counter_ns()
        if command == "connect":
            connect((words[1], int(words[2])), times)
        elif command == "echo":
            echo(pair, times)
        else:
            send(pair, times, {"small": SMALL, "large": LARGE}[command])
        print((time.perf_counter_ns() - began) / times, flush=True)


if __name__ == "__main__":
    main()
