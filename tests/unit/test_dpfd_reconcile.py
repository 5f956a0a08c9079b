"""The difference between what should be and what is, carried out, leaves what should be."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dpfd.kernel.fake import FakeKernel
from dpfd.kernel.port import Claim
from dpfd.reconcile import Changes, Rule, diff

addresses = st.tuples(st.sampled_from(["198.51.100.1", "10.1.0.2"]), st.integers(1, 6))
rules = st.builds(Rule, st.sampled_from([6, 17]), addresses, addresses)
FOREIGN = Claim(6, 0, 0, 80, 80)


@given(st.sets(rules), st.lists(rules))
def test_the_kernel_holds_what_is_desired(desired: set[Rule], held: list[Rule]) -> None:
    kernel = FakeKernel()
    kernel.rules = list(held)
    kernel.claims = [FOREIGN]
    changes = diff(desired, kernel.read().rules)
    kernel.apply(changes.adds, changes.removes)
    assert Counter(kernel.read().rules) == Counter(desired)
    assert kernel.read().claims == (FOREIGN,)


@given(st.sets(rules), st.lists(rules))
def test_nothing_is_changed_that_is_right(desired: set[Rule], held: list[Rule]) -> None:
    changes = diff(desired, held)
    assert not desired & set(held) & set(changes.adds)
    assert not Counter(changes.removes) - Counter(held)
    assert set(changes.adds) == desired - set(held)


@given(st.sets(rules))
def test_a_second_time_nothing_is_left_to_do(desired: set[Rule]) -> None:
    assert not diff(desired, sorted(desired))


def test_a_rule_that_is_there_twice_is_removed_once() -> None:
    rule = Rule(6, ("198.51.100.1", 20000), ("10.1.0.2", 80))
    assert diff([rule], [rule, rule]) == Changes((), (rule,))
