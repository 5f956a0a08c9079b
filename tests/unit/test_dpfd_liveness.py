"""When a client is taken for dead. No socket, no clock."""

import pytest

from dpfd.liveness import BURST, Answer, Pace, Tally, Watch

GRACE, INTERVAL = 15.0, 10.0


def verdicts(*answers: tuple[float, Answer]) -> list[bool]:
    watch = Watch(due=0)
    return [watch.note(answer, now, GRACE) for now, answer in answers]


def test_refusals_for_longer_than_the_grace_are_the_end() -> None:
    assert verdicts(
        (0, Answer.PROVED), (10, Answer.REFUSED), (24, Answer.REFUSED), (25, Answer.REFUSED)
    ) == [False, False, False, True]


def test_a_proof_in_between_begins_anew() -> None:
    assert verdicts(
        (0, Answer.PROVED),
        (10, Answer.REFUSED),
        (20, Answer.PROVED),
        (30, Answer.REFUSED),
        (40, Answer.REFUSED),
        (45, Answer.REFUSED),
    ) == [False, False, False, False, False, True]


def test_a_stranger_on_a_reused_port_is_not_the_client() -> None:
    assert verdicts((0, Answer.WRONG), (15, Answer.WRONG)) == [False, True]


def test_who_cannot_be_reached_lives_by_the_lease() -> None:
    answers = [(10.0 * n, Answer.UNREACHABLE) for n in range(20)]
    assert not any(verdicts((0, Answer.PROVED), *answers))


def test_who_has_refused_from_the_start_lives_by_the_lease() -> None:
    assert not any(verdicts(*[(10.0 * n, Answer.REFUSED) for n in range(20)]))


def test_the_next_look_is_when_the_grace_is_over() -> None:
    watch = Watch(due=0)
    watch.note(Answer.PROVED, 0, GRACE)
    watch.schedule(0, INTERVAL, GRACE)
    assert watch.due == 10
    watch.note(Answer.REFUSED, 10, GRACE)
    watch.schedule(10, INTERVAL, GRACE)
    assert watch.due == 20
    watch.schedule(20, INTERVAL, GRACE)
    assert watch.due == 25


def test_a_client_that_lives_by_its_lease_is_still_asked_at_intervals_only() -> None:
    watch = Watch(due=0)
    watch.note(Answer.REFUSED, 0, GRACE)
    watch.schedule(100, INTERVAL, GRACE)
    assert watch.due == 110


def test_a_rate_is_kept_evenly_and_lost_time_made_up_for_in_part() -> None:
    pace = Pace(100)
    waits = [pace.wait(50.0) for _ in range(8)]
    assert waits == pytest.approx([number * 0.01 - BURST for number in range(8)])
    assert pace.wait(60.0) == pytest.approx(-BURST)  # what was not asked for is not saved up


def test_a_report_says_how_many_were_asked_and_what_it_cost() -> None:
    tally = Tally(began=100.0, cpu=2.0)
    tally.answers.update([Answer.PROVED] * 19 + [Answer.REFUSED])
    assert tally.line(7, now=110.0, cpu=2.5) == (
        "7 clients, 2.0 asked a second (19 proved, 1 refused); dpfd used 5.0 % of a CPU in all"
    )
    assert "0.0 asked a second (none)" in Tally(1.0, 0.0).line(0, 2.0, 0.0)
