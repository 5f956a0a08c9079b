"""The requester's half of the reliable exchange, on a clock that the test turns."""

from gcbpatch.wire.transaction import Requester

BROKER, ELSEWHERE = ("198.51.100.1", 65432), ("198.51.100.2", 65432)


def sendings(requester: Requester, start: float, end: float) -> list[float]:
    """Turn the clock from one timer to the next; return when something was sent."""
    times, now = [], start
    while now <= end:
        times += [now - start for _ in requester.datagrams_to_send(now)]
        requester.expired(now)
        due = requester.get_timer()
        if due is None:
            break
        assert due > now, "a timer that is due already would never let its caller rest"
        now = due
    return times


def test_a_request_is_due_at_once() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=100.0, patience=3.0)
    assert requester.get_timer() == 100.0
    assert requester.datagrams_to_send(100.0) == [(b"data", BROKER)]
    assert requester.datagrams_to_send(100.0) == []


def test_it_is_sent_again_with_growing_pauses_and_then_given_up() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=100.0, patience=10.0)
    assert sendings(requester, 100.0, 200.0) == [0.0, 0.25, 0.75, 1.75, 3.75, 5.75, 7.75, 9.75]
    assert len(requester) == 0


def test_the_default_patience_of_an_agent_holds_four_sendings() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=0.0, patience=3.0)
    assert sendings(requester, 0.0, 10.0) == [0.0, 0.25, 0.75, 1.75]


def test_a_caller_who_comes_late_sends_once_and_goes_on_from_there() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=0.0, patience=60.0)
    assert len(requester.datagrams_to_send(30.0)) == 1
    assert requester.get_timer() == 30.25


def test_the_timer_is_the_next_sending_or_the_end() -> None:
    requester = Requester()
    assert requester.get_timer() is None
    requester.request(1, b"data", BROKER, now=0.0, patience=0.3)
    requester.datagrams_to_send(0.0)
    assert requester.get_timer() == 0.25
    requester.datagrams_to_send(0.25)
    assert requester.get_timer() == 0.3


def test_the_timer_is_that_of_the_first_of_several() -> None:
    requester = Requester()
    requester.request(1, b"one", BROKER, now=0.0, patience=3.0)
    requester.datagrams_to_send(0.0)
    requester.request(2, b"two", ELSEWHERE, now=0.1, patience=3.0)
    assert requester.get_timer() == 0.1
    assert requester.datagrams_to_send(0.1) == [(b"two", ELSEWHERE)]
    assert requester.get_timer() == 0.25


def test_at_its_deadline_a_request_is_given_up_and_not_sent() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=0.0, patience=3.0)
    assert requester.expired(2.999) == []
    assert requester.datagrams_to_send(3.0) == []
    assert requester.expired(3.0) == [1]
    assert requester.expired(3.0) == []
    assert requester.get_timer() is None


def test_only_those_are_given_up_whose_time_is_out() -> None:
    requester = Requester()
    for transaction, patience in ((1, 1.0), (2, 2.0), (3, 1.0)):
        requester.request(transaction, b"", BROKER, now=0.0, patience=patience)
    assert sorted(requester.expired(1.5)) == [1, 3]
    assert len(requester) == 1


def test_what_is_settled_is_not_sent_again_and_settles_once() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=0.0, patience=3.0)
    assert requester.settle(1) is True
    assert requester.settle(1) is False
    assert requester.datagrams_to_send(0.0) == []
    assert requester.expired(10.0) == []


def test_a_reply_to_nothing_settles_nothing() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=0.0, patience=3.0)
    assert requester.settle(2) is False
    assert len(requester) == 1


def test_it_knows_where_a_request_went() -> None:
    requester = Requester()
    requester.request(1, b"data", BROKER, now=0.0, patience=3.0)
    assert requester.destination_of(1) == BROKER
    assert requester.destination_of(2) is None
