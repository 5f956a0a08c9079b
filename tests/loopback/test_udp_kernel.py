"""What the kernel tells and does for UDP ports: ends of sockets, filters, siblings."""

from __future__ import annotations

import _socket
import os
import select
import socket

import pytest

from gcbpatch.agent import sockdiag
from gcbpatch.sockets import demux
from gcbpatch.sockets.demux import Label
from gcbpatch.sockets.table import cookie_of


def bound() -> _socket.socket:
    sock = _socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize("ports", [1, 64, 65])
def test_ends_of_udp_sockets_are_told_for_the_ports_asked_for(ports: int) -> None:
    with sockdiag.open_datagram_events() as events:
        ours = bound()
        cookie, port = cookie_of(ours), ours.getsockname()[1]
        sockdiag.only_ports(events, [port, *range(1, ports)])
        assert cookie in sockdiag.datagram_sockets()
        copy = ours.dup() if hasattr(ours, "dup") else _socket.socket(fileno=os.dup(ours.fileno()))
        ours.connect(("127.0.0.1", 9))
        ours.close()
        assert cookie in sockdiag.datagram_sockets()
        copy.close()
        assert cookie not in sockdiag.datagram_sockets()
        ended: set[int] = set()
        while cookie not in ended:
            assert select.select([events], [], [], 20)[0]
            ended |= set(sockdiag.ended(events.recv(65536)))


def test_a_label_is_read_from_any_descriptor_of_the_socket() -> None:
    ours, other = bound(), bound()
    assert demux.label_of(ours) is None and not demux.has_filter(ours)
    for peer in (None, ("192.0.2.7", 9), ("255.255.255.255", 65535)):
        label = Label(os.urandom(8), os.urandom(16), ("198.51.100.1", 65535), ("10.0.0.1", 1), peer)
        demux.attach(ours, label)
        assert demux.label_of(_socket.socket(fileno=os.dup(ours.fileno()))) == label
    demux.detach(ours)
    assert demux.label_of(ours) is None
    assert demux.label_of(other) is None


def test_a_filter_of_the_programs_own_is_no_label() -> None:
    ours = bound()
    demux._set(ours, 26, [(0x06, 0, 0, 0xFFFFFFFF)] * 1)
    assert demux.has_filter(ours) and demux.label_of(ours) is None
    demux._set(ours, 26, [(0x00, 0, 0, 7)] * 2000 + [(0x06, 0, 0, 0xFFFFFFFF)])
    assert demux.has_filter(ours) and demux.label_of(ours) is None


def test_a_sibling_gets_the_magic_and_nothing_else_even_when_the_socket_is_gone() -> None:
    ours, peer = bound(), bound()
    magic, name = os.urandom(8), ours.getsockname()
    sibling = demux.sibling_of(ours, magic)
    sibling.settimeout(20)
    ours.settimeout(20)
    for data in (b"", magic[:7], magic[:4] + b"else", b"x" + magic, magic + b"control"):
        peer.sendto(data, name)
    assert [ours.recv(100) for _ in range(4)] == [b"", magic[:7], magic[:4] + b"else", b"x" + magic]
    assert sibling.recv(100) == magic + b"control"
    ours.close()
    peer.sendto(b"for nobody", name)
    peer.sendto(magic, name)
    assert sibling.recv(100) == magic
