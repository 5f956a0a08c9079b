"""The runner with a real worker: what it runs, and what becomes of an id that never ends."""

from __future__ import annotations

import pytest

from .runner import Job, run
from .suite import class_of, missing

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

POLL = "test.test_poll.PollTests."
ENDLESS = POLL + "test_poll_unit_tests"
"""A poll() that never ends, under gevent."""


def test_an_id_that_is_not_asked_for_is_not_run() -> None:
    """It would hang, and the one behind it have no verdict of its own."""
    ids = [POLL + "test_poll1", POLL + "test_threaded_poll"]
    outcome = run(Job("test.test_poll", "PollTests", ids, "gevent", hang=10))
    assert outcome.verdicts[POLL + "test_threaded_poll"].word == "fail"


def test_the_ids_behind_one_that_hangs_are_run() -> None:
    ids = [POLL + "test_poll1", ENDLESS, POLL + "test_threaded_poll"]
    outcome = run(Job("test.test_poll", "PollTests", ids, "gevent", hang=5))
    assert [outcome.verdicts[test].word for test in ids] == ["ok", "hang", "fail"]


def test_an_id_that_is_not_there_is_not_called_good() -> None:
    """gevent takes epoll away, and so asyncio's tests have no class for it."""
    test = "test.test_asyncio.test_sock_lowlevel.EPollEventLoopTests.test_sock_accept"
    module, cls = class_of(test)
    outcome = run(Job(module, cls, [test], "gevent"))
    assert outcome.verdicts[test].word == "absent"


def test_it_is_the_id_that_hangs_of_which_a_hang_is_told() -> None:
    """gevent puts os.close() off until its loop turns: a signal by which we ask does that."""
    case = "test.test_asyncio.test_events", "PollEventLoopTests"
    test = ".".join((*case, "test_read_pipe"))
    outcome = run(Job(*case, [test], "gevent", hang=5))
    assert outcome.verdicts[test].word == "hang"
