"""Which clients live, on real hosts: stopped ones, slow ones, and ones that are gone."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gcbpatch.addresses import GATEWAY_PORT, Address, parse_host_port
from tests.netns.gateway_extra import require
from tests.netns.gateway_ground import BACK_ENDS, INSIDE, Client, start
from tests.netns.lab import Gateway, Host, Lab, Program
from tests.netns.talk import dial

SERVER = """
import os, socket
listener = socket.create_server(("", 0))
print("serves at %s:%d" % listener.getsockname(), "by", os.getpid(), flush=True)
while True:
    with listener.accept()[0] as link:
        link.sendall(b"hello")
"""
LIFETIME = 4


@pytest.fixture(autouse=True)
def gateway_extra() -> None:
    """All of this needs python-iptables."""
    require()


def served(host: Host, gateway: Gateway, place: Path) -> tuple[Program, Address]:
    """A patched program that listens, and its public address."""
    env = {"DPF_SERVER": gateway.inside_address}
    script = place / "server.py"
    script.write_text(SERVER)
    program = host.popen([sys.executable, "-m", "gcbpatch", str(script)], env=env)
    return program, parse_host_port(program.wait_line("^serves at (.*) by ")[1], 0)


def renewing(host: Host, gateway: Gateway, *flags: str) -> tuple[Program, Address]:
    """A client of its own, and its public address."""
    argv = [sys.executable, "-m", "tests.loopback.gateway_client"]
    argv += [f"{gateway.inside_address}:{GATEWAY_PORT}", host.address, *flags]
    program = host.popen(argv)
    return program, parse_host_port(program.wait_line("^mapped (.*)$")[1], 0)


def renew(client: Client, until: threading.Event) -> None:
    """One renewal after the other: a round trip each."""
    while not until.is_set():
        assert client.talk.renew(client.id).lost == []


def removed(daemon: Program, public: Address) -> None:
    pattern = re.escape(f"[{public[0]}:{public[1]} > ") + r".* removed"
    daemon.wait_line(pattern, stream="stderr")


def test_the_stopped_and_the_slow_live_and_the_vanished_do_not(lab: Lab, tmp_path: Path) -> None:
    gateway, pub = lab.gateway("ga", inside=INSIDE), lab.host("pub")
    daemon = start(gateway, tmp_path / "mirror", "--lifetime", str(LIFETIME))
    stopped, public = served(gateway.host("stopped"), gateway, tmp_path)
    # Two round trips are longer than dpfd waits for a proof: this one lives by its lease.
    slow = Client(gateway.host("slow", delay_ms=520), gateway)
    far = slow.forward(lifetime=LIFETIME)
    awake = threading.Event()
    renewals = threading.Thread(target=renew, args=(slow, awake), daemon=True)
    renewals.start()
    gone = gateway.host("gone")
    _, lost = renewing(gone, gateway, "--renew", "0.5")
    stopped.signal(signal.SIGSTOP)
    gone.space.ip("link set dev eth0 down")
    removed(daemon, lost)
    marker = Client(gateway.host("marker"), gateway)  # one more lifetime without a sign of life
    short = marker.forward(lifetime=LIFETIME)
    marker.management.close()
    removed(daemon, short)
    assert set(BACK_ENDS[0].rules(gateway)) == {public, far}
    stopped.signal(signal.SIGCONT)
    with dial(pub, *public) as link:
        assert link.recv(10) == b"hello"
    with dial(pub, *far), slow.accept()[0]:
        pass
    awake.set()
    renewals.join()


def test_a_client_that_is_stopped_as_a_whole_comes_back_to_its_address(
    lab: Lab, tmp_path: Path
) -> None:
    gateway, pub = lab.gateway("ga", inside=INSIDE), lab.host("pub")
    daemon = start(gateway, tmp_path / "mirror", "--lifetime", "2")
    host = gateway.host("a")
    program, public = served(host, gateway, tmp_path)
    everybody = processes_of(host)
    assert len(everybody) >= 2  # the program and its agent
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    removed(daemon, public)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    again = re.escape(f"[{public[0]}:{public[1]} > ") + r".* set"
    daemon.wait_line(again, stream="stderr")
    with dial(pub, *public) as link:
        assert link.recv(10) == b"hello"
    program.kill()
    removed(daemon, public)


HEIRS = """
import array, os, socket, subprocess, sys, time
def serve(listener):
    while True:
        with listener.accept()[0] as link:
            link.sendall(b"hello")
if len(sys.argv) > 1:
    serve(socket.socket(fileno=int(sys.argv[1])))
forked, execed, passed = (socket.create_server(("", 0)) for _ in range(3))
for listener in (forked, execed, passed):
    print("at %s:%d" % listener.getsockname(), flush=True)
ours, theirs = socket.socketpair()
if os.fork() == 0:
    _, descriptors, _, _ = socket.recv_fds(theirs, 10, 1)
    serve(socket.socket(fileno=descriptors[0]))
if os.fork() == 0:
    copy = forked.dup()
    forked.close()
    serve(copy)
execed.set_inheritable(True)
subprocess.Popen([sys.executable, *sys.argv, str(execed.fileno())], close_fds=False)
socket.send_fds(ours, [b"this"], [passed.fileno()])
sys.stdin.read(1)
os._exit(0)
"""


def test_a_listener_lives_with_whoever_has_it_last(lab: Lab, tmp_path: Path) -> None:
    gateway, pub = lab.gateway("ga", inside=INSIDE), lab.host("pub")
    daemon = start(gateway, tmp_path / "mirror", "--lifetime", "2")
    host, script = gateway.host("a"), tmp_path / "heirs.py"
    script.write_text(HEIRS)
    env = {"DPF_SERVER": gateway.inside_address}
    argv = [sys.executable, "-m", "gcbpatch", str(script)]
    program = host.popen(argv, env=env, stdin=subprocess.PIPE)
    publics = [parse_host_port(program.wait_line("^at (.*)$")[1], 0) for _ in range(3)]
    for public in publics:
        with dial(pub, *public) as link:
            assert link.recv(10) == b"hello"
    program.stdin.write(b"x")
    program.stdin.flush()
    # A lifetime after the first process has ended, who inherited the sockets is still reached.
    marker = Client(gateway.host("marker"), gateway)
    short = marker.forward(lifetime=2)
    marker.management.close()
    removed(daemon, short)
    for public in publics:
        with dial(pub, *public) as link:
            assert link.recv(10) == b"hello"
    for pid in processes_of(host):
        os.kill(pid, signal.SIGKILL)
    for _ in publics:
        daemon.wait_line(r"\] removed$", stream="stderr")
    assert BACK_ENDS[0].rules(gateway) == {}


def processes_of(host: Host) -> list[int]:
    """All processes whose network is this host's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                same = os.stat(entry / "ns/net").st_ino == host.space.inode
            except OSError:  # it has ended
                continue
            found += [int(entry.name)] if same else []
    return found
