"""NAT-PMP and PCP as the RFCs draw them, and whatever else comes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpfd import natpmp, pcp

HOST, PUBLIC = "10.1.0.2", "198.51.100.1"
NONCE = bytes(range(12))
ports, lifetimes = st.integers(0, 65535), st.integers(0, 2**32 - 1)
hosts = st.ip_addresses(v=4).map(str)

# RFC 6886, sections 3.2 and 3.3
PMP = {
    "address": (natpmp.AskAddress(), "0000"),
    "UDP": (natpmp.AskMapping(17, 80, 8080, 3600), "0001 0000 0050 1f90 00000e10"),
    "TCP": (natpmp.AskMapping(6, 22, 0, 0), "0002 0000 0016 0000 00000000"),
}
PMP_ANSWERS = {
    "address": (natpmp.address(PUBLIC, 258), "0080 0000 00000102 c6336401"),
    "UDP": (
        natpmp.mapped(natpmp.AskMapping(17, 80, 0, 60), 8081, 60, 258),
        "0081 0000 00000102 0050 1f91 0000003c",
    ),
    "refusal": (
        natpmp.refusal(natpmp.AskMapping(6, 80, 1, 60), natpmp.Result.NOT_AUTHORIZED, 258),
        "0082 0002 00000102 0050 0000 00000000",
    ),
    "unknown opcode": (
        natpmp.refusal(natpmp.AskSomething(7), natpmp.Result.UNSUPPORTED_OPCODE, 1),
        "0087 0005 00000001",
    ),
}
CLIENT = "00000000000000000000ffff0a010002"
ASK = pcp.AskMap(NONCE, 6, 80, ("0.0.0.0", 8080), 3600)
# RFC 6887, sections 7.1, 7.2, 11.1 and 13.2
PCP = {
    "MAP": (
        ASK,
        f"0201 0000 00000e10 {CLIENT} 000102030405060708090a0b 06000000 0050 1f90"
        "00000000000000000000ffff00000000",
    ),
    "MAP, this address or none": (
        pcp.AskMap(NONCE, 17, 80, (PUBLIC, 8080), 0, True),
        f"0201 0000 00000000 {CLIENT} 000102030405060708090a0b 11000000 0050 1f90"
        "00000000000000000000ffffc6336401 02000000",
    ),
    "ANNOUNCE": (pcp.AskAnnouncement(), f"0200 0000 00000000 {CLIENT}"),
}


@pytest.mark.parametrize("what", PMP)
def test_requests_of_natpmp(what: str) -> None:
    request, data = PMP[what]
    assert natpmp.build(request) == bytes.fromhex(data)
    assert natpmp.parse(bytes.fromhex(data)) == request


@pytest.mark.parametrize("what", PMP_ANSWERS)
def test_answers_of_natpmp(what: str) -> None:
    data, expected = PMP_ANSWERS[what]
    assert data == bytes.fromhex(expected)


@pytest.mark.parametrize("what", PCP)
def test_requests_of_pcp(what: str) -> None:
    request, data = PCP[what]
    assert pcp.build(request, HOST) == bytes.fromhex(data)
    assert pcp.parse(bytes.fromhex(data), HOST) == request


def test_answers_of_pcp() -> None:
    data = pcp.mapped(ASK, (PUBLIC, 20000), 120, 258)
    assert data == bytes.fromhex(
        "0281 0000 00000078 00000102 000000000000000000000000"
        "000102030405060708090a0b 06000000 0050 4e20 00000000000000000000ffffc6336401"
    )
    assert pcp.answer(data) == (pcp.Result.SUCCESS, 120, 258, (PUBLIC, 20000))
    assert pcp.announced(5) == bytes.fromhex("0280 0000 00000000 00000005" + "00" * 12)


def problem(data: bytes) -> pcp.Result | None:
    try:
        pcp.parse(data, HOST)
    except pcp.Problem as found:
        return found.result
    return None


MAP = pcp.build(ASK, HOST)
WRONG = {
    "another version": (b"\x01" + MAP[1:], pcp.Result.UNSUPP_VERSION),
    "another version, and short": (b"\x03\x01", pcp.Result.UNSUPP_VERSION),
    "half a header": (MAP[:20], pcp.Result.MALFORMED_REQUEST),
    "half a MAP": (MAP[:-4], pcp.Result.MALFORMED_REQUEST),
    "no whole words": (MAP + b"\0", pcp.Result.MALFORMED_REQUEST),
    "too long": (MAP + bytes((200, 0, 4, 56)) + bytes(1080), pcp.Result.MALFORMED_REQUEST),
    "a port of no protocol": (MAP[:36] + b"\0" + MAP[37:], pcp.Result.MALFORMED_REQUEST),
    "PEER": (MAP[:1] + b"\x02" + MAP[2:], pcp.Result.UNSUPP_OPCODE),
    "another client's": (pcp.build(ASK, "10.1.0.3"), pcp.Result.ADDRESS_MISMATCH),
    "THIRD_PARTY": (MAP + bytes((1, 0, 0, 16)) + bytes(16), pcp.Result.UNSUPP_OPTION),
    "an option twice": (MAP + bytes((2, 0, 0, 0)) * 2, pcp.Result.MALFORMED_OPTION),
    "an option with too much": (MAP + bytes((2, 0, 0, 4)) + bytes(4), pcp.Result.MALFORMED_OPTION),
    "half an option": (MAP + bytes((200, 0, 0, 8)), pcp.Result.MALFORMED_OPTION),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what: str) -> None:
    data, result = WRONG[what]
    assert problem(data) is result
    answer = pcp.refusal(data, result, 30, 7)
    assert pcp.answer(answer)[:3] == (result, 30, 7)
    assert len(answer) <= pcp.LONGEST and len(answer) % 4 == 0
    assert answer[24:] == data[24 : len(answer)].ljust(len(answer) - 24, b"\0")


def test_an_option_that_need_not_be_known_is_passed_over() -> None:
    assert pcp.parse(MAP + bytes((200, 0, 0, 5)) + bytes(8), HOST) == ASK


def test_answers_are_not_answered() -> None:
    with pytest.raises(pcp.Silence):
        pcp.parse(pcp.announced(1), HOST)
    with pytest.raises(natpmp.Silence):
        natpmp.parse(natpmp.address(PUBLIC, 1))


@given(st.binary(max_size=80))
def test_whatever_comes_natpmp_reads_it_or_is_silent(data: bytes) -> None:
    try:
        request = natpmp.parse(data)
    except natpmp.Silence:
        return
    answer = natpmp.refusal(request, natpmp.Result.OUT_OF_RESOURCES, 1)
    assert answer[1] == data[1] + 128


@given(st.binary(max_size=1300) | st.binary(max_size=90).map(lambda tail: MAP[:24] + tail))
def test_whatever_comes_pcp_reads_it_refuses_it_or_is_silent(data: bytes) -> None:
    try:
        request = pcp.parse(data, HOST)
    except pcp.Silence:
        return
    except pcp.Problem as found:
        assert pcp.answer(pcp.refusal(data, found.result, 30, 1))[0] is found.result
        return
    assert pcp.parse(pcp.build(request, HOST), HOST) == request


@given(st.sampled_from((6, 17)), ports, ports, lifetimes)
def test_natpmp_reads_what_it_writes(protocol: int, inside: int, public: int, life: int) -> None:
    request = natpmp.AskMapping(protocol, inside, public, life)
    assert natpmp.parse(natpmp.build(request)) == request


@given(st.binary(min_size=12, max_size=12), ports, hosts, ports, lifetimes, st.booleans())
def test_pcp_reads_what_it_writes(
    nonce: bytes, inside: int, host: str, public: int, life: int, prefers: bool
) -> None:
    request = pcp.AskMap(nonce, 6, inside, (host, public), life, prefers)
    assert pcp.parse(pcp.build(request, HOST), HOST) == request
    assert pcp.answer(pcp.mapped(request, (host, public), life, 9)) == (
        pcp.Result.SUCCESS,
        life,
        9,
        (host, public),
    )
