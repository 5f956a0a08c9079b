"""Bodies: every bound that docs/protocol.md names, from both sides."""

from typing import Any

import msgspec
import pytest

from gcbpatch.errors import RemoteProtocolError, Status
from gcbpatch.wire.codec import HEADER, Kind, build, message_of, parse
from gcbpatch.wire.messages import (
    Call,
    Command,
    Endpoint,
    Hello,
    HelloReply,
    Message,
    Path,
    PathKind,
    Register,
)
from tests.unit.vectors import FrameVector, frames

EXAMPLES = {(v.kind, v.command): v for v in frames() if v.body is not None}
RAW = msgspec.msgpack.Encoder()
ID, SHORT, SECRET = bytes(16), bytes(8), bytes(16)


def read(command: Command, fields: Any, kind: Kind = Kind.REQUEST) -> Message:
    body = RAW.encode(fields)
    return message_of(parse(HEADER.pack(b"GB", 1, kind, command, 0, len(body), 1, 0) + body))


def example(command: Command, kind: Kind, **changed: Any) -> list[Any]:
    vector = EXAMPLES[kind, command]
    assert vector.body is not None and set(changed) <= set(vector.body)
    return list((vector.body | changed).values())


def refused(command: Command, kind: Kind, **changed: Any) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        read(command, example(command, kind, **changed), kind)
    assert caught.value.status is Status.MALFORMED
    assert command.name in str(caught.value)


def taken(command: Command, kind: Kind, **changed: Any) -> None:
    message = read(command, example(command, kind, **changed), kind)
    for name, value in changed.items():
        assert RAW.encode(getattr(message, name)) == RAW.encode(value)


Q, R = Kind.REQUEST, Kind.REPLY
ADDRESS = ["192.0.2.1", 1]

SIZED = {
    "client": (16, 16),
    "listener": (16, 16),
    "cookie": (8, 8),
    "epoch": (8, 8),
    "rendezvous": (8, 8),
    "secret": (16, 16),
    "proof": (16, 16),
    "challenge": (16, 16),
    "claim": (0, 16),
    "padding": (0, 256),
    "there": (0, 8),
}
"""Octet strings with their least and greatest length; ``nonce`` depends on the command."""


def sized() -> list[tuple[Command, Kind, str, int, int]]:
    found = [
        (command, kind, name, *SIZED[name])
        for (kind, command), vector in EXAMPLES.items()
        for name in vector.body or ()
        if name in SIZED and (command, name) != (Command.CALL, "challenge")
    ]
    found += [(Command.CALL, Q, "challenge", 0, 16), (Command.CALL, Q, "half", 0, 16)]
    found += [(Command.CONNECT, Q, "nonce", 0, 16)]
    found += [(Command.REGISTER, Q, "nonce", 8, 8), (Command.CALL, Q, "nonce", 8, 8)]
    found += [(Command.OPEN, Q, "nonce", 16, 16), (Command.OPEN, R, "nonce", 16, 16)]
    found += [(Command.MEET, Q, "nonce", 8, 8), (Command.PROBE, Q, "magic", 0, 16)]
    found += [(Command.JOIN, Q, "nonce", 0, 16), (Command.JOIN, R, "nonce", 0, 16)]
    found += [(Command.PARK, Q, "nonce", 0, 16)]
    return [*found, (Command.FORWARD, Q, "nonce", 16, 16)]


def test_every_octet_string_of_every_command_is_bounded() -> None:
    names = {(c, k, name) for c, k, name, _, _ in sized()}
    for (kind, command), vector in EXAMPLES.items():
        for name, value in (vector.body or {}).items():
            assert not isinstance(value, bytes) or (command, kind, name) in names


@pytest.mark.parametrize(("command", "kind", "name", "least", "most"), sized())
def test_octet_strings_of_another_length_are_malformed(
    command: Command, kind: Kind, name: str, least: int, most: int
) -> None:
    taken(command, kind, **{name: bytes(least)})
    taken(command, kind, **{name: bytes(most)})
    refused(command, kind, **{name: bytes(most + 1)})
    if least:
        refused(command, kind, **{name: bytes(least - 1)})
        refused(command, kind, **{name: b""})


