"""connect() on a registered UDP socket: whom it hears then, what it says of itself."""

from __future__ import annotations

from .test_udp_readiness import POLLERS
from .udp_ground import Relay, odd_relay, relay

__all__ = ["odd_relay", "relay"]


def test_a_socket_connected_through_the_relay_hears_its_peer_and_nobody_else(
    odd_relay: Relay,
) -> None:
    odd_relay.good(
        """
        ours, peer, other = bound(), plain(), plain()
        peer.sendto(b"here", ours.getsockname())
        assert ours.recvfrom(10) == (b"here", peer.getsockname())
        ours.connect(peer.getsockname())
        assert ours.getpeername() == peer.getsockname()
        assert ours.getsockname()[0] == BROKER[0]
        for size in (0, 1, 1400, 65499, 65500, 65507):
            data = os.urandom(size)
            sends = [ours.send, lambda d: ours.sendmsg([d[:5], d[5:]])]
            for send in sends + [ours.sendall] * bool(size):  # gevent's sends nothing for nothing
                assert send(data) in (size, None)
                assert peer.recvfrom(65536) == (data, ours.getsockname())
            # Strangers come first, and neither they nor the broker make it readable.
            other.sendto(b"stranger by relay", ours.getsockname())
            other.sendto(b"stranger beside it", direct(ours))
            peer.sendto(b"the peer, but not by relay", direct(ours))
            tell("flood 10")
            tell("garbage")
            assert not select.select([ours], [], [], 0)[0]
            peer.sendto(data, ours.getsockname())
            assert ours.recv(65536) == data
            assert not select.select([ours], [], [], 0)[0]
        """
    )


def test_a_socket_connected_in_the_kernel_hears_its_peer_and_nobody_else(
    odd_relay: Relay,
) -> None:
    odd_relay.good(
        """
        ours, peer, other = bound(), plain(), plain()
        name = ours.getsockname()
        ours.connect(peer.getsockname())
        assert ours.getpeername() == peer.getsockname()
        assert ours.getsockname() == name
        ours.send(b"hello")
        data, seen = peer.recvfrom(10)
        assert (data, seen) == (b"hello", direct(ours))
        other.sendto(b"stranger by relay", name)
        other.sendto(b"stranger beside it", seen)
        tell("flood 10")
        assert not select.select([ours], [], [], 0)[0]
        peer.sendto(b"answer", seen)
        assert ours.recvfrom(10) == (b"answer", peer.getsockname())
        """
    )


def test_connecting_again_changes_the_peer_whichever_way_it_is_reached(
    odd_relay: Relay,
) -> None:
    odd_relay.good(
        """
        ours, first, second, beside = bound(), plain(), plain(), plain()
        name = ours.getsockname()
        for peer in (first, second):
            peer.sendto(b"here", name)
            assert ours.recv(10) == b"here"
        before = direct(ours)
        for peer in (first, second, beside, first, beside, second):
            ours.connect(peer.getsockname())
            assert ours.getpeername() == peer.getsockname()
            ours.send(b"to you")
            data, seen = peer.recvfrom(10)
            assert (data, seen) == (b"to you", before if peer is beside else name)
            for other in (first, second, beside):
                other.sendto(b"from %d" % other.fileno(), name)
                other.sendto(b"from %d" % other.fileno(), before)
            tell("settle")
            assert ours.recv(100) == b"from %d" % peer.fileno()
            assert not select.select([ours], [], [], 0)[0]
        """
    )


def test_a_connected_socket_still_sends_to_others_that_are_named(relay: Relay) -> None:
    relay.good(
        """
        ours, peer, beside = bound(), plain(), plain()
        peer.sendto(b"here", ours.getsockname())
        ours.recv(10)
        ours.connect(peer.getsockname())
        ours.sendto(b"aside", beside.getsockname())
        assert beside.recvfrom(10) == (b"aside", direct(ours))
        """
    )


def test_refusals_of_a_peer_beside_the_relay_are_the_kernels(relay: Relay) -> None:
    relay.good(
        """
        ours, peer = bound(), plain()
        where = peer.getsockname()
        peer.close()
        ours.connect(where)
        ours.send(b"is there anybody?")
        assert raises(ConnectionRefusedError, ours.recv, 10).errno == errno.ECONNREFUSED
        ours.send(b"once more")
        select.select([ours], [], [], 20)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        """
    )


