"""Who may say what: MACs, keyrings, cookies, claims, proofs."""

import itertools

import pytest

from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire import auth
from gcbpatch.wire.auth import COOKIE_SECONDS, Key, Keyring
from gcbpatch.wire.codec import HEADER_SIZE, MAC_SIZE, Frame, Kind, message_of, parse
from gcbpatch.wire.messages import Command, Nothing, Session

SECRET = bytes(range(32))
CLIENT, OTHER_CLIENT = bytes(range(16)), bytes(range(1, 17))
KEY, OTHER = Key(b"correct horse battery"), Key(b"a different token")
ADDRESS = ("192.0.2.7", 40000)
SEALED = auth.sealed(KEY, Kind.REQUEST, Command.SESSION, 7, Session(CLIENT))
PLAIN = auth.sealed(None, Kind.REQUEST, Command.SESSION, 7, Session(CLIENT))


def refused(keyring: Keyring, frame: Frame) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        keyring.authenticate(frame)
    assert caught.value.status is Status.NOT_AUTHORIZED
    return str(caught.value)


def test_a_sealed_frame_is_the_plain_one_with_a_key_id_and_a_mac() -> None:
    assert len(SEALED) == len(PLAIN) + MAC_SIZE
    assert SEALED[:16] + bytes(4) + SEALED[HEADER_SIZE:-MAC_SIZE] == PLAIN
    assert SEALED[16:20] == KEY.key_id.to_bytes(4, "big") != bytes(4)


def test_one_flipped_bit_anywhere_is_never_authenticated() -> None:
    keyring = Keyring([KEY, OTHER])
    assert keyring.authenticate(parse(SEALED)) is KEY
    for octet, bit in itertools.product(range(len(SEALED)), range(8)):
        flipped = bytearray(SEALED)
        flipped[octet] ^= 1 << bit
        with pytest.raises(RemoteProtocolError):
            keyring.authenticate(parse(bytes(flipped)))


def test_one_flipped_bit_of_the_mac_is_not_authorized() -> None:
    for octet, bit in itertools.product(range(len(SEALED) - MAC_SIZE, len(SEALED)), range(8)):
        flipped = bytearray(SEALED)
        flipped[octet] ^= 1 << bit
        assert "wrong token" in refused(Keyring([KEY]), parse(bytes(flipped)))


def test_a_frame_without_mac_is_refused_where_a_token_is_needed() -> None:
    assert "no token" in refused(Keyring([KEY]), parse(PLAIN))


def test_a_frame_of_an_unknown_key_is_refused() -> None:
    assert "wrong token" in refused(Keyring([OTHER]), parse(SEALED))


def test_a_mac_of_another_key_under_the_right_key_id_is_refused() -> None:
    forged = SEALED[:-MAC_SIZE] + OTHER.seal(SEALED[:-MAC_SIZE])[-MAC_SIZE:]
    assert "wrong token" in refused(Keyring([KEY, OTHER]), parse(forged))


def test_each_of_several_tokens_is_told_apart() -> None:
    keyring = Keyring([OTHER, KEY])
    assert keyring
    assert keyring.authenticate(parse(SEALED)) is KEY
    other = auth.sealed(OTHER, Kind.REQUEST, Command.SESSION, 7, Session(CLIENT))
    assert keyring.authenticate(parse(other)) is OTHER


@pytest.mark.parametrize("data", [PLAIN, SEALED], ids=["plain", "sealed"])
def test_without_tokens_nothing_is_authenticated(data: bytes) -> None:
    assert not Keyring()
    assert Keyring().authenticate(parse(data)) is None


def test_no_secret_is_shown() -> None:
    key = Key(b"hunter2hunter2", "site")
    frame = parse(auth.sealed(OTHER, Kind.REQUEST, Command.SESSION, 7, Session(CLIENT)))
    shown = repr(key) + str(key) + repr(Keyring([key])) + refused(Keyring([key]), frame)
    assert "hunter2" not in shown
    assert key.name == "site" and Key(b"x").name == "default"


# --- replies


def test_a_reply_is_bound_to_its_request() -> None:
    reply = parse(auth.reply_to(parse(SEALED), KEY, Status.SUCCESS))
    assert (reply.kind, reply.command, reply.transaction) == (Kind.REPLY, Command.SESSION, 7)
    assert KEY.verify(reply)


@pytest.mark.parametrize("status", list(Status))
def test_a_client_with_a_token_believes_what_the_token_sealed(status: Status) -> None:
    auth.check_reply(parse(auth.reply_to(parse(SEALED), KEY, status)), KEY)


