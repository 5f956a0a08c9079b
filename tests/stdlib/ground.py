"""What the command and the tests share: a broker for the brokered mode, excuses, complaints."""

from __future__ import annotations

import contextlib
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from gcbpatch.addresses import format_address

from ..loopback.broker_client import Broker
from .judge import Complaint, Excuse, broken_promises, judge, read_excuses
from .runner import Job, Outcome
from .suite import is_mended

EXCUSES = Path(__file__).with_name("excuses.toml")
YARDSTICK = "gevent"
PATCHED = ("gcbpatch", "brokered")


@contextlib.contextmanager
def brokered(mode: str) -> Iterator[dict[str, str]]:
    """Settings of a mode; in the brokered one there is a brokerd of its own behind them."""
    if mode != "brokered":
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="gcb-stdlib-broker-") as folder:
        broker = Broker(Path(folder))
        try:
            yield {
                "GCB_BROKER": format_address(broker.address),
                "GCB_ROUTES_TEXT": "127.0.0.0/8 gcb",
                "GCB_IDENTITY": "local",
            }
        finally:
            broker.kill()


def excuses() -> list[Excuse]:
    """The excuses beside this file."""
    return read_excuses(tomllib.loads(EXCUSES.read_text(encoding="utf-8")))


def words(outcomes: list[Outcome]) -> dict[str, str]:
    """The verdicts of a mode by id."""
    return {test: word for one in outcomes for test, word in one.words().items()}


def complaints(
    outcomes: Mapping[str, list[Outcome]], mode: str, excused: list[Excuse]
) -> list[Complaint]:
    """Judge a patched mode by the yardstick, where both were run."""
    if mode not in PATCHED or YARDSTICK not in outcomes:
        return []
    after = words(outcomes[mode])
    asked = [test for one in outcomes[mode] for test in one.job.ids]
    promised = [test for test in asked if is_mended(test)]
    before = words(outcomes[YARDSTICK])
    return judge(before, after, mode, excused) + broken_promises(after, mode, promised)


def job(
    case: tuple[str, str], ids: list[str], mode: str, settings: dict[str, str], hang: float
) -> Job:
    """What is to be run of a class in a mode."""
    if mode == YARDSTICK:
        ids = [test for test in ids if not is_mended(test)]
    return Job(*case, ids, mode, settings, hang)
