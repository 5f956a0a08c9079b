"""How long the way to a broker is, out of how long its answers take."""

from __future__ import annotations

from gcbpatch.agent.control import MOST_ROUND_TRIP, learnt


def test_the_first_answer_and_every_quicker_one_are_believed() -> None:
    assert learnt(0, 150) == 150
    assert learnt(150, 50) == 50


def test_a_slow_answer_is_believed_slowly() -> None:
    known = 50
    assert learnt(known, 850) == 150
    for _ in range(100):
        known = learnt(known, 850)
    assert 840 < known <= 850


def test_there_is_a_most() -> None:
    assert learnt(0, 10 * MOST_ROUND_TRIP) == MOST_ROUND_TRIP
    assert learnt(MOST_ROUND_TRIP, 100 * MOST_ROUND_TRIP) == MOST_ROUND_TRIP
