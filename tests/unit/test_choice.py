"""Which broker is asked first, and when heartbeats come: chance is handed in."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gcbpatch.agent.choice import ordered
from gcbpatch.agent.heart import BEATS_PER_LIFETIME, MOST_SECONDS, pause

CAPACITIES = st.lists(st.integers(0, 2**31 - 1), max_size=8)


@given(CAPACITIES, st.randoms(use_true_random=False))
def test_everybody_is_asked_once_and_the_full_last(
    capacities: list[int], dice: random.Random
) -> None:
    order = ordered(enumerate(capacities), dice.random)
    assert sorted(order) == list(range(len(capacities)))
    room = [capacities[n] > 0 for n in order]
    assert room == sorted(room, reverse=True)


def test_each_is_first_as_often_as_its_capacity_is_of_all() -> None:
    dice = random.Random(7)
    capacities = {"large": 12000, "middle": 3000, "small": 1000, "full": 0}
    firsts = Counter(ordered(capacities.items(), dice.random)[0] for _ in range(16000))
    for name, capacity in capacities.items():
        assert abs(firsts[name] - capacity) <= capacity * 0.1


@given(st.floats(0.01, 86400.0), st.booleans(), st.floats(0.0, 1.0))
def test_a_beat_comes_in_time_for_another_to_be_lost(
    lifetime: float, failed: bool, drawn: float
) -> None:
    seconds = pause(lifetime, failed, drawn)
    assert 0.0 < seconds <= min(lifetime / BEATS_PER_LIFETIME, MOST_SECONDS)


@pytest.mark.parametrize("failed", [False, True])
def test_beats_of_different_clients_drift_apart(failed: bool) -> None:
    assert pause(30.0, failed, 0.9) < pause(30.0, failed, 0.1)


def test_after_a_beat_without_an_answer_the_next_comes_soon() -> None:
    assert pause(30.0, True, 0.0) < pause(30.0, False, 1.0)
