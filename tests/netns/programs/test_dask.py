"""Dask: a scheduler and two workers behind different NATs, unmodified."""

from __future__ import annotations

import json
import signal

import pytest

from tests.netns.lab import Host, Program
from tests.netns.programs.ground import Ground, need


def started(ground: Ground, *options: str) -> tuple[str, list[Program]]:
    """Start a scheduler behind NAT A, a worker behind A and one behind B; its address, they."""
    need("distributed")
    argv = ["-m", "distributed.cli.dask_scheduler", "--no-dashboard", "--port", "8786"]
    scheduler = ground.python(ground.a, *argv)
    address = scheduler.wait_line(r"Scheduler at: +(tcp://\S+)", stream="stderr").group(1)
    assert address.startswith(f"tcp://{ground.public_address(ground.a)}:")
    argv = ["-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-dashboard"]
    return address, [ground.python(host, *argv, *options) for host in (ground.a2, ground.b)]


def assert_both_fetched(ground: Ground, client: Host, address: str, *commands: str) -> None:
    """Have the workers exchange data, and look in their own records of it."""
    use = ground.told(client, "dask_use.py", address, *commands)
    assert use["size"] == "1000000"
    incoming = json.loads(use["transfers"])
    first, second = sorted(incoming)
    hosts = {name.removeprefix("tcp://").split(":")[0] for name in incoming}
    assert hosts == {ground.public_address(host) for host in (ground.a2, ground.b)}
    assert [[second, 1000000]] == incoming[first]
    assert [[first, 1000000]] == incoming[second]


@pytest.mark.parametrize("client", ["b", "other"], ids=["patched", "ordinary"])
def test_dask_workers_behind_two_nats_exchange_data(ground: Ground, client: str) -> None:
    address, workers = started(ground, "--no-nanny")
    assert_both_fetched(ground, getattr(ground, client), address)
    for worker in workers:
        worker.signal(signal.SIGTERM)
    assert [worker.wait() for worker in workers] == [0, 0]


def test_dask_nannies_start_their_workers_and_start_them_again(ground: Ground) -> None:
    address, nannies = started(ground)
    assert_both_fetched(ground, ground.b, address)
    assert_both_fetched(ground, ground.b, address, "restart")
    for nanny in nannies:
        nanny.signal(signal.SIGTERM)
    assert [nanny.wait() for nanny in nannies] == [0, 0]
