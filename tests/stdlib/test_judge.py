"""The comparison of two modes, and how a worker's report is read: pure."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from .judge import Excuse, broken_promises, judge, read_excuses, unused, worse
from .runner import Verdict, complete, read_report

EXCUSES = Path(__file__).with_name("excuses.toml")


def report(*events: dict[str, object]) -> list[str]:
    return [json.dumps(event) for event in events]


def started(test: str, at: float = 1.0) -> dict[str, object]:
    return {"event": "start", "id": test, "at": at}


def ended(test: str, verdict: str, at: float = 3.0) -> dict[str, object]:
    return {"event": "end", "id": test, "at": at, "verdict": verdict, "detail": "why"}


@pytest.mark.parametrize(
    ("before", "after"),
    [("ok", "fail"), ("ok", "error"), ("ok", "hang"), ("ok", "died"), ("ok", "skip"),
     ("skip", "fail"), ("skip", "hang")],
)  # fmt: skip
def test_what_was_good_and_is_bad_is_worse(before: str, after: str) -> None:
    assert worse({"a": before}, {"a": after}) == ["a"]


@pytest.mark.parametrize(
    ("before", "after"),
    [("ok", "ok"), ("fail", "ok"), ("hang", "skip"), ("fail", "hang"), ("skip", "ok")],
)
def test_what_is_as_bad_or_better_is_not_worse(before: str, after: str) -> None:
    assert worse({"a": before}, {"a": after}) == []


def test_an_id_without_a_verdict_is_worse() -> None:
    assert worse({"a": "ok"}, {}) == ["a"]
    (complaint,) = judge({"a": "ok"}, {}, "brokered", [])
    assert "no verdict" in str(complaint)


def test_a_verdict_that_nobody_knows_is_not_taken_for_good() -> None:
    with pytest.raises(KeyError):
        worse({"a": "ok"}, {"a": "fine"})


def test_an_excuse_is_for_its_ids_and_its_mode_only() -> None:
    excuse = Excuse(r"m\.C\..*", "brokered", "since it is so")
    before, after = {"m.C.a": "ok", "m.D.a": "ok"}, {"m.C.a": "fail", "m.D.a": "hang"}
    (complaint,) = judge(before, after, "brokered", [excuse])
    assert complaint.test == "m.D.a"
    assert len(judge(before, after, "gcbpatch", [excuse])) == 2


def test_an_excuse_that_excuses_nothing_is_complained_about() -> None:
    excuse = Excuse("a", "brokered", "since it is so")
    (complaint,) = judge({"a": "ok"}, {"a": "ok"}, "brokered", [excuse])
    assert "excuses nothing" in complaint.text
    assert judge({"b": "ok"}, {"b": "ok"}, "brokered", [excuse]) == [], "its id was not run"


def test_an_excuse_that_depends_on_the_machine_may_excuse_nothing() -> None:
    excuse = Excuse("a", "brokered", "only where there is no IPv6", sometimes=True)
    assert judge({"a": "ok"}, {"a": "ok"}, "brokered", [excuse]) == []


def test_an_excuse_for_an_id_that_is_not_there_is_found() -> None:
    stays, gone = Excuse("a", "brokered", "it is so"), Excuse("b", "brokered", "it was so")
    assert unused(["a"], [stays, gone]) == [gone]


def test_an_excuse_without_a_reason_is_refused() -> None:
    tables = {"excuse": [{"test": "a", "mode": "brokered", "reason": "flaky"}]}
    with pytest.raises(ValueError, match="needs a reason"):
        read_excuses(tables)


def test_an_excuse_for_an_id_of_a_later_python_is_passed_over() -> None:
    tables = {"excuse": [{"test": "a", "mode": "brokered", "reason": "it is not so there",
                          "since": [3, 13]}]}  # fmt: skip
    assert read_excuses(tables, (3, 12)) == []
    assert [excuse.test for excuse in read_excuses(tables, (3, 13))] == ["a"]
    assert len(read_excuses(tables, (4, 0))) == 1


def test_our_excuses_can_be_read_and_name_a_patched_mode() -> None:
    excuses = read_excuses(tomllib.loads(EXCUSES.read_text()))
    assert {excuse.mode for excuse in excuses} <= {"gcbpatch", "brokered"}


def test_what_is_mended_has_to_be_good_whatever_gevent_makes_of_it() -> None:
    after = {"a": "ok", "b": "hang", "c": "skip"}
    found = broken_promises(after, "gcbpatch", ["a", "b", "c", "d"])
    assert [complaint.test for complaint in found] == ["b", "c", "d"]


def test_a_report_gives_each_id_its_verdict_and_time() -> None:
    found = read_report(report(started("a"), ended("a", "fail")))
    assert found == {"a": Verdict("fail", "why", 2.0)}


def test_an_id_that_did_not_end_gets_what_became_of_the_process() -> None:
    found = read_report(report(started("a"), ended("a", "ok"), started("b")))
    done = complete(found, "(end)", Verdict("hang"))
    assert {test: verdict.word for test, verdict in done.items()} == {"a": "ok", "b": "hang"}


def test_an_id_in_which_the_program_ended_as_if_all_were_well_died() -> None:
    done = complete(read_report(report(started("a"))), "(end)", None)
    assert done["a"].word == "died"


def test_a_process_that_hangs_after_its_last_id_has_a_bad_end() -> None:
    found = read_report(report(started("a"), ended("a", "ok")))
    assert complete(found, "(end)", Verdict("hang"))["(end)"].word == "hang"
    assert complete(found, "(end)", None)["(end)"].word == "ok"


def test_trouble_in_a_fixture_of_the_class_is_not_lost() -> None:
    broken = {"event": "fixture", "id": "setUpClass", "at": 1.0, "verdict": "error", "detail": "x"}
    assert complete(read_report(report(broken)), "(end)", None)["(end)"].word == "error"
