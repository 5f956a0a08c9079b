"""The replier's half of the reliable exchange: once carried out, the same answer for ever after."""

from gcbpatch.wire.auth import COOKIE_SECONDS
from gcbpatch.wire.replay import KEEP_SECONDS, Answers

A, B = ("192.0.2.1", 1000), ("192.0.2.1", 1001)


def test_a_request_begins_once() -> None:
    answers = Answers()
    assert answers.begin(A, 1, 0.0) is True
    assert answers.begin(A, 1, 0.0) is False
    answers.keep(A, 1, b"answer")
    assert answers.begin(A, 1, 1.0) is False
    assert answers.again(A, 1) == b"answer"


def test_while_it_is_carried_out_there_is_no_answer() -> None:
    answers = Answers()
    assert answers.again(A, 1) is None
    answers.begin(A, 1, 0.0)
    assert answers.again(A, 1) is None


def test_another_port_and_another_transaction_are_other_requests() -> None:
    answers = Answers()
    answers.begin(A, 1, 0.0)
    answers.keep(A, 1, b"answer")
    assert answers.again(B, 1) is None and answers.again(A, 2) is None
    assert answers.begin(B, 1, 0.0) and answers.begin(A, 2, 0.0)


def test_an_answer_is_kept_for_as_long_as_a_cookie_can_be_good() -> None:
    assert KEEP_SECONDS >= 2 * COOKIE_SECONDS
    answers = Answers()
    answers.begin(A, 1, 100.0)
    answers.keep(A, 1, b"answer")
    answers.expire(100.0 + KEEP_SECONDS - 0.001)
    assert answers.again(A, 1) == b"answer"
    answers.expire(100.0 + KEEP_SECONDS)
    assert answers.again(A, 1) is None
    assert len(answers) == 0


def test_asking_again_does_not_prolong_the_keep() -> None:
    answers = Answers(keep=10.0)
    answers.begin(A, 1, 0.0)
    answers.keep(A, 1, b"answer")
    assert answers.begin(A, 1, 9.0) is False
    assert answers.begin(A, 1, 10.0) is True


def test_beginning_forgets_what_is_over() -> None:
    answers = Answers(keep=10.0)
    for transaction in range(5):
        answers.begin(A, transaction, float(transaction))
    answers.begin(A, 5, 12.0)
    assert len(answers) == 3


def test_there_are_never_more_than_the_most_and_the_oldest_goes_first() -> None:
    answers = Answers(most=3)
    for transaction in range(5):
        assert answers.begin(A, transaction, 0.0)
        answers.keep(A, transaction, str(transaction).encode())
        assert len(answers) == min(transaction + 1, 3)
    assert [answers.again(A, t) for t in range(5)] == [None, None, b"2", b"3", b"4"]


def test_an_answer_to_what_was_forgotten_is_not_kept() -> None:
    answers = Answers(most=1)
    answers.begin(A, 1, 0.0)
    answers.begin(A, 2, 0.0)
    answers.keep(A, 1, b"late")
    assert answers.again(A, 1) is None
    assert len(answers) == 1
