"""Twisted: a line server and a client, by its endpoints.

twisted_lines.py serve | twisted_lines.py use HOST PORT. It knows nothing of NATs.
"""

import sys

from twisted.internet import defer, endpoints, protocol, reactor, task
from twisted.protocols.basic import LineReceiver


class Upper(LineReceiver):
    """Answers every line in capitals."""

    def lineReceived(self, line: bytes) -> None:
        """Answer, and tell who asked at the first line."""
        if line == b"hello":
            host = self.transport.getHost()
            print(f"own {host.host}:{host.port} peer {self.transport.getPeer().host}", flush=True)
        self.sendLine(line.upper())


class Asking(LineReceiver):
    """Sends lines and keeps the answers until there are enough."""

    def __init__(self, wanted: int) -> None:
        self.answers: list[bytes] = []
        self.wanted = wanted
        self.done: defer.Deferred[list[bytes]] = defer.Deferred()

    def lineReceived(self, line: bytes) -> None:
        """Take an answer."""
        self.answers.append(line)
        if len(self.answers) == self.wanted:
            self.done.callback(self.answers)


async def serve(reactor) -> None:  # type: ignore[no-untyped-def]
    """Serve for ever."""
    endpoint = endpoints.TCP4ServerEndpoint(reactor, 0)
    port = await endpoint.listen(protocol.Factory.forProtocol(Upper))
    print(f"listening on {port.getHost().host}:{port.getHost().port}", flush=True)
    await defer.Deferred()


async def use(reactor, host: str, port: str) -> None:  # type: ignore[no-untyped-def]
    """Ask many at once over three connections."""
    for number in range(3):
        endpoint = endpoints.TCP4ClientEndpoint(reactor, host, int(port), timeout=30)
        asking = await endpoints.connectProtocol(endpoint, Asking(1001))
        asking.sendLine(b"hello")
        for line in range(1000):
            asking.sendLine(b"line %d" % line)
        answers = await asking.done
        print("answers", number, len(answers), answers[0], answers[-1], flush=True)
        asking.transport.loseConnection()


if __name__ == "__main__":
    function = {"serve": serve, "use": use}[sys.argv[1]]
    task.react(lambda *all: defer.ensureDeferred(function(*all)), sys.argv[2:], reactor)
