"""CPython's own tests: no id worse under gcbpatch than under gevent, brokered or not.

One test here is one class of theirs, run in processes of its own by gevent and in the two
patched modes.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ground import PATCHED, YARDSTICK, brokered, complaints, excuses, job
from .judge import unused
from .runner import HANG_SECONDS, Outcome, run
from .suite import classes, missing

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

CLASSES = classes()

BROKERED = {
    ("test.test_socket", "BasicTCPTest"): 5,
    ("test.test_socket", "NonBlockingTCPTests"): 2,
    ("test.test_socketserver", "SocketServerTest"): 6,
    ("test.test_ssl", "ThreadedTests"): 20,
    ("test.test_ftplib", "TestFTPClass"): 50,
    ("test.test_xmlrpc", "SimpleServerTestCase"): 5,
    ("test.test_asyncio.test_streams", "StreamTests"): 5,
    ("test.test_asyncio.test_sock_lowlevel", "PollEventLoopTests"): 5,
}
"""How many connections at least take the broker's way: else the brokered mode proves nothing."""


def identity(case: tuple[str, str]) -> str:
    return ".".join(case).removeprefix("test.").removeprefix("tests.stdlib.")


@pytest.fixture(scope="session")
def settings() -> Iterator[dict[str, dict[str, str]]]:
    """The settings of each mode; a broker lives as long as the tests."""
    with brokered("brokered") as of_broker:
        yield {"brokered": of_broker}


@pytest.mark.timeout(1800)  # a class that hangs at many ids takes a limit for each
@pytest.mark.parametrize("case", CLASSES, ids=identity)
def test_no_id_is_worse_than_under_gevent(
    case: tuple[str, str], settings: dict[str, dict[str, str]]
) -> None:
    outcomes: dict[str, list[Outcome]] = {}
    for mode in (YARDSTICK, *PATCHED):
        ids, of_mode = CLASSES[case], settings.get(mode, {})
        outcomes[mode] = [run(job(case, ids, mode, of_mode, HANG_SECONDS))]
    found = [c for mode in PATCHED for c in complaints(outcomes, mode, excuses())]
    details = [outcomes[c.mode][0].verdicts[c.test].detail[-3000:] for c in found
               if c.test in outcomes[c.mode][0].verdicts]  # fmt: skip
    assert not found, "\n\n".join([*map(str, found), *details])
    paths = outcomes["brokered"][0].paths
    assert sum(paths.values()) >= BROKERED.get(case, 0), f"only {paths} were brokered"


def test_every_excuse_is_for_an_id_that_is_there() -> None:
    ids = [f"{module}.{cls}.(end)" for module, cls in CLASSES]
    ids += [test for tests in CLASSES.values() for test in tests]
    assert unused(ids, excuses()) == []
