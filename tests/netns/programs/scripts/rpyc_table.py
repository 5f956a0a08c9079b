"""RPyC: a service whose objects are used from afar, and which calls functions of its callers.

rpyc_table.py serve [threaded|forking] | rpyc_table.py use HOST PORT. It knows nothing of NATs.
"""

import sys
from collections.abc import Callable

import rpyc
from rpyc.utils.server import ForkingServer, ThreadedServer


class Table(rpyc.Service):
    """Keeps a list for each connection."""

    def on_connect(self, connection: rpyc.Connection) -> None:
        """Begin with an empty list."""
        self.kept: list[int] = []

    def exposed_rows(self) -> list[int]:
        """The list itself, not a copy."""
        return self.kept

    def exposed_each(self, function: Callable[[int], object]) -> list[object]:
        """What a function of the caller's makes of each row."""
        return [function(row) for row in self.kept]


def serve(kind: str = "threaded") -> None:
    """Serve for ever, each connection by a thread or a process of its own."""
    server_class = {"threaded": ThreadedServer, "forking": ForkingServer}[kind]
    server = server_class(Table, "0.0.0.0", protocol_config={"allow_public_attrs": True})
    print(f"listening on {server.host}:{server.port}", flush=True)
    server.start()


def use(host: str, port: str) -> None:
    """Change the list from here, and have it read with a function that runs here."""
    with rpyc.connect(host, int(port)) as connection:
        rows = connection.root.rows()
        rows.extend(range(5))
        print("rows", list(rows), flush=True)
        print("squares", list(connection.root.each(lambda row: row * row)), flush=True)
        print("blob", len(connection.root.each(lambda row: b"x" * 300_000)[4]), flush=True)


if __name__ == "__main__":
    {"serve": serve, "use": use}[sys.argv[1]](*sys.argv[2:])
