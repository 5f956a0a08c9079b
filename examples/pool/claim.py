"""The schedd's side of one claim: connect to a startd, claim it, run one task there.

Three ways it can end other than well: the startd has no cpu free (Busy), it could not be reached
or was lost (OSError, in the words of the system), or it does not speak as it should (BadMessage,
Refused).
"""

import socket
import time
from dataclasses import dataclass, field

import wire

# How long a startd with a running task may be silent; it reports every few seconds.
SILENCE_S = 30.0
# What a task may write in all, to each of stdout and stderr, in characters.
MAX_OUTPUT = 128 * 1024


class Busy(Exception):
    """The startd was reached, but runs as much as it can."""


class TooMuchOutput(Exception):
    """The task wrote more than is kept; running it elsewhere would not change that."""


@dataclass
class Result:
    """What came of a task at one startd; `connect_ms` is the time of the connect call."""

    connect_ms: float
    peer: str = ""
    exit_status: int | None = None
    output: dict[str, str] = field(default_factory=lambda: {"stdout": "", "stderr": ""})


def run_task(address: str, script: str, data: str, connect_timeout: float) -> Result:
    """Runs one task at the startd that advertises `address`; returns when the task has ended."""
    start = time.perf_counter()
    with socket.create_connection(wire.parse_address(address), connect_timeout) as sock:
        result = Result(connect_ms=round((time.perf_counter() - start) * 1000, 3))
        result.peer = _claim(sock)
        sock.settimeout(SILENCE_S)
        wire.send(sock, {"type": "job", "script": script, "input": data})
        while result.exit_status is None:
            _take(result, wire.expect(wire.receive(sock)))
    return result


def _claim(sock: socket.socket) -> str:
    """Claims the startd and returns the address under which it sees us. Raises Busy."""
    answer = wire.ask(sock, {"type": "claim"})
    match answer.get("type"):
        case "claimed":
            return wire.field(answer, "peer", str)
        case "busy":
            raise Busy
        case other:
            raise wire.BadMessage(f"{other!r} in answer to a claim")


def _take(result: Result, message: wire.Message) -> None:
    match message.get("type"):
        case "output":
            _append(result.output, message)
        case "exit":
            result.exit_status = wire.field(message, "status", int)
        case "alive":
            pass
        case other:
            raise wire.BadMessage(f"{other!r} while a task runs")


def _append(output: dict[str, str], message: wire.Message) -> None:
    stream = wire.field(message, "stream", str)
    if stream not in output:
        raise wire.BadMessage(f"output to {stream!r}; there are {sorted(output)}")
    output[stream] += wire.field(message, "text", str)
    if len(output[stream]) > MAX_OUTPUT:
        raise TooMuchOutput(f"the task wrote more than {MAX_OUTPUT} characters to {stream}")
