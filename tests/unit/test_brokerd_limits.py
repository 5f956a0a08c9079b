"""Who may have how much, with time as a number."""

from __future__ import annotations

import pytest

from brokerd.limits import Bounds, Bucket, Complaints, Held, Limits
from brokerd.registry import Refusal
from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key

ALICE, BOB = Key(b"token of alice", "alice"), Key(b"token of bob", "bob")
BOUNDS = Bounds(relays=3, token_relays=2, commands=10, token_commands=4)


def status_of(function: object, *args: object) -> Status:
    with pytest.raises(Refusal) as refused:
        function(*args)  # type: ignore[operator]
    return refused.value.status


def test_a_token_gets_its_share_and_all_get_theirs() -> None:
    limits = Limits(BOUNDS)
    limits.take(Held.RELAYS, ALICE)
    limits.take(Held.RELAYS, ALICE)
    assert status_of(limits.take, Held.RELAYS, ALICE) is Status.QUOTA_EXCEEDED
    limits.take(Held.RELAYS, BOB)
    assert status_of(limits.take, Held.RELAYS, BOB) is Status.NO_RESOURCES
    assert status_of(limits.take, Held.RELAYS, None) is Status.NO_RESOURCES
    limits.take(Held.HALF_OPEN, BOB)


def test_what_is_given_back_can_be_had_again() -> None:
    limits = Limits(BOUNDS)
    for _ in range(100):
        limits.take(Held.RELAYS, ALICE)
        limits.take(Held.RELAYS, ALICE)
        limits.give(Held.RELAYS, ALICE)
        limits.give(Held.RELAYS, ALICE)


def test_a_refused_take_counts_for_nothing() -> None:
    limits = Limits(BOUNDS)
    for _ in range(3):
        limits.take(Held.RELAYS, None)
    for _ in range(5):
        assert status_of(limits.take, Held.RELAYS, ALICE) is Status.NO_RESOURCES
    for _ in range(3):
        limits.give(Held.RELAYS, None)
    limits.take(Held.RELAYS, ALICE)
    limits.take(Held.RELAYS, ALICE)


def test_check_takes_nothing() -> None:
    limits = Limits(BOUNDS)
    for _ in range(10):
        limits.check(Held.RELAYS, ALICE)


def test_without_tokens_only_the_bounds_for_all_hold() -> None:
    limits = Limits(BOUNDS)
    for _ in range(3):
        limits.take(Held.RELAYS, None)
    assert status_of(limits.take, Held.RELAYS, None) is Status.NO_RESOURCES


def test_bounds_can_be_changed_under_way() -> None:
    limits = Limits(BOUNDS)
    limits.take(Held.RELAYS, ALICE)
    limits.bounds = Bounds(relays=1)
    assert status_of(limits.take, Held.RELAYS, BOB) is Status.NO_RESOURCES
    limits.bounds = Bounds(relays=2)
    limits.take(Held.RELAYS, BOB)


def test_commands_are_counted_a_second() -> None:
    limits = Limits(BOUNDS)
    for _ in range(4):
        limits.command(ALICE, 100.0)
    assert status_of(limits.command, ALICE, 100.0) is Status.QUOTA_EXCEEDED
    limits.command(BOB, 100.0)
    limits.command(ALICE, 100.25)
    assert status_of(limits.command, ALICE, 100.25) is Status.QUOTA_EXCEEDED


def test_commands_of_all_are_counted_too() -> None:
    limits = Limits(BOUNDS)
    for _ in range(10):
        limits.command(None, 1.0)
    assert status_of(limits.command, None, 1.0) is Status.NO_RESOURCES
    assert status_of(limits.command, ALICE, 1.0) is Status.NO_RESOURCES


def test_a_bucket_never_holds_more_than_a_second() -> None:
    bucket = Bucket(0.0, 3)
    assert [bucket.draw(1000.0, 3) for _ in range(4)] == [True, True, True, False]


def test_a_complaint_is_made_once() -> None:
    complaints = Complaints()
    peer = ("192.0.2.1", 5)
    assert complaints.is_new(peer, "a wrong token", 0.0)
    assert not complaints.is_new(peer, "a wrong token", 1.0)
    assert complaints.is_new(peer, "not a frame", 1.0)
    assert complaints.is_new(("192.0.2.1", 6), "a wrong token", 1.0)


def test_complaints_are_bounded_in_rate_and_memory() -> None:
    complaints = Complaints(most=8, lines_a_second=5)
    peers = [("192.0.2.1", port) for port in range(100)]
    assert sum(complaints.is_new(peer, "x", 0.0) for peer in peers) == 5
    assert sum(complaints.is_new(peer, "x", 1.0) for peer in peers) == 5
    # Those longest silent are forgotten, and complained about again.
    for second, peer in enumerate(peers[:20]):
        complaints.is_new(peer, "x", 10.0 + second)
    assert complaints.is_new(peers[0], "x", 100.0)
    assert not complaints.is_new(peers[19], "x", 101.0)


def meters() -> Limits:
    return Limits(Bounds(datagrams=100, kilobytes=10, token_datagrams=10, token_kilobytes=2))


def relayed(limits: Limits, key: Key | None, size: int, now: float) -> int:
    """How many datagrams of a size are relayed at one moment."""
    meter, count = limits.meter(key), 0
    while meter.has_room(now):
        meter.spend(size)
        count += 1
    return count


def test_datagrams_and_octets_of_a_token_are_bounded_by_the_second() -> None:
    limits = meters()
    assert relayed(limits, ALICE, 0, 5.0) == 10
    assert relayed(limits, ALICE, 0, 5.5) == 5
    assert relayed(limits, ALICE, 0, 9.0) == 10
    assert relayed(limits, BOB, 500, 5.0) == 4
    assert relayed(limits, BOB, 500, 6.0) == 4


def test_one_datagram_too_large_is_paid_back() -> None:
    limits = meters()
    assert relayed(limits, ALICE, 6000, 5.0) == 1
    assert relayed(limits, ALICE, 6000, 6.9) == 0
    assert relayed(limits, ALICE, 6000, 7.1) == 1


def test_slow_meters_fill_however_often_they_are_asked() -> None:
    limits = Limits(Bounds(datagrams=1, kilobytes=1))
    relayed(limits, None, 1, 0.0)
    assert sum(relayed(limits, None, 1, n / 1000) for n in range(1, 3000)) == 3


def test_all_tokens_together_have_their_bound_too() -> None:
    limits = meters()
    keys = [Key(b"token of %d" % n, str(n)) for n in range(20)]
    assert sum(relayed(limits, key, 0, 5.0) for key in keys) == 100
    assert relayed(limits, None, 0, 5.0) == 0


def test_meters_follow_the_bounds_when_they_change() -> None:
    limits = meters()
    relayed(limits, ALICE, 0, 5.0)
    limits.bounds = Bounds(token_datagrams=3)
    assert relayed(limits, ALICE, 0, 9.0) == 3
