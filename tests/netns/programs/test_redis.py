"""redis-py from behind two NATs to a real redis outside."""

from __future__ import annotations

import os
from pathlib import Path

from tests.netns.lab import Program
from tests.netns.programs.ground import Ground, need, need_program


def redis_server(ground: Ground, tmp: Path) -> Program:
    """A real redis on the public host `other`, with nothing on disk."""
    binary = need_program("redis-server", "redis-check-rdb")
    # Debian has it in redis-tools under another name, without the service: it goes by its name.
    named = tmp / "redis-server"
    os.symlink(binary, named)
    argv = [str(named), "--bind", ground.other.address, "--port", "6379", "--save", ""]
    server = ground.other.popen([*argv, "--protected-mode", "no", "--dir", str(tmp)])
    server.wait_line("Ready to accept connections")
    return server


def test_redis_clients_behind_two_nats_work_by_a_real_redis(ground: Ground, tmp_path: Path) -> None:
    need("redis")
    redis_server(ground, tmp_path)
    address = [ground.other.address, "6379"]
    hearing = ground.python(ground.a, "redis_talk.py", "hear", *address)
    hearing.wait_line("^listening")
    say = ground.told(ground.b, "redis_talk.py", "say", *address)
    assert say["queued"] == "True"
    assert say["results"] == "['cba', 'gfed']"
    assert say["heard"] == "by 1"
    assert hearing.result(check=True, hang_limit=60).stdout.split("\n")[-2] == "news done"
