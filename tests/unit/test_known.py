"""What is known of destinations: until when, and what makes all of it unknown."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from gcbpatch.routefile import RouteFile
from gcbpatch.routes import Routes
from gcbpatch.sockets.known import ALWAYS, MOST_KNOWN, NEVER, Fading, Known

TARGET = ("192.0.2.7", 80)


@pytest.fixture
def known() -> Known:
    return Known(Routes())


def test_an_address_is_known_until_its_time(known: Known) -> None:
    assert not known.holds(TARGET)
    known.remember(TARGET, time.monotonic() + 3600)
    assert known.holds(TARGET)
    known.remember(TARGET, time.monotonic())
    assert not known.holds(TARGET)
    known.remember(TARGET, ALWAYS)
    assert known.holds(TARGET)
    assert not known.holds((TARGET[0], 81))
    known.forget()
    assert not known.holds(TARGET)


@pytest.mark.parametrize("address", [[*TARGET], None, 5, "x", ([], 80), ("192.0.2.7", {})])
def test_what_is_no_address_is_not_known(known: Known, address: Any) -> None:
    known.remember(TARGET, ALWAYS)
    assert not known.holds(address)


def test_a_port_that_may_be_another_number_the_next_time_is_not_remembered(known: Known) -> None:
    class Changing:
        def __index__(self) -> int:
            return 80

    address = ("192.0.2.7", Changing())
    known.remember(address, ALWAYS)
    assert not known.holds(address)


def test_not_more_is_remembered_than_allowed(known: Known) -> None:
    for port in range(MOST_KNOWN + 1):
        known.remember(("192.0.2.7", port), ALWAYS)
    assert sum(known.holds(("192.0.2.7", port)) for port in range(MOST_KNOWN + 1)) == 1


def test_nothing_is_known_by_an_older_table(tmp_path: Path) -> None:
    file = tmp_path / "routes"
    file.write_text("192.0.2.0/24 direct\n")
    known = Known(RouteFile(str(file)))
    known.remember(TARGET, ALWAYS)
    assert known.holds(TARGET)
    file.write_text("192.0.2.0/24 gcb\n")
    assert not known.holds(TARGET)
    file.write_text("192.0.2.0/24 direct\n")
    known.remember(TARGET, ALWAYS)  # decided when the table was another one, perhaps
    assert not known.holds(TARGET)
    known.remember(TARGET, ALWAYS)
    assert known.holds(TARGET)


def test_a_table_that_is_touched_and_stays_the_same_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "routes"
    file.write_text("192.0.2.0/24 direct\n")
    known = Known(RouteFile(str(file)))
    known.remember(TARGET, ALWAYS)
    os.utime(file, (1, 1))
    assert known.holds(TARGET)


def test_what_fades_is_gone_after_its_time() -> None:
    lasting: Fading[str] = Fading(3600, 10)
    lasting.add("a", 7)
    assert "a" in lasting and lasting.number("a") == 7
    assert lasting.until("a") > time.monotonic() + 3000
    lasting.discard("a")
    lasting.discard("a")
    assert "a" not in lasting and lasting.number("a") == 0 and lasting.until("a") == NEVER
    brief: Fading[str] = Fading(0, 10)
    brief.add("a", 7)
    assert "a" not in brief and brief.number("a") == 0


def test_of_too_many_the_oldest_is_forgotten() -> None:
    fading: Fading[int] = Fading(3600, 3)
    for key in (1, 2, 3, 1, 4):  # 1 is the younger of 1 and 2 then
        fading.add(key)
    assert [key for key in range(6) if key in fading] == [1, 3, 4]
