"""select.poll() under the patch: closed descriptors, and errors, as the kernel has them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mend_ground import PATCHED, STUCK, good, run, without

# The hub is there first: else its own descriptor has the number that was closed.
CLOSED = """
    import os, select, threading, time
    time.sleep(0)
    here, there = os.pipe()
    poll = select.poll()
    poll.register(here)
    {close}
    for timeout in None, 100, 0:
        assert poll.poll(timeout) == [(here, select.POLLNVAL)]
    print("good")
"""


@pytest.mark.parametrize(
    "close", ["os.close(here)", "os.fdopen(here).close()", "os.closerange(here, here + 1)"]
)
def test_a_closed_descriptor_is_told_of(tmp_path: Path, close: str) -> None:
    done = run(tmp_path, PATCHED, CLOSED.format(close=close))
    assert good(done), done.stderr


def test_without_the_mend_polling_a_closed_descriptor_ends_or_hangs_the_program(
    tmp_path: Path,
) -> None:
    program = CLOSED.format(close="os.close(here)")
    done = run(tmp_path, without("gevent.select"), program, STUCK)
    assert not good(done), "the mend was not needed"


def test_others_run_while_one_polls_and_what_is_ready_is_told_as_ever(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import os, select, socket, threading, time
        here, there = socket.socketpair()
        poll = select.poll()
        poll.register(here, select.POLLIN)
        assert poll.poll(10) == []
        threading.Timer(0.05, there.send, (b"x",)).start()
        assert poll.poll() == [(here.fileno(), select.POLLIN)]
        ran = []
        def run_on():
            while not ran or len(ran) < 20:
                ran.append(poll.poll(0))
        turns = []
        def count():
            while thread.is_alive():
                turns.append(1)
                time.sleep(0)
        thread = threading.Thread(target=run_on)
        counting = threading.Thread(target=count)
        thread.start(), counting.start()
        thread.join(), counting.join()
        assert len(turns) >= 10, len(turns)  # something was ready all the time
        poll.modify(here, select.POLLOUT)
        assert poll.poll() == [(here.fileno(), select.POLLOUT)]
        poll.unregister(here)
        assert poll.poll(10) == []
        print("good")
        """,
    )
    assert good(done), done.stderr
