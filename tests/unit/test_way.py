"""One way past the relay: two sides of it, with a clock of their own and no network."""

from __future__ import annotations

import itertools
import mmap

import pytest

from gcbpatch.addresses import Address
from gcbpatch.agent import way as room
from gcbpatch.agent.way import Way
from gcbpatch.errors import RemoteProtocolError
from gcbpatch.wire import waypage
from gcbpatch.wire.datagrams import direct, whole
from gcbpatch.wire.messages import Card, Endpoint
from gcbpatch.wire.messages import Way as Asked

ONE, OTHER = ("198.51.100.1", 20001), ("198.51.100.1", 20002)
INSIDE, OUTSIDE = ("10.1.0.5", 5000), ("203.0.113.1", 5000)
SECRETS = bytes(16), bytes(range(16))


def card_of(way: Way, own: Address, *places: Address) -> Card:
    """The card that a side would give."""
    endpoints = [Endpoint.of(place) for place in places]
    return Card(Endpoint.of(own), way.secret, bytes(8), bytes(8), endpoints, "", way.knows)


def acquainted(*places: Address) -> tuple[Way, Way]:
    """Both sides, with each other's card."""
    one, other = Way(OTHER, SECRETS[0], 0.0), Way(ONE, SECRETS[1], 0.0)
    assert one.wanted(0.0)
    one.told(0.0)
    assert other.meet(card_of(one, ONE, OUTSIDE), 0.0)
    other.told(0.0)
    assert not one.meet(card_of(other, OTHER, *places or (OUTSIDE,)), 0.0)
    return one, other


def asked(one: Way, other: Way, place: Address, now: float, number: int = 1) -> float | None:
    """Ask at a place, and be answered from there; returns until when it is good."""
    challenge = bytes([number]) * 16
    question = Asked(Endpoint.of(ONE), challenge, one.ask(number, place, challenge, now))
    proof, _ = other.answer(question, OUTSIDE, now)
    return one.answered(number, proof, place, now)


def test_a_place_that_answers_is_the_way_for_a_while() -> None:
    one, other = acquainted()
    assert one.turn(0.0, used=False) == [OUTSIDE]
    assert asked(one, other, OUTSIDE, 0.5) == 0.5 + room.VALID
    assert one.place == OUTSIDE


def test_a_card_that_is_known_is_not_answered_with_another() -> None:
    one, other = acquainted()
    assert not other.meet(card_of(one, ONE, OUTSIDE), 0.1)
    assert other.meet(card_of(one, ONE, OUTSIDE), room.CARD_EVERY + 0.2)


def test_a_peer_that_has_lost_its_card_gets_it_again() -> None:
    one, _ = acquainted()
    fresh = Way(ONE, b"another secret..", 1.0)
    assert one.meet(card_of(fresh, OTHER, OUTSIDE), 1.0)


def test_places_inside_are_preferred_whichever_answers_first() -> None:
    one, other = acquainted(OUTSIDE, INSIDE)
    assert one.turn(0.0, used=False) == [INSIDE, OUTSIDE]
    asked(one, other, OUTSIDE, 0.0)
    asked(one, other, INSIDE, 0.1, number=2)
    assert one.place == INSIDE
    assert asked(one, other, OUTSIDE, 0.2, number=3) is None
    assert one.place == INSIDE


def test_a_way_in_use_is_asked_every_second_and_another_rarely() -> None:
    one, other = acquainted()
    for step in room.STEPS[: room.ENOUGH + 1]:
        one.turn(step, used=False)
        asked(one, other, OUTSIDE, step)
    times = [now for now in range(1, 11) if one.turn(float(now), used=True)]
    for now in times:
        asked(one, other, OUTSIDE, float(now))
    assert times[:2] == [1, 2]
    asked(one, other, OUTSIDE, 11.0)
    later = [now for now in range(14, 60) if one.turn(float(now), used=False)]
    assert len(later) <= 4


def test_a_silent_way_in_use_is_given_up() -> None:
    one, other = acquainted()
    asked(one, other, OUTSIDE, 0.0)
    for now in range(1, 30):
        one.turn(float(now), used=True)
    assert one.place is None
    assert one.wanted(30.0)


