"""Connects that time out, are dropped, reset or not answered: over real NAT, by a broker."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from gcbpatch.agent import halves
from tests.netns.lab import Host, Lab, Program
from tests.netns.pairs import ADDRESS, World, exchanged

RESETTING = """
    import socket, struct
    listener = socket.create_server(("", 0), backlog=100)
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    count = 0
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if sock.recv(1) == b"?":
            print(f"accepted {count}", flush=True)
        count += 1
        sock.close()
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """A broker outside, and everybody patched."""
    world = World(lab, tmp_path)
    for one in (world.a, world.a2, world.b, world.other):
        world.use_broker(one, world.public.address)
    return world


def agent_of(world: World, host: Host) -> int:
    """The pid of a host's newest agent, from its log."""
    return int(re.findall(r"agent\[(\d+)\]", world.log_of(host).read_text())[-1])


def sockets_of(pid: int) -> int:
    """How many sockets a process holds."""
    count = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += os.readlink(entry).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


def settled(pid: int, most: int) -> bool:
    """Wait until a process holds no more than ``most`` sockets; False if that never comes."""
    for _ in range(300):
        if sockets_of(pid) <= most:
            return True
        signal.sigtimedwait([], 0.1)
    return False


def listening(world: World, host: Host, text: str) -> tuple[Program, str]:
    """Start a listening script; return it and its address."""
    program = world.script(host, text)
    return program, program.wait_line(ADDRESS).group(1)


@pytest.mark.parametrize("connector", ["a2", "b", "other"], ids=["local", "relayed", "reverse"])
def test_one_connect_is_one_connection_though_the_listener_resets(
    world: World, connector: str
) -> None:
    world.broker(world.public)
    program, address = listening(world, world.a, RESETTING)
    host, port = address.split(":")
    world.script(
        getattr(world, connector),
        f"""
        import socket
        for n in range(51):
            sock = socket.create_connection(("{host}", {port}), timeout=20)
            try:
                sock.sendall(b"?" if n == 50 else b"x")
                sock.recv(1)
            except ConnectionError:
                pass
            sock.close()
        """,
    ).wait()
    assert program.wait_line(r"accepted (\d+)").group(1) == "50"


def test_a_connect_that_was_dropped_touches_no_other_file(world: World, tmp_path: Path) -> None:
    world.broker(world.public)
    _, address = listening(world, world.a, RESETTING)
    host, port = address.split(":")
    # Calls are not answered for a while, so that the connect outlives its time-out.
    os.kill(agent_of(world, world.a), signal.SIGSTOP)
    dropping = world.script(
        world.b,
        f"""
        import gc, os, socket, time
        def attempt():
            sock = socket.socket()
            sock.settimeout(0.2)
            try:
                sock.connect(("{host}", {port}))
            except TimeoutError:
                return sock.fileno()
        number = attempt()
        gc.collect()
        time.sleep(0.1)  # the hub lets go of the time-out, and with it of the socket
        files = [open("{tmp_path}/victim", "w") for _ in range(3)]
        names = [os.readlink(f"/proc/self/fd/{{file.fileno()}}") for file in files]
        assert number in [file.fileno() for file in files], number
        print("dropped", flush=True)
        input()
        time.sleep(0.5)  # the hub has its turn
        after = [os.readlink(f"/proc/self/fd/{{file.fileno()}}") for file in files]
        print("same" if after == names else after, flush=True)
        """,
        stdin=-1,
    )
    dropping.wait_line("dropped")
    os.kill(agent_of(world, world.a), signal.SIGCONT)
    exchanged_after = world.connect(world.a2, address)
    assert "errno" in exchanged_after, "the resetting listener answers again"
    dropping.stdin.write(b"\n")
    dropping.stdin.flush()
    assert dropping.wait_line("same|socket").group(0) == "same"


def test_withdrawn_connects_leave_no_descriptors(world: World) -> None:
    broker = world.broker(world.public)
    _, address = listening(world, world.a, RESETTING)
    host, port = address.split(":")
    storm = world.script(
        world.b,
        f"""
        import random, socket
        def connect(seconds):
            with socket.socket() as sock:
                sock.settimeout(seconds)
                try:
                    sock.connect(("{host}", {port}))
                except TimeoutError:
                    return
        connect(20)
        print("first", flush=True)
        input()
        dice = random.Random(7)
        for _ in range(200):
            connect(dice.uniform(0.0005, 0.012))
        print("done", flush=True)
        input()
        """,
        stdin=-1,
    )
    storm.wait_line("first")
    pids = [agent_of(world, world.b), agent_of(world, world.a), broker.pid]
    before = {pid: sockets_of(pid) for pid in pids}
    storm.stdin.write(b"\n")
    storm.stdin.flush()
    storm.wait_line("done")
    for pid, count in before.items():
        assert settled(pid, count + halves.MOST), (before, [sockets_of(one) for one in pids])


def test_the_default_timeout_does_not_stop_the_hub(world: World) -> None:
    world.other.open(1)  # nothing listens anywhere below: packets to `mute` go nowhere
    mute = world.lab.host("mute", firewall="drop")
    world.use_broker(world.b, f"{world.public.address},{mute.address}")
    world.broker(world.public)
    program = world.script(
        world.b,
        f"""
        import socket, threading, time
        socket.setdefaulttimeout(30)
        beats = []
        def beat():
            while True:
                beats.append(time.monotonic())
                time.sleep(0.02)
        threading.Thread(target=beat, daemon=True).start()
        sock = socket.socket()
        sock.settimeout(5)
        try:
            sock.connect(("{mute.address}", 7000))
        except TimeoutError as error:
            print(repr(error), len(beats) > 50, flush=True)
        """,
    )
    assert program.wait_line("Timeout").string.startswith("TimeoutError('timed out') True")


def test_more_connections_than_the_backlog_all_arrive(world: World) -> None:
    world.broker(world.public)
    program, address = listening(
        world,
        world.a,
        """
        import socket, sys
        listener = socket.create_server(("", 0), backlog=2)
        print("listening on {}:{}".format(*listener.getsockname()), flush=True)
        sys.stdin.read(1)
        for n in range(60):
            listener.accept()[0].sendall(b"x")
        print("all", flush=True)
        """,
    )
    host, port = address.split(":")
    connecting = world.script(
        world.a2,
        f"""
        import socket
        socks = [socket.create_connection(("{host}", {port}), timeout=20) for _ in range(60)]
        print("connected", flush=True)
        print(sum(len(sock.recv(1)) for sock in socks), flush=True)
        """,
    )
    connecting.wait_line("connected")
    assert connecting.wait_line(r"^\d+$").group(0) == "60"
    program.wait_line("all")


def test_a_bound_socket_that_connects_is_no_listener(world: World) -> None:
    broker = world.broker(world.public, log="INFO")
    listening_other = world.listen(world.public)
    host, port = listening_other.address.split(":")
    program = world.script(
        world.a,
        f"""
        import socket
        sock = socket.socket()
        sock.bind(("", 0))
        print(sock.getsockname()[0], flush=True)
        sock.connect(("{host}", {port}))
        print(sock.getpeername()[1], flush=True)
        """,
    )
    assert program.wait_line("^[0-9.]+$").group(0) == world.public.address
    assert program.wait_line("^[0-9]+$").group(0) == port
    broker.wait_line("unregistered", stream="stderr")


def test_an_ordinary_exchange_still_works_after_all_that(world: World) -> None:
    world.broker(world.public)
    exchanged(world, world.b, world.listen(world.a))
