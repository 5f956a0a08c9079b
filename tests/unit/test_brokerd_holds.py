"""How many connections a broker holds for those who have asked."""

from __future__ import annotations

from brokerd.holds import EXPECT_SECONDS, MOST_EXPECTED, MOST_OF_ONE, Expected

ONE, OTHER = ("192.0.2.7", 20001), ("192.0.2.7", 20002)


def test_one_question_holds_one_connection() -> None:
    expected = Expected()
    expected.add(ONE, 0.0)
    assert not expected.take(OTHER, 0.1)
    assert expected.take(ONE, 0.1)
    assert not expected.take(ONE, 0.1)


def test_a_question_is_forgotten() -> None:
    expected = Expected()
    expected.add(ONE, 0.0)
    assert not expected.take(ONE, EXPECT_SECONDS)
    assert len(expected) == 0


def test_nobody_has_more_held_than_his_share() -> None:
    expected = Expected()
    for _ in range(3 * MOST_OF_ONE):
        expected.add(ONE, 0.0)
    expected.add(OTHER, 0.0)
    assert [expected.take(ONE, 1.0) for _ in range(MOST_OF_ONE + 1)] == [True] * 16 + [False]
    assert expected.take(OTHER, 1.0)


def test_all_together_are_bounded() -> None:
    expected = Expected()
    for number in range(2 * MOST_EXPECTED):
        expected.add(("192.0.2.7", number), 0.0)
    assert len(expected) == MOST_EXPECTED
    expected.add(ONE, EXPECT_SECONDS)
    assert len(expected) == 1
