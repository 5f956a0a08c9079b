"""A plain program of the tests: keeps connections open and speaks on them when told.

Commands on standard input, one answer line each: `connect HOST:PORT` opens a connection
and answers its number or the error; `say N WORD` sends WORD on connection N and answers what
comes back.
"""

import socket
import sys


def main() -> None:
    """Read commands to the end."""
    connections: list[socket.socket] = []
    for line in sys.stdin:
        command, *words = line.split()
        try:
            if command == "connect":
                host, _, port = words[0].rpartition(":")
                connections.append(socket.create_connection((host, int(port)), timeout=20))
                print(f"connected {len(connections) - 1}", flush=True)
            else:
                print(f"heard {say(connections[int(words[0])], words[1])}", flush=True)
        except OSError as error:
            print(f"error {error}", flush=True)


def say(sock: socket.socket, word: str) -> str:
    """Send a line and read one back."""
    sock.sendall(f"{word}\n".encode())
    with sock.makefile("rb") as stream:
        line = stream.readline()
    if not line:
        raise ConnectionResetError("the connection was closed")
    return line.decode().strip()


if __name__ == "__main__":
    main()
