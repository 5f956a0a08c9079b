"""multiprocessing.connection: Listener and Client, with objects, bytes, poll and wait.

connection_pair.py serve | connection_pair.py use HOST PORT. It knows nothing of NATs.
"""

import sys
from multiprocessing.connection import Client, Listener, wait

KEY = b"a key of the test"


def serve() -> None:
    """Serve one after the other for ever."""
    with Listener(("", 0), authkey=KEY) as listener:
        print("listening on {}:{}".format(*listener.address), flush=True)
        while True:
            with listener.accept() as connection:
                answer(connection)
                print("peer", listener.last_accepted[0], flush=True)


def answer(connection) -> None:  # type: ignore[no-untyped-def]
    """Send back what comes, changed, until nothing comes any more."""
    try:
        while True:
            thing = connection.recv()
            connection.send(thing[::-1])
    except EOFError:
        return


def use(host: str, port: str) -> None:
    """Send a list and something large; look before reading, by poll() and wait()."""
    with Client((host, int(port)), authkey=KEY) as connection:
        print("early", connection.poll(0), flush=True)
        connection.send([1, "two", None])
        print("polled", connection.poll(30), connection.recv(), flush=True)
        big = bytes(range(256)) * 20_000
        connection.send(big)
        print("waited", wait([connection], 30) == [connection], flush=True)
        print("big", connection.recv() == big[::-1], flush=True)


if __name__ == "__main__":
    {"serve": serve, "use": use}[sys.argv[1]](*sys.argv[2:])