@pytest.mark.parametrize("status", list(Status))
def test_a_reply_without_mac_is_believed_only_if_it_is_a_refusal(status: Status) -> None:
    reply = parse(auth.reply_to(parse(SEALED), None, status))
    auth.check_reply(reply, None)
    if status is not Status.SUCCESS:
        auth.check_reply(reply, KEY)
        assert message_of(reply) == Nothing()
        return
    with pytest.raises(RemoteProtocolError) as caught:
        auth.check_reply(reply, KEY)
    assert caught.value.status is Status.NOT_AUTHORIZED


@pytest.mark.parametrize("status", list(Status))
def test_a_reply_of_another_key_is_never_believed(status: Status) -> None:
    reply = auth.reply_to(parse(SEALED), OTHER, status)
    renamed = reply[:16] + KEY.key_id.to_bytes(4, "big") + reply[20:]
    for data in (reply, renamed):
        with pytest.raises(RemoteProtocolError):
            auth.check_reply(parse(data), KEY)


# --- cookies


def test_a_cookie_is_good_in_its_period_and_the_next() -> None:
    start = 10.0 * COOKIE_SECONDS
    made = auth.cookie(SECRET, ADDRESS, start)
    assert len(made) == 8
    for after, good in [
        (0.0, True),
        (COOKIE_SECONDS - 0.001, True),
        (COOKIE_SECONDS, True),
        (2 * COOKIE_SECONDS - 0.001, True),
        (2 * COOKIE_SECONDS, False),
        (100 * COOKIE_SECONDS, False),
        (-0.001, False),
    ]:
        assert auth.check_cookie(SECRET, ADDRESS, start + after, made) is good, after


def test_a_cookie_of_a_periods_end_lives_for_another_whole_period() -> None:
    end = 10.0 * COOKIE_SECONDS - 0.001
    made = auth.cookie(SECRET, ADDRESS, end)
    assert auth.check_cookie(SECRET, ADDRESS, end + COOKIE_SECONDS, made)
    assert not auth.check_cookie(SECRET, ADDRESS, end + COOKIE_SECONDS + 0.001, made)


def test_a_cookie_of_the_clocks_start_is_good() -> None:
    assert auth.check_cookie(SECRET, ADDRESS, 0.0, auth.cookie(SECRET, ADDRESS, 0.0))


@pytest.mark.parametrize("address", [("192.0.2.7", 40001), ("192.0.2.70", 4000), ("192.0.2.8", 1)])
def test_a_cookie_is_good_for_its_address_only(address: tuple[str, int]) -> None:
    made = auth.cookie(SECRET, ADDRESS, 0.0)
    assert not auth.check_cookie(SECRET, address, 0.0, made)


def test_a_cookie_is_good_under_its_secret_only() -> None:
    made = auth.cookie(SECRET, ADDRESS, 0.0)
    assert not auth.check_cookie(bytes(32), ADDRESS, 0.0, made)
    assert not auth.check_cookie(SECRET, ADDRESS, 0.0, bytes(8))
    assert not auth.check_cookie(SECRET, ADDRESS, 0.0, b"")


# --- claims and proofs


def test_a_claim_depends_on_all_that_it_is_for() -> None:
    claims = {
        auth.claim(secret, client, protocol, proxy)
        for secret in (SECRET, bytes(32))
        for client in (CLIENT, OTHER_CLIENT)
        for protocol in (6, 17)
        for proxy in (("198.51.100.1", 20001), ("198.51.100.1", 20002), ("198.51.100.2", 20001))
    }
    assert len(claims) == 24
    assert {len(claim) for claim in claims} == {16}


LABELS = (
    "join listener", "join connector", "open dialler", "open acceptor", "open confirmed",
    "management",
)


def test_a_proof_holds_for_its_secret_label_and_name_only() -> None:
    every = list(itertools.product((SECRET[:16], bytes(16)), LABELS, (b"name one", b"name two")))
    for one, other in itertools.product(every, every):
        assert auth.check_proof(*other, auth.proof(*one)) is (one == other)


def test_a_proof_over_nonces_holds_for_them_in_their_order_only() -> None:
    every = [(), (b"mine",), (b"theirs",), (b"mine", b"theirs"), (b"theirs", b"mine")]
    for one, other in itertools.product(every, every):
        given = auth.proof(SECRET, "open acceptor", b"name", *one)
        assert auth.check_proof(SECRET, "open acceptor", b"name", given, *other) is (one == other)


def test_parts_do_not_run_into_each_other() -> None:
    assert auth.proof(SECRET, "ab", b"c") != auth.proof(SECRET, "a", b"bc")


def test_a_proof_of_another_length_does_not_hold() -> None:
    right = auth.proof(SECRET, "management", b"challenge")
    for wrong in (b"", right[:-1], right + b"\0"):
        assert not auth.check_proof(SECRET, "management", b"challenge", wrong)