NUMBERS = [
    (Command.REGISTER, Q, "wished", 0, 65535),
    (Command.REGISTER, Q, "family", 0, 6),
    (Command.HELLO, R, "relay_port", 0, 65535),
    (Command.HELLO, R, "free", 0, 2**31 - 1),
    (Command.PROBE, Q, "protocol", 6, 17),
    (Command.PROBE, Q, "port", 1, 65535),
    (Command.PARK, Q, "port", 0, 65535),
    (Command.PARK, R, "patience", 0, 86400),
    (Command.JOIN, Q, "port", 0, 65535),
    (Command.HELLO, R, "second", 0, 65535),
    (Command.JOIN, R, "wait", 0, 60000),
    (Command.JOIN, R, "round_trip", 0, 60000),
    (Command.ASK, Q, "protocol", 6, 17),
    (Command.ASK, Q, "port", 1, 65535),
    (Command.REGISTER, Q, "protocol", 6, 17),
    (Command.CONNECT, Q, "port", 0, 65535),
    (Command.CONNECT, Q, "half", 0, 65535),
    (Command.CONNECT, Q, "round_trip", 0, 60000),
    (Command.CONNECT, Q, "protocol", 6, 17),
    (Command.FORWARD, Q, "protocol", 6, 17),
    (Command.QUERY, Q, "protocol", 6, 17),
    (Command.REGISTER, Q, "lifetime", 0, 86400),
    (Command.REGISTER, R, "relay", 0, 65535),
    (Command.FLOW, R, "lifetime", 0, 86400),
    (Command.REGISTER, R, "lifetime", 0, 86400),
    (Command.REFRESH, R, "lifetime", 0, 86400),
    (Command.FORWARD, Q, "lifetime", 0, 2**32 - 1),
    (Command.FORWARD, R, "lifetime", 0, 86400),
    (Command.RENEW, R, "lifetime", 0, 86400),
]


def test_no_number_is_without_bounds() -> None:
    named = {(command, kind, name) for command, kind, name, _, _ in NUMBERS}
    for (kind, command), vector in EXAMPLES.items():
        for name, value in (vector.body or {}).items():
            number = isinstance(value, int) and not isinstance(value, bool)
            assert not number or (command, kind, name) in named


@pytest.mark.parametrize(("command", "kind", "name", "least", "most"), NUMBERS)
def test_numbers_out_of_their_bounds_are_malformed(
    command: Command, kind: Kind, name: str, least: int, most: int
) -> None:
    for value in (least, most):
        taken(command, kind, **{name: value})
    for value in (least - 1, most + 1, 2**64 - 1, float(least), str(least), True, None):
        refused(command, kind, **{name: value})


LISTS = [
    (Command.REGISTER, Q, "local", ADDRESS, 8),
    (Command.CONNECT, Q, "local", ADDRESS, 8),
    (Command.REFRESH, Q, "listeners", ID, 32),
    (Command.REFRESH, R, "lost", ID, 32),
    (Command.CONNECT, R, "paths", [5, []], 8),
    (Command.CALL, Q, "paths", [5, []], 8),
    (Command.SESSION, R, "public", "192.0.2.1", 64),
    (Command.RENEW, Q, "listeners", ID, 64),
    (Command.RENEW, R, "lost", ID, 64),
]


def test_no_list_is_without_bounds() -> None:
    named = {(command, kind, name) for command, kind, name, _, _ in LISTS}
    for (kind, command), vector in EXAMPLES.items():
        for name, value in (vector.body or {}).items():
            address = isinstance(value, list) and [type(item) for item in value] == [str, int]
            known = address or name in ("card", "early") or (command, kind, name) in named
            assert not isinstance(value, list) or known


@pytest.mark.parametrize(("command", "kind"), [(Command.CONNECT, R), (Command.CALL, Q)])
@pytest.mark.parametrize(
    "early",
    [
        pytest.param([["a name", 1], bytes(16), 0, 0], id="a place that is no address"),
        pytest.param([ADDRESS, bytes(17), 0, 0], id="a nonce too long"),
        pytest.param([ADDRESS, bytes(16), -1, 0], id="a wait below zero"),
        pytest.param([ADDRESS, bytes(16), 0, 60001], id="a round trip too long"),
        pytest.param(bytes(16), id="no introduction"),
    ],
)
def test_an_early_introduction_is_as_bounded_as_a_late_one(
    command: Command, kind: Kind, early: object
) -> None:
    taken(command, kind, early=[ADDRESS, bytes(16), 0, 60000])
    taken(command, kind, early=None)
    refused(command, kind, early=early)


