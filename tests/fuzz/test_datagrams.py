"""Whatever a relay port sends: a header or RemoteProtocolError, and never more than is bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gcbpatch.errors import RemoteProtocolError
from gcbpatch.wire.datagrams import (
    MOST_OPEN,
    MOST_PAYLOAD,
    Header,
    Parts,
    parse,
    parts,
    refused,
    whole,
)
from tests.fuzz.material import cut_or_joined, fuzzed, mutated
from tests.unit.vectors import relayed

EXAMPLES = [block.data for block in relayed().values()]

octets = st.one_of(
    st.binary(max_size=60),
    mutated(EXAMPLES),
    cut_or_joined(EXAMPLES),
    st.builds(
        bytes.__add__, st.sampled_from([b"\xd4", b"\xd6", b"\xe4", b"\xe6", b"\xf4"]), st.binary()
    ),
)


def read(data: bytes) -> Header | None:
    try:
        return parse(data)
    except RemoteProtocolError:
        return None


def built(header: Header) -> bytes:
    if header.refused:
        return refused(header.peer)
    if header.part:
        return parts(header.peer, header.number)[header.part - 1]
    return whole(header.peer)


@fuzzed
@given(octets)
def test_a_header_is_read_or_refused(data: bytes) -> None:
    header = read(data)
    if header is None:
        return
    assert header.size <= len(data)
    assert built(header) == data[: header.size], "what is taken is what would be sent"


@fuzzed
@given(st.lists(st.tuples(octets, st.integers(0, 9)), max_size=60))
def test_parts_stay_bounded_and_never_raise(said: list[tuple[bytes, int]]) -> None:
    some, now = Parts(), 0.0
    for data, later in said:
        now += later
        header = read(data)
        if header is not None and header.part:
            joined = some.join(header, data[header.size :], now, bool(later % 2))
            assert joined is None or len(joined) <= MOST_PAYLOAD
            assert len(some) <= MOST_OPEN
