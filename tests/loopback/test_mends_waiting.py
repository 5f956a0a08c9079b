"""os.waitpid under the patch: every child is returned once."""

from __future__ import annotations

from pathlib import Path

from .mend_ground import PATCHED, good, run, without

# The child ends while its parent waits already.
A_CHILD_TOO_MANY = """
    import os, posix, threading, time
    def wait(options):
        try:
            return os.waitpid(-1, options)
        except ChildProcessError:
            return None
    for code in 1, 2:
        here, there = os.pipe()
        pid = os.fork()
        if pid == 0:
            posix.close(there)
            os.read(here, 1)
            os._exit(code)
        os.close(here)
        threading.Timer(0.05, os.write, (there, b"x")).start()
        assert wait(0) == (pid, code << 8)
        time.sleep(0.01)  # the loop turns, and tells whoever watches the child
        for options in (os.WNOHANG, 0):
            again = wait(options)
            assert again is None, again
    print("good")
"""


def test_a_child_that_was_waited_for_is_not_reported_again(tmp_path: Path) -> None:
    done = run(tmp_path, PATCHED, A_CHILD_TOO_MANY)
    assert good(done), done.stderr


def test_without_the_mend_it_is(tmp_path: Path) -> None:
    done = run(tmp_path, without("gevent.os"), A_CHILD_TOO_MANY)
    assert not good(done), "the mend was not needed"
    assert "AssertionError" in done.stderr, done.stderr
