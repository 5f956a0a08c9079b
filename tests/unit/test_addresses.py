"""Reading and writing addresses, and what kind of network they are of."""

import pytest

from gcbpatch.addresses import (
    format_address,
    is_ip,
    is_loopback,
    is_private,
    is_wildcard,
    parse_host_port,
    parse_port,
)


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("9.255.255.255", False),
        ("10.0.0.0", True),
        ("10.255.255.255", True),
        ("11.0.0.0", False),
        ("172.15.255.255", False),
        ("172.16.0.0", True),
        ("172.31.255.255", True),
        ("172.32.0.0", False),
        ("192.167.255.255", False),
        ("192.168.0.0", True),
        ("192.168.255.255", True),
        ("192.169.0.0", False),
        ("100.63.255.255", False),
        ("100.64.0.0", True),
        ("100.127.255.255", True),
        ("100.128.0.0", False),
        ("169.253.255.255", False),
        ("169.254.0.0", True),
        ("169.255.0.0", False),
        ("126.255.255.255", False),
        ("127.0.0.0", True),
        ("127.255.255.255", True),
        ("192.0.2.1", False),
        ("198.51.100.1", False),
        ("203.0.113.1", False),
        ("fbff::1", False),
        ("fc00::", True),
        ("fdff::1", True),
        ("fe00::1", False),
        ("fe80::1", True),
        ("febf::1", True),
        ("fec0::1", False),
        ("::1", True),
        ("::2", False),
        ("2001:db8::1", False),
    ],
)
def test_private_networks_end_where_they_end(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_an_ipv4_address_written_as_ipv6_is_as_private_as_it_was() -> None:
    assert is_private("::ffff:10.0.0.1")
    assert is_private("::ffff:127.0.0.1")
    assert not is_private("::ffff:198.51.100.1")


@pytest.mark.parametrize("host", ["", "localhost", "10.0.0", "10.0.0.1/8"])
def test_a_name_is_of_no_network(host: str) -> None:
    assert not is_ip(host)
    with pytest.raises(ValueError):
        is_private(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.71.67.66", "::1", "::ffff:127.0.0.1"])
def test_loopback_never_leaves_the_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["128.0.0.1", "10.0.0.1", "::2", "::ffff:10.0.0.1", "0.0.0.0"])
def test_other_addresses_do(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("host", "wildcard"),
    [("", True), ("0.0.0.0", True), ("::", True), ("0.0.0.1", False), ("::1", False)],
)
def test_the_wildcard_means_all_addresses(host: str, wildcard: bool) -> None:
    assert is_wildcard(host) is wildcard


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("broker.example", ("broker.example", 7)),
        ("broker.example:65432", ("broker.example", 65432)),
        ("  198.51.100.1:0 ", ("198.51.100.1", 0)),
        ("198.51.100.1:65535", ("198.51.100.1", 65535)),
        ("198.51.100.1:", ("198.51.100.1", 7)),
        ("[2001:db8::1]", ("2001:db8::1", 7)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("2001:db8::1", ("2001:db8::1", 7)),
        ("::1", ("::1", 7)),
    ],
)
def test_hosts_with_and_without_port_are_read(text: str, address: tuple[str, int]) -> None:
    assert parse_host_port(text, 7) == address


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("", "host:port would be right"),
        (":80", "host:port would be right"),
        ("[]:80", "host:port would be right"),
        ("[::1", "[2001:db8::1]:65432 would be"),
        ("[::1]80", "[2001:db8::1]:65432 would be"),
        ("host:http", "a number from 0 to 65535 would be"),
        ("host:65536", "a number from 0 to 65535 would be"),
        ("host:-1", "a number from 0 to 65535 would be"),
        ("host:1 2", "a number from 0 to 65535 would be"),
        ("[::1]:x", "a number from 0 to 65535 would be"),
    ],
)
def test_what_is_no_address_is_refused_with_the_right_form(text: str, right: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_host_port(text, 7)
    assert right in str(caught.value)


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "٣", "65536", "0x50", " 80", "9" * 5000])
def test_a_port_is_digits_up_to_65535(text: str) -> None:
    with pytest.raises(ValueError):
        parse_port(text)


def test_a_wrong_port_is_named() -> None:
    with pytest.raises(ValueError, match="--port: '99999' is not a port"):
        parse_port("99999", "--port")
    assert [parse_port(text) for text in ("0", "80", "00080", "65535")] == [0, 80, 80, 65535]


@pytest.mark.parametrize("address", [("198.51.100.1", 80), ("2001:db8::1", 80), ("::", 0)])
def test_what_is_written_is_read_back(address: tuple[str, int]) -> None:
    assert parse_host_port(format_address(address), 7) == address


def test_ipv6_is_written_with_brackets() -> None:
    assert format_address(("2001:db8::1", 80)) == "[2001:db8::1]:80"
    assert format_address(("198.51.100.1", 80)) == "198.51.100.1:80"
