"""`gcbpatch lab`: build a standard lab, show it, and wait, or run one command in it."""

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

from tests.netns.lab.errors import LabError
from tests.netns.lab.laboratory import Lab
from tests.netns.lab.nodes import Gateway, Node
from tests.netns.lab.program import environment


def two_nats(lab: Lab) -> None:
    """Two public hosts; gateway A with one host, gateway B with two."""
    lab.host("pub")
    lab.host("pub2")
    lab.gateway("ga", inside="10.1.0.0/24").host("a")
    gateway_b = lab.gateway("gb", inside="10.2.0.0/24")
    gateway_b.host("b1")
    gateway_b.host("b2")


def nested_nats(lab: Lab) -> None:
    """A public host, and a home gateway behind a provider's; a second provider, one hop away."""
    lab.host("pub")
    provider = lab.gateway("isp", inside="100.64.0.0/24", mapping="random")
    lab.gateway("home", uplink=provider).host("a")
    lab.gateway("far", uplink=lab.segment(), unsolicited="rst").host("b")


TOPOLOGIES: dict[str, Callable[[Lab], None]] = {"two-nats": two_nats, "nested-nats": nested_nats}


def _describe(node: Node) -> str:
    words = [f"{node.name}: {node.interface} {node.address}"]
    if isinstance(node, Gateway):
        words.append(f"{node.inside_interface} {node.inside_address}")
    if node.observed_address != node.address:
        words.append(f"seen outside as {node.observed_address}")
    return f"{', '.join(words)}\n    {node.enter_command()}"


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the lab as Ctrl-C does, even where the shell has made us ignore that."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _run_inside(lab: Lab, name: str, command: list[str]) -> int:
    if name not in lab.nodes:
        raise LabError(f"no host named {name!r}; there are {', '.join(lab.nodes)}")
    argv = [*lab.nodes[name].command(), *command]
    try:
        # On our terminal, in our session: it may be a shell.
        return subprocess.run(argv, env=environment(), check=False).returncode
    except KeyboardInterrupt:
        return 130


def _show(lab: Lab) -> int:
    print("\n".join(_describe(node) for node in lab.nodes.values()))
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Not signal.pause(): a signal that comes just before it would be slept through.
    before = signal.set_wakeup_fd(writer.fileno())
    with reader, writer, contextlib.suppress(KeyboardInterrupt):
        try:
            print("lab ready; Ctrl-C ends it", flush=True)
            reader.recv(1)
        finally:
            signal.set_wakeup_fd(before)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gcbpatch lab", description=__doc__)
    parser.add_argument("--topology", choices=sorted(TOPOLOGIES), default="two-nats")
    parser.add_argument("--in", dest="inside", metavar="HOST", help="run the command in this host")
    parser.add_argument("command", nargs="*", metavar="CMD", help="after `--`")
    arguments = parser.parse_args(argv)
    if bool(arguments.inside) != bool(arguments.command):
        parser.error("--in HOST and a command after `--` go together")
    return arguments


def main(argv: list[str]) -> int:
    """Build a lab, show it or run a command in it; the exit status."""
    arguments = _arguments(argv)
    try:
        with _termination_as_interrupt(), Lab() as lab:
            TOPOLOGIES[arguments.topology](lab)
            if arguments.inside:
                return _run_inside(lab, arguments.inside, arguments.command)
            return _show(lab)
    except LabError as error:
        print(f"gcbpatch lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
