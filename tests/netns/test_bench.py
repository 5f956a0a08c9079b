"""The measurements can be made; what they come to is for a quiet machine to say."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.bench import bench_connect, bench_gateway, datagrams
from tests.bench.__main__ import FIGURES
from tests.netns.gateway_extra import require
from tests.netns.lab import Lab

ROOT = Path(__file__).resolve().parents[2]


def test_everything_is_measured(lab: Lab) -> None:
    host = lab.host("machine")
    done = host.run([sys.executable, "-m", "tests.bench", "--quick", "--json"], cwd=ROOT)
    figures = json.loads(done.stdout)["figures"]
    assert list(figures) == [*FIGURES, "agent"]
    assert all(figures[name]["plain_microseconds"] > 0 for name in FIGURES)
    assert figures["agent"]["met"], "a program that opens no brokered socket has got an agent"


def test_connects_are_measured_by_the_path_that_they_should_take() -> None:
    found: list[dict[str, Any]] = []
    bench_connect.run(["proxy", "relayed", "udp-proxy"], 1, found.append)
    assert [one["path"] for one in found] == ["kernel", "relayed", "relayed"]
    assert all(one["took"] > 0.99 for one in found), found


def test_datagrams_are_measured_relayed_and_punched() -> None:
    found = datagrams.run(1)
    assert list(found) == list(datagrams.MEASURES)
    assert all(rate > 0 for one in found.values() for rate in one["rates"].values())


def test_what_a_gateway_costs_is_measured() -> None:
    require()
    found = bench_gateway.run(["nftables"], bench_gateway.QUICK)
    assert [one["mappings"] for one in found["figures"]] == [0, 100]
    assert all(one["connect"]["ratio"]["median"] > 0 for one in found["figures"])
    assert len(bench_gateway.table(found).splitlines()) == 8
