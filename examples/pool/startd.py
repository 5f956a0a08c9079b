"""The pool's worker: advertises its address to the master and runs the tasks that schedds bring.

It runs as many tasks at a time as it has cpus, one for each connection, and refuses to claim
more. A task lives as long as the connection that brought it.

    python startd.py --master HOST:PORT [--name NAME] [--host HOST] [--port PORT] [--cpus N]

Messages:  claim {}               ->  claimed {name, peer}, busy
           job {script, input}    ->  output {stream, text} ..., alive ..., exit {status}
"""

import argparse
import contextlib
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import service
import starter
import wire

MASTER_TIMEOUT_S = 10.0
RETRY_S = 1.0


class Startd:
    """Claims, and the tasks that run under them."""

    def __init__(self, name: str, cpus: int) -> None:
        self._name = name
        self._free = threading.BoundedSemaphore(cpus)
        self._tasks: set[starter.Task] = set()

    def attend(self, sock: socket.socket, peer: service.Address) -> None:
        """Serves one connection: a claim, one job, and the end of either."""
        if not self._asked(sock, "claim"):
            return
        with self._claim() as granted:
            if not granted:
                wire.send(sock, {"type": "busy"})
                return
            answer = {"type": "claimed", "name": self._name, "peer": wire.format_address(*peer)}
            wire.send(sock, answer)
            if job := self._asked(sock, "job"):
                self._activate(sock, wire.field(job, "script", str), wire.field(job, "input", str))

    def kill_tasks(self) -> None:
        for task in list(self._tasks):
            task.kill()

    def _asked(self, sock: socket.socket, kind: str) -> wire.Message | None:
        message = wire.receive(sock)
        if message is not None and message.get("type") != kind:
            raise wire.BadMessage(f"{message.get('type')!r} where {kind!r} should come")
        return message

    @contextlib.contextmanager
    def _claim(self) -> Iterator[bool]:
        granted = self._free.acquire(blocking=False)
        try:
            yield granted
        finally:
            if granted:
                self._free.release()

    def _activate(self, sock: socket.socket, script: str, data: str) -> None:
        """Runs the task until it ends, or until the schedd goes away."""
        task = starter.Task(script, data, lambda message: wire.send(sock, message))
        self._tasks.add(task)
        runner = threading.Thread(target=task.run, daemon=True)
        runner.start()
        sock.settimeout(None)
        try:
            # A schedd has no more to say: it ends the connection when it wants no more.
            wire.receive(sock)
        finally:
            task.kill()
            runner.join()
            self._tasks.discard(task)


class Advertiser:
    """Tells the master, again and again, under which address the startd is reached."""

    def __init__(self, listener: socket.socket, master: service.Address, ad: wire.Message) -> None:
        self._listener = listener
        self._master = master
        self._ad = ad

    def advertise(self) -> service.Address:
        """Sends one update and returns the address in it. Raises OSError, wire.Refused."""
        with socket.create_connection(self._master, MASTER_TIMEOUT_S) as sock:
            address = reachable_address(self._listener, sock)
            wire.ask(sock, self._ad | {"type": "update", "address": wire.format_address(*address)})
        return address

    def advertise_patiently(self) -> service.Address:
        """Tries until the master has taken an update."""
        while True:
            try:
                return self.advertise()
            except (OSError, wire.Refused, wire.BadMessage) as error:
                where = wire.format_address(*self._master)
                service.log.warning("the master at %s: %s; trying again", where, error)
                time.sleep(RETRY_S)

    def renew_for_ever(self, period: float) -> NoReturn:
        while True:
            time.sleep(period)
            self.advertise_patiently()


def reachable_address(listener: socket.socket, sock: socket.socket) -> service.Address:
    """The listener's address, or, if that is every interface, its port at the address that `sock`,
    a connection to the master, goes out from."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = sock.getsockname()[0]
    return host, port


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="a worker of the pool")
    parser.add_argument("--master", required=True, type=service.address_argument)
    parser.add_argument("--name", default=f"slot@{socket.gethostname()}-{os.getpid()}")
    parser.add_argument("--host", default="", help="interface to listen on (default: all)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on (default: any)")
    parser.add_argument(
        "--cpus", type=service.count_argument, default=1, help="tasks at a time (default: 1)"
    )
    parser.add_argument(
        "--lifetime", type=service.seconds_argument, default=15.0, help="of an update, in seconds"
    )
    return parser.parse_args()


def main() -> NoReturn:
    arguments = parse_arguments()
    service.set_up(arguments.name)
    listener = service.listen(arguments.host, arguments.port)
    ad = {"name": arguments.name, "cpus": arguments.cpus, "lifetime": arguments.lifetime}
    advertiser = Advertiser(listener, arguments.master, ad)
    startd = Startd(arguments.name, arguments.cpus)
    service.ready(f"startd {arguments.name}", advertiser.advertise_patiently())
    renewal = threading.Thread(
        target=advertiser.renew_for_ever, args=(arguments.lifetime / 3,), daemon=True
    )
    renewal.start()
    try:
        service.serve(listener, startd.attend)
    finally:
        startd.kill_tasks()


if __name__ == "__main__":
    main()