def test_two_programs_connect_to_each_others_proxy_addresses(relay: Relay) -> None:
    relay.good(
        """
        one, two = bound(), bound()
        one.connect(two.getsockname())
        assert two.connect_ex(one.getsockname()) == 0
        for sender, receiver in ((one, two), (two, one)):
            sender.send(b"hello")
            assert receiver.recvfrom(10) == (b"hello", sender.getsockname())
            assert receiver.getpeername() == sender.getsockname()
        """
    )


def test_dups_of_a_connected_socket_are_connected_in_other_processes_too(relay: Relay) -> None:
    relay.good(
        """
        ours, peer, other = bound(), plain(), plain()
        name = ours.getsockname()
        ours.connect((BROKER[0], name[1]))     # to itself
        copy = ours.dup()
        assert copy.getpeername() == name and copy.getsockname() == name
        copy.send(b"me")
        assert ours.recv(10) == b"me"
        here, there = socket.socketpair()
        child = os.fork()
        if child == 0:
            got = socket.socket(fileno=socket.recv_fds(there, 1, 1)[1][0])
            good = got.getpeername() == name and got.send(b"from the child") == 14
            os._exit(0 if good else 1)
        socket.send_fds(here, [b"x"], [ours.fileno()])
        assert os.waitpid(child, 0)[1] == 0
        assert ours.recv(100) == b"from the child"
        """
    )


def test_a_peer_behind_the_relay_refuses_as_the_kernel_tells_it(relay: Relay) -> None:
    relay.good(
        """
        ours, peer = bound(), plain()
        where = peer.getsockname()
        peer.sendto(b"here", ours.getsockname())
        assert ours.recv(10) == b"here"
        ours.connect(where)
        peer.close()
        receives = [
            lambda: ours.recv(10), lambda: ours.recvfrom(10), lambda: ours.recvmsg(10, 100),
            lambda: ours.recv_into(bytearray(10)), lambda: ours.recv(10, socket.MSG_PEEK),
            lambda: ours.send(b"next"), lambda: ours.sendmsg([b"next"]),
        ]
        for call in receives:
            ours.send(b"is there anybody?")
            assert select.select([ours], [], [], 20)[0]
            assert raises(ConnectionRefusedError, call).errno == errno.ECONNREFUSED
            assert not select.select([ours], [], [], 0)[0], "it is told once"
        """
    )


def test_a_refusal_through_the_relay_awakens_every_poller_and_is_so_error(relay: Relay) -> None:
    relay.good(
        POLLERS
        + """
SO_ERROR = socket.SOL_SOCKET, socket.SO_ERROR
ours, peer = bound(), plain()
where = peer.getsockname()
peer.sendto(b"here", ours.getsockname())
assert ours.recv(10) == b"here"
ours.connect(where)
ours.send(b"hello")
assert peer.recv(10) == b"hello"
peer.sendto(b"first", ours.getsockname())
assert select.select([ours], [], [], 20)[0]
assert ours.getsockopt(*SO_ERROR) == 0
assert ours.recv(10) == b"first", "a look at the error took a datagram"
peer.close()
for poll in POLLERS:
    ours.send(b"is there anybody?")
    assert poll(ours, 20), poll
    assert ours.getsockopt(*SO_ERROR) == errno.ECONNREFUSED
    assert ours.getsockopt(*SO_ERROR) == 0, "it is told once"
    assert not poll(ours, 0), poll
"""
    )


def test_a_socket_that_is_not_connected_hears_nothing_of_refusals(relay: Relay) -> None:
    relay.good(
        """
        ours, gone, other = bound(), plain(), plain()
        for peer in (gone, other):
            peer.sendto(b"here", ours.getsockname())
            assert ours.recv(10) == b"here"
        where = gone.getsockname()
        gone.close()
        for connected in (False, True):
            if connected:
                ours.connect(other.getsockname())
            for _ in range(10):
                ours.sendto(b"anybody?", where)
            ours.sendto(b"answer me", other.getsockname())
            assert other.recvfrom(20) == (b"answer me", ours.getsockname())
            # The relay has told of the refusals before it sent this one's answer.
            assert not select.select([ours], [], [], 0.2)[0]
            other.sendto(b"answer", ours.getsockname())
            assert ours.recvfrom(10) == (b"answer", other.getsockname())
        """
    )
