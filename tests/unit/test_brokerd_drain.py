"""When a draining broker may end."""

from __future__ import annotations

from brokerd.drain import Drain


def test_without_the_signal_it_never_ends() -> None:
    assert not Drain(30).is_over(1e9, 0, 0)


def test_it_begins_once() -> None:
    drain = Drain(30)
    assert drain.begin(100.0)
    assert not drain.begin(120.0)
    assert drain.is_over(130.0, 1, 0), "a second signal gives no more time"


def test_it_ends_as_soon_as_nobody_is_left() -> None:
    drain = Drain(30)
    drain.begin(100.0)
    assert not drain.is_over(100.1, 1, 0)
    assert drain.is_over(100.1, 0, 0)


def test_it_waits_for_relays_as_long_as_they_last_and_for_listeners_a_lifetime() -> None:
    drain = Drain(30)
    drain.begin(100.0)
    assert not drain.is_over(1e9, 0, 1)
    assert not drain.is_over(129.9, 1, 0)
    assert drain.is_over(130.0, 1, 0)