def test_where_nothing_answers_the_pauses_grow() -> None:
    one, _ = acquainted()
    tries, now = [], 0.0
    while now < 200.0:
        due = one.due()
        if due is not None:
            now = max(now, due)
            one.turn(now, used=False)
            continue
        now += 1.0
        if one.wanted(now):
            tries.append(now)
            one.told(now)
            one.meet(card_of(Way(ONE, SECRETS[1], 0.0), OTHER, OUTSIDE), now)
    pauses = [b - a for a, b in itertools.pairwise(tries)]
    assert len(tries) >= 3
    assert pauses == sorted(pauses)
    assert pauses[-1] > 2 * pauses[0] - 10


def test_nobody_without_the_card_is_answered_or_believed() -> None:
    one, other = acquainted()
    wrong = Asked(Endpoint.of(ONE), bytes(16), bytes(16))
    with pytest.raises(RemoteProtocolError):
        other.answer(wrong, OUTSIDE, 0.0)
    one.ask(1, OUTSIDE, bytes(16), 0.0)
    with pytest.raises(RemoteProtocolError):
        one.answered(1, bytes(16), OUTSIDE, 0.0)
    assert one.place is None
    with pytest.raises(RemoteProtocolError):
        Way(ONE, bytes(16), 0.0).answer(wrong, OUTSIDE, 0.0)


def test_an_answer_counts_only_from_where_the_question_went() -> None:
    one, other = acquainted()
    question = Asked(Endpoint.of(ONE), bytes(16), one.ask(1, OUTSIDE, bytes(16), 0.0))
    proof, _ = other.answer(question, OUTSIDE, 0.0)
    assert one.answered(1, proof, INSIDE, 0.0) is None
    assert one.place is None


def test_a_question_is_no_answer_to_itself_nor_a_farewell() -> None:
    one, other = acquainted()
    proof = one.ask(1, OUTSIDE, bytes(16), 0.0)
    with pytest.raises(RemoteProtocolError):
        one.answered(1, proof, OUTSIDE, 0.0)
    with pytest.raises(RemoteProtocolError):
        other.answer(Asked(Endpoint.of(ONE), bytes(16), proof, over=True), OUTSIDE, 0.0)


def test_a_place_that_a_proved_question_comes_from_is_tried() -> None:
    one, other = acquainted()
    question = Asked(Endpoint.of(ONE), bytes(16), one.ask(1, OUTSIDE, bytes(16), 0.0))
    elsewhere = ("203.0.113.9", 7)
    assert other.answer(question, elsewhere, 0.0)[1]
    assert elsewhere in other.places
    assert not other.answer(question, OUTSIDE, 0.0)[1]


def test_a_farewell_ends_the_way_until_another_card_comes() -> None:
    one, other = acquainted()
    challenge = bytes(16)
    bye = Asked(Endpoint.of(ONE), challenge, one.farewell(challenge), over=True)
    other.answer(bye, OUTSIDE, 0.0)
    assert other.card is None
    assert other.due() is None


def test_a_page_shows_what_was_put_until_it_is_cleared() -> None:
    memory = mmap.mmap(-1, waypage.SIZE)
    page, seen = waypage.Page(memoryview(memory)), memoryview(memory)
    before = direct(whole(ONE), b"8 octets")
    slot = page.put(whole(OTHER), OUTSIDE, before)
    at = waypage.word_of(slot)
    assert waypage.entries(seen) == {whole(OTHER): (before, OUTSIDE, at)}
    assert seen.cast("Q")[at + waypage.UNTIL] == 0
    page.confirm(slot, 5)
    assert seen.cast("Q")[at + waypage.UNTIL] == 5
    assert not page.take_used(slot)
    seen.cast("Q")[at + waypage.USED] = 1
    assert page.take_used(slot)
    assert not page.take_used(slot)
    edition = seen.cast("Q")[0]
    page.clear(slot)
    assert waypage.entries(seen) == {}
    assert seen.cast("Q")[0] != edition


def test_a_page_has_room_for_as_many_as_it_has_slots() -> None:
    page = waypage.Page(memoryview(bytearray(waypage.SIZE)))
    for number in range(waypage.SLOTS):
        page.put(whole(("192.0.2.1", number + 1)), OUTSIDE, bytes(16))
    assert page.is_full
