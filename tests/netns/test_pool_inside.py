"""The pool's master inside a private network: startds beside it, a schedd in another network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab
from tests.netns.pairs import World

POOL = Path(__file__).resolve().parents[2] / "examples" / "pool"


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NAT gateways that drop what is unsolicited."""
    return World(lab, tmp_path)


def start(world: World, host: Host, name: str, *arguments: str) -> str:
    """Start a daemon of the pool, patched if the host has settings; return its address."""
    settings = world.settings.get(host.name, {})
    patch = ["-m", "gcbpatch"] if settings else []
    argv = [sys.executable, *patch, str(POOL / f"{name}.py"), *arguments]
    program = host.popen(argv, env=settings or None)
    return program.wait_line(r"ready on (\S+)").group(1)


def run_job(world: World, host: Host, master: str) -> dict[str, object]:
    """Submit a job of two tasks from a host, by a schedd there."""
    schedd = start(world, host, "schedd", "--master", master, "--host", "127.0.0.1")
    submit = [sys.executable, str(POOL / "submit.py"), "--json", "--schedd", schedd]
    done = host.run([*submit, str(POOL / "jobs" / "primes.py"), "0 1000", "1000 2000"])
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("connector", ["patched", "ordinary"])
@pytest.mark.parametrize("system", ["gcb outside", "gcb on gateways", "dpf"])
def test_a_job_runs_where_master_and_startd_are_behind_one_nat(
    world: World, system: str, connector: str
) -> None:
    if system == "dpf":
        for gateway in (world.gateway_a, world.gateway_b):
            world.gateway_daemon(gateway)
        for one in (world.a, world.a2, world.b):
            world.use_gateway(one)
    elif system == "gcb outside":
        world.broker(world.public)
        for one in (world.a, world.a2, world.b):
            world.use_broker(one, world.public.address)
    else:
        for gateway in (world.gateway_a, world.gateway_b):
            gateway.open(65432, "10000-65535")
            world.broker(gateway)
        for one in (world.a, world.a2, world.b):
            behind = world.gateway_of(one)
            assert behind is not None
            world.use_broker(one, behind.inside_address)
    master = start(world, world.a, "master")
    start(world, world.a2, "startd", "--master", master)
    report = run_job(world, world.b if connector == "patched" else world.other, master)
    assert report["ok"], report
    assert [task["stdout"] for task in report["tasks"]] == ["168\n", "135\n"]  # type: ignore[attr-defined]
