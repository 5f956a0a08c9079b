"""A plain program of the tests: accepts connections and exchanges random bytes on each.

listener.py [--port N] [--host H] [--ipv6 only|too]: prints `listening on HOST:PORT`, then one
JSON line per connection. It knows nothing of brokers and gateways.
"""

import argparse
import json
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from exchange import exchange


def main() -> None:
    """Serve one connection after the other for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ipv6", choices=["only", "too"])
    arguments = parser.parse_args()
    listener = socket.socket(socket.AF_INET6 if arguments.ipv6 else socket.AF_INET)
    if arguments.ipv6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, arguments.ipv6 == "only")
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((arguments.host, arguments.port))
    try:
        listener.listen(16)
    except OSError as error:
        print(f"listen failed: {error.errno} {error.strerror}", flush=True)
        sys.exit(3)
    host, port = listener.getsockname()[:2]
    print(f"listening on [{host}]:{port}" if ":" in host else f"listening on {host}:{port}",
          flush=True)
    for line in iter(lambda: serve(listener), ""):
        print(line, flush=True)


def serve(listener: socket.socket) -> str:
    """Accept one connection and tell what went over it."""
    sock, peer = listener.accept()
    with sock:
        report = {"peer": peer, "getpeername": sock.getpeername(), "name": sock.getsockname()}
        try:
            report |= exchange(sock, begins=False)
        except OSError as error:
            report["error"] = str(error)
    return json.dumps(report)


if __name__ == "__main__":
    main()
