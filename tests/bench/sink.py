"""An ordinary, unpatched server: accepts, waits for the end, closes. Prints its port.

It leaves no connection in TIME_WAIT behind: a million connects must not use up the ports.
"""

import socket
import struct
import sys


def main() -> None:
    """Serve for ever."""
    with socket.create_server((sys.argv[1], 0), backlog=128) as listener:
        # Accepted sockets inherit this: with it, close() resets, and the connector's end is gone.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            with sock:
                sock.recv(1)


if __name__ == "__main__":
    main()
