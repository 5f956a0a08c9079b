"""A plain program of the tests: connects, exchanges random bytes, prints one JSON line.

connector.py HOST:PORT [--timeout S] [--times N [--on-line]]
"""

import argparse
import json
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from exchange import exchange


def main() -> None:
    """Connect --times times; with --on-line, each time a line comes on standard input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("--timeout", type=float, default=30.0)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--on-line", action="store_true")
    arguments = parser.parse_args()
    host, _, port = arguments.address.rpartition(":")
    for _ in range(arguments.times):
        if arguments.on_line and not sys.stdin.readline():
            return
        print(json.dumps(connect((host.strip("[]"), int(port)), arguments.timeout)), flush=True)


def connect(address: tuple[str, int], timeout: float) -> dict[str, object]:
    """One connection; what went wrong stands in the report."""
    began = time.monotonic()
    try:
        with socket.create_connection(address, timeout=timeout) as sock:
            took = time.monotonic() - began
            sock.settimeout(None)
            names = {"name": sock.getsockname(), "getpeername": sock.getpeername()}
            return {**names, **exchange(sock, begins=True), "seconds": took}
    except OSError as error:
        return {"error": str(error), "errno": error.errno}


if __name__ == "__main__":
    main()