@pytest.mark.parametrize("command", [Command.INTRODUCE, Command.MEET])
@pytest.mark.parametrize(
    ("place", "right", "wrong"),
    [
        pytest.param(0, [ADDRESS], [None, [], ["a name", 1]], id="peer"),
        pytest.param(1, [bytes(16)], [bytes(15), bytes(17)], id="secret"),
        pytest.param(2, [bytes(8)], [bytes(7), bytes(9)], id="magic"),
        pytest.param(3, [bytes(8)], [bytes(7), bytes(9)], id="tag"),
        pytest.param(4, [[], [ADDRESS] * 8], [[ADDRESS] * 9, [None]], id="places"),
        pytest.param(5, ["", "n" * 64], ["n" * 65, 0], id="network"),
        pytest.param(6, [b"", bytes(16)], [bytes(17)], id="knows"),
        pytest.param(7, [True, False], [0, None], id="translated"),
    ],
)
def test_every_field_of_a_card_is_bounded(
    command: Command, place: int, right: list[Any], wrong: list[Any]
) -> None:
    vector = EXAMPLES[Q, command]
    assert vector.body is not None
    card = vector.body["card"]
    for value in right:
        taken(command, Q, card=[*card[:place], value, *card[place + 1 :]])
    for value in wrong:
        refused(command, Q, card=[*card[:place], value, *card[place + 1 :]])


@pytest.mark.parametrize(("command", "kind", "name", "item", "most"), LISTS)
def test_lists_with_too_much_in_them_are_malformed(
    command: Command, kind: Kind, name: str, item: Any, most: int
) -> None:
    taken(command, kind, **{name: []})
    taken(command, kind, **{name: [item] * most})
    refused(command, kind, **{name: [item] * (most + 1)})
    refused(command, kind, **{name: [None]})


def test_a_path_names_at_most_eight_addresses() -> None:
    taken(Command.CALL, Q, paths=[[3, [ADDRESS] * 8]])
    refused(Command.CALL, Q, paths=[[3, [ADDRESS] * 9]])


@pytest.mark.parametrize("kind", [0, 6, 255, "DIRECT"])
def test_a_path_of_another_kind_is_malformed(kind: Any) -> None:
    refused(Command.CALL, Q, paths=[[kind, []]])


@pytest.mark.parametrize("command", [Command.REGISTER, Command.CONNECT])
def test_a_network_has_at_most_64_characters(command: Command) -> None:
    taken(command, Q, network="n" * 64)
    refused(command, Q, network="n" * 65)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "",
        "1",
        "1.2.3",
        "1.2.3.4.5",
        "256.1.1.1",
        "01.2.3.4",
        "1.2.3.4/8",
        "1.2.3.4 ",
        "١.2.3.4",
        ":::",
        "[::1]",
        "g::1",
        "1" * 46,
    ],
)
def test_a_host_is_an_address_in_numbers(host: str) -> None:
    refused(Command.QUERY, Q, public=[host, 1])


@pytest.mark.parametrize("host", ["fe80::1%eth0", "fe80::1%\n", "fe80::1%a b"])
def test_a_host_has_no_zone(host: str) -> None:
    """A zone means something on the sender's host only, and may hold any character."""
    refused(Command.QUERY, Q, public=[host, 1])


@pytest.mark.parametrize("host", ["0.0.0.0", "255.255.255.255", "::", "2001:db8::1"])
def test_ipv4_and_ipv6_are_taken(host: str) -> None:
    taken(Command.QUERY, Q, public=[host, 65535])
    refused(Command.QUERY, Q, public=[host, 65536])
    refused(Command.QUERY, Q, public=[host])


def test_the_longest_address_there_is_fits() -> None:
    taken(Command.QUERY, Q, public=["0000:0000:0000:0000:0000:ffff:255.255.255.255", 1])


@pytest.mark.parametrize("vector", EXAMPLES.values(), ids=lambda vector: vector.name)
def test_fields_that_a_later_version_appends_are_passed_over(vector: FrameVector) -> None:
    assert vector.body is not None
    fields = [*vector.body.values(), [1, {"a": b"b"}], None]
    assert read(vector.command, fields, vector.kind) == vector.message()


