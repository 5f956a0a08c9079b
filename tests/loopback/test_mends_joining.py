"""multiprocessing's join() under the patch: waiting for a child stops nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mend_ground import PATCHED, STUCK, good, run, without

# The child ends when a thread of its parent's has let it.
JOINED_WHILE_A_THREAD_WORKS = """
    import multiprocessing, sys, threading
    def wait(here):
        sys.exit(here.recv())
    if __name__ == "__main__":
        context = multiprocessing.get_context({method!r})
        here, there = context.Pipe()
        child = context.Process(target=wait, args=(here,))
        child.start()
        threading.Timer(0.05, there.send, (7,)).start()
        child.join()
        assert child.exitcode == 7
        child.join()
        child.close()
        print("good")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_others_run_while_a_child_is_joined(tmp_path: Path, method: str) -> None:
    program = JOINED_WHILE_A_THREAD_WORKS.format(method=method)
    done = run(tmp_path, PATCHED, program)
    assert good(done), done.stderr


def test_without_the_mend_joining_a_spawned_child_stops_everything(tmp_path: Path) -> None:
    program = JOINED_WHILE_A_THREAD_WORKS.format(method="spawn")
    done = run(tmp_path, without("multiprocessing.popen_fork"), program, STUCK)
    assert not good(done), "the mend was not needed"


# The child has ended before gevent has made a watcher for it.
JOINED_LATE = """
    import multiprocessing, os
    from gevent import monkey
    sleep = monkey.get_original("time", "sleep")
    os.register_at_fork(after_in_parent=lambda: sleep(0.3))
    if __name__ == "__main__":
        child = multiprocessing.get_context("fork").Process(target=int)
        child.start()
        child.join()
        print("good")
"""


def test_a_child_that_has_ended_before_anybody_watches_is_joined(tmp_path: Path) -> None:
    done = run(tmp_path, PATCHED, JOINED_LATE)
    assert good(done), done.stderr


def test_without_the_mend_a_child_that_ends_early_is_never_noticed(tmp_path: Path) -> None:
    done = run(tmp_path, without("multiprocessing.popen_fork"), JOINED_LATE, STUCK)
    assert not good(done), "the mend was not needed"
