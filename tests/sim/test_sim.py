"""Seeded runs of the simulation; a failure names the seed that plays it again."""

from __future__ import annotations

import logging

import pytest

from .story import Story

BATCH = 100
BATCHES = 20


@pytest.fixture(autouse=True)
def quiet() -> object:
    """Broken clients are complained about by the thousand, as they should be."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("batch", range(BATCHES))
def test_whatever_happens_the_invariants_hold(batch: int) -> None:
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        try:
            Story(seed).tell()
        except Exception as error:
            pytest.fail(f"{error!r}; again with: python -m tests.sim --seed {seed}")


def test_a_seed_tells_the_same_story_again() -> None:
    one, other = Story(7), Story(7)
    assert one.tell().steps == other.tell().steps
    assert one.world.chance.random() == other.world.chance.random()


def test_connections_come_about_in_these_stories() -> None:
    stories = [Story(seed) for seed in range(20)]
    for story in stories:
        story.tell()
    attempts = [attempt for story in stories for attempt in story.attempts]
    joined = [attempt for attempt in attempts if attempt.joined]
    assert {attempt.ordinary for attempt in joined} == {True, False}
    assert len(attempts) > len(joined) > len(attempts) // 10
