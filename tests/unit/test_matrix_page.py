"""docs/matrix.md says what the matrix's tests expect."""

from __future__ import annotations

from tests.netns.matrix import CONNECTORS, KINDS, PAGE, expected, page


def test_the_page_is_what_the_matrix_expects() -> None:
    assert PAGE.read_text() == page(), "python -m tests.netns.matrix writes it"


def test_every_kind_meets_every_other() -> None:
    for connector in KINDS:
        assert {cell[3] for cell in expected(connector)} == KINDS.keys()
    assert CONNECTORS.keys() > KINDS.keys()
