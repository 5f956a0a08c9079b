"""A disk that is full when the layer wants to log: a real one, in a mount namespace."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.netns.lab import Lab
from tests.netns.pairs import World

PROGRAM = """
import gcbpatch; gcbpatch.patch_all()
import logging, os, socket
with socket.create_server(("", 0)) as listener:
    public = listener.getsockname()
    near = socket.create_connection(public)
    far, peer = listener.accept()
    near.sendall(b"as ever")
    print(public[0], far.recv(100).decode(), flush=True)
os.unlink("disk/filler")
logging.getLogger("gcbpatch").warning("room again")
print(open("disk/log").read().splitlines()[0])
"""


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    return World(lab, tmp_path)


def test_a_full_disk_costs_nothing_but_lines(world: World, tmp_path: Path) -> None:
    world.broker(world.public)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "disk").mkdir()
    shell = (
        "mount -t tmpfs -o size=64k none disk; touch disk/log; cat /dev/zero > disk/filler;"
        f" exec {sys.executable} program.py"
    )
    done = world.a.run(
        ["unshare", "--mount", "sh", "-c", shell],
        privileged=True,
        cwd=tmp_path,
        env={
            "GCB_BROKER": world.public.address,
            "GCB_LOG": "DEBUG",
            "GCB_LOG_FILE": "disk/log",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
    )
    first, second = done.stdout.splitlines()
    assert first == f"{world.public.address} as ever"
    assert second.endswith(" lines could not be written)"), second
    assert [line for line in done.stderr.splitlines() if "No space left" not in line] == []