@pytest.mark.parametrize("vector", EXAMPLES.values(), ids=lambda vector: vector.name)
def test_a_body_with_too_few_fields_is_malformed(vector: FrameVector) -> None:
    assert vector.body is not None
    fields = list(vector.body.values())
    optional = len(vector.message_type.__struct_defaults__)
    for count in range(len(fields) - optional):
        with pytest.raises(RemoteProtocolError) as caught:
            read(vector.command, fields[:count], vector.kind)
        assert caught.value.status is Status.MALFORMED
    for count in range(len(fields) - optional, len(fields)):
        read(vector.command, fields[:count], vector.kind)


@pytest.mark.parametrize("vector", EXAMPLES.values(), ids=lambda vector: vector.name)
def test_a_body_is_an_array_and_nothing_else(vector: FrameVector) -> None:
    for body in (vector.body, None, 1, "text", b"bytes", [[]]):
        with pytest.raises(RemoteProtocolError):
            read(vector.command, body, vector.kind)


@pytest.mark.parametrize("vector", EXAMPLES.values(), ids=lambda vector: vector.name)
def test_every_field_refuses_another_type(vector: FrameVector) -> None:
    assert vector.body is not None
    for name in vector.body:
        refused(vector.command, vector.kind, **{name: {"a": 1}})
        refused(vector.command, vector.kind, **{name: 1.5})


def test_text_is_not_taken_for_octets_nor_octets_for_text() -> None:
    refused(Command.HELLO, Q, client="c" * 16)
    refused(Command.REGISTER, Q, network=b"name")


@pytest.mark.parametrize("value", [0, 1, None, "yes"])
def test_yes_and_no_are_not_numbers(value: Any) -> None:
    refused(Command.CALL, Q, commit=value)
    refused(Command.JOIN, Q, listening=value)
    refused(Command.OPEN, Q, listening=value)


def test_what_may_be_absent_is_nil() -> None:
    taken(Command.REGISTER, Q, proxy=None)
    taken(Command.FORWARD, Q, wished=None)
    refused(Command.FORWARD, Q, inside=None)


def test_defaults_are_what_the_document_says() -> None:
    hello = read(Command.HELLO, [ID])
    assert hello == Hello(ID, bytes(128))
    short = read(Command.REGISTER, [ID, SHORT, ID, 6, 0, SHORT, [], "", 30])
    assert isinstance(short, Register)
    assert (short.proxy, short.claim) == (None, b"")


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Endpoint("192.0.2.1", 1).port = 2  # type: ignore[misc]


def test_an_endpoint_is_a_socket_address_and_back() -> None:
    assert Endpoint.of(("192.0.2.1", 1)).address == ("192.0.2.1", 1)
    with pytest.raises(ValueError, match="localhost"):
        Endpoint("localhost", 1)


def test_commands_of_gcb_and_dpf_have_their_own_ranges() -> None:
    gcb = {Command.HELLO, Command.REGISTER, Command.REFRESH, Command.UNREGISTER, Command.CONNECT}
    gcb |= {Command.CALL, Command.JOIN, Command.OPEN, Command.GO, Command.FLOW, Command.PROBE}
    gcb |= {Command.CONFIRM, Command.PUNCH, Command.PARK, Command.ASK}
    gcb |= {Command.INTRODUCE, Command.MEET, Command.WAY}
    for command in Command:
        assert command in ((*range(1, 16), *range(45, 60)) if command in gcb else range(16, 32))


def test_paths_are_read_as_kinds() -> None:
    call = read(Command.CALL, example(Command.CALL, Q, paths=[[4, [ADDRESS]]]))
    assert isinstance(call, Call)
    assert call.paths == [Path(PathKind.PUNCHED, [Endpoint("192.0.2.1", 1)])]


def test_hello_is_padded_for_the_longest_answer_there_can_be() -> None:
    """Or an agent that says no more than the default would never be answered by IPv6."""
    host = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255"
    longest = HelloReply(bytes(8), bytes(8), Endpoint(host, 65535), 65535, host, 2**31 - 1)
    answer = build(Kind.REPLY, Command.HELLO, 1, longest)
    assert len(answer) <= len(build(Kind.REQUEST, Command.HELLO, 1, Hello(ID)))
