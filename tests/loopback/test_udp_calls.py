"""Every call that sends or receives on a registered UDP socket, held against the kernel's own."""

from __future__ import annotations

import pytest

from .udp_ground import Relay, relay

__all__ = ["relay"]

# What is received, by every call, of a datagram of some size: on an ordinary socket, on a
# registered one from a peer behind the relay, and on the same from one beside it.
DIFFERENTIAL = '''
import array
T, P = socket.MSG_TRUNC, socket.MSG_PEEK

def into(sock, name, buffer, *args):
    got = getattr(sock, name)(buffer, *args)
    return got, bytes(buffer)

def message_into(sock, sizes, *args):
    buffers = [bytearray(b"." * size) for size in sizes]
    got = sock.recvmsg_into(buffers, *args)
    return got, [bytes(b) for b in buffers]

def valid(got, asked):
    """recv with MSG_TRUNC returns octets that nobody has written."""
    if isinstance(got, tuple):
        return (valid(got[0], asked), *got[1:])
    return len(got), got[:asked]

CALLS = {
    "recv": lambda s: s.recv(65536),
    "recv a little": lambda s: s.recv(3),
    "recv one more": lambda s: s.recv(1401),
    "recv true size": lambda s: valid(s.recv(3, T), 3),
    "recvfrom": lambda s: s.recvfrom(65536),
    "recvfrom huge": lambda s: s.recvfrom(262144),
    "recvfrom a little": lambda s: s.recvfrom(3),
    "recvfrom nothing": lambda s: s.recvfrom(0),
    "recvfrom true size": lambda s: valid(s.recvfrom(3, T), 3),
    "recv_into": lambda s: into(s, "recv_into", bytearray(b"." * 70000)),
    "recv_into array": lambda s: into(s, "recv_into", array.array("I", [7] * 20000)),
    "recv_into a little": lambda s: into(s, "recv_into", bytearray(b"." * 9)),
    "recv_into a part": lambda s: into(s, "recv_into", bytearray(b"." * 70000), 5),
    "recv_into true size": lambda s: into(s, "recv_into", bytearray(b"." * 9), 0, T),
    "recvfrom_into": lambda s: into(s, "recvfrom_into", bytearray(b"." * 70000)),
    "recvfrom_into a part": lambda s: into(s, "recvfrom_into", bytearray(b"." * 9), 4),
    "recvfrom_into empty": lambda s: into(s, "recvfrom_into", bytearray()),
    "recvfrom_into true size": lambda s: into(s, "recvfrom_into", bytearray(b"." * 9), 4, T),
    "recvmsg": lambda s: s.recvmsg(65536),
    "recvmsg a little": lambda s: s.recvmsg(3, 100),
    "recvmsg true size": lambda s: s.recvmsg(3, 0, T),
    "recvmsg_into": lambda s: message_into(s, [70000]),
    "recvmsg_into three": lambda s: message_into(s, [1, 5, 65536]),
    "recvmsg_into a little": lambda s: message_into(s, [1, 0, 5], 100),
    "recvmsg_into nothing": lambda s: message_into(s, []),
    "recvmsg_into true size": lambda s: message_into(s, [1, 5], 0, T),
    "peek recv": lambda s: (s.recv(3, P), s.recv(65536, P), s.recv(65536)),
    "peek recvfrom": lambda s: (s.recvfrom(65536, P), s.recvfrom(65536)),
    "peek recv_into": lambda s: (into(s, "recv_into", bytearray(9), 0, P), s.recv(65536)),
    "peek recvmsg": lambda s: (s.recvmsg(5, 0, P), s.recvmsg(65536)),
    "peek recvmsg_into": lambda s: (message_into(s, [2, 2], 0, P), s.recvmsg(65536)),
    "no wait": lambda s: s.recv(65536, socket.MSG_DONTWAIT),
}

def same(call, one, other, what):
    assert one == other, (call, what, repr(one)[:200], repr(other)[:200])

ours, mirror, peer = bound(), plain(), plain()
ways = {"by relay": ours.getsockname(), "beside it": direct(ours)}
for size in SIZES:
    data = os.urandom(size)
    for call, do in CALLS.items():
        peer.sendto(data, mirror.getsockname())
        expected = do(mirror)
        for way, where in ways.items():
            peer.sendto(data, where)
            assert select.select([ours], [], [], 20)[0]
            same((call, size), do(ours), expected, way)
    assert not select.select([ours, mirror], [], [], 0)[0]
'''


@pytest.mark.parametrize("sizes", ["0, 1, 2, 8, 9, 1400", "1401, 65498, 65499", "65507"])
def test_what_is_received_is_what_an_ordinary_socket_receives(relay: Relay, sizes: str) -> None:
    relay.good(DIFFERENTIAL.replace("SIZES", f"({sizes},)"))


@pytest.mark.parametrize("size", [65500, 65501, 65506, 65507])
def test_what_needs_two_parts_is_received_by_every_call(relay: Relay, size: int) -> None:
    # select() reports the first part; a call that does not wait may find nothing yet.
    program = DIFFERENTIAL.replace("SIZES", f"({size},)")
    relay.good(program.replace('    "no wait"', '    #"no wait"'))


SENDING = '''
import array
ours, peer = bound(), plain()
relayed, beside = plain(), plain()
relayed.sendto(b"here", ours.getsockname())
assert ours.recvfrom(100) == (b"here", relayed.getsockname())

def sends(sock, data, where):
    middle = len(data) // 2
    yield sock.sendto(data, where)
    yield sock.sendto(bytearray(data), 0, where)
    yield sock.sendto(memoryview(data), socket.MSG_DONTWAIT, where)
    yield sock.sendto(array.array("B", data), where)
    yield sock.sendmsg([data], (), 0, where)
    yield sock.sendmsg([data[:middle], b"", bytearray(data[middle:])], (), 0, where)
    yield sock.sendmsg(iter([data]), [], socket.MSG_DONTWAIT, where)

for size in (0, 1, 1400, 65498, 65499, 65500, 65501, 65506, 65507):
    data = os.urandom(size)
    for other, name in ((relayed, ours.getsockname()), (beside, direct(ours))):
        for sent in sends(ours, data, other.getsockname()):
            assert sent == size, (sent, size)
            assert other.recvfrom(65536) == (data, name), size
for sock in (ours, peer):
    for where in (relayed.getsockname(), beside.getsockname()):
        assert raises(OSError, sock.sendto, bytes(65508), where).errno == errno.EMSGSIZE
        assert raises(OSError, sock.sendmsg, [bytes(65507), b"x"], (), 0, where).errno == (
            errno.EMSGSIZE
        )
'''


def test_every_way_to_send_reaches_peers_by_the_relay_and_beside_it(relay: Relay) -> None:
    relay.good(SENDING)


def test_two_programs_behind_the_relay_know_each_other_by_their_proxy_addresses(
    relay: Relay,
) -> None:
    relay.good(
        """
        one, two = bound(), bound()
        for size in (0, 1, 1400, 65499, 65500, 65507):
            data = os.urandom(size)
            one.sendto(data, two.getsockname())
            assert two.recvfrom(65536) == (data, one.getsockname()), size
            two.sendto(data[::-1], one.getsockname())
            assert one.recvfrom(65536) == (data[::-1], two.getsockname()), size
        one.sendto(b"self", one.getsockname())
        assert one.recvfrom(100) == (b"self", one.getsockname())
        """
    )


def test_wrong_arguments_raise_what_an_ordinary_socket_raises(relay: Relay) -> None:
    relay.good(
        """
        import decimal
        ours, mirror, peer = bound(), plain(), plain()
        peer.sendto(b"here", ours.getsockname())
        ours.recvfrom(10)
        relayed = peer.getsockname()
        class Odd:
            def __index__(self): return 3
        buffer, frozen = bytearray(10), b"1234567890"
        odd = memoryview(bytearray(10))[::2]
        WRONG = [
            ("recv",), ("recv", -1), ("recv", "x"), ("recv", 1.5), ("recv", 1, "x"),
            ("recv", 1, 2, 3), ("recv", 1, 2**40), ("recv", 2**70), ("recv", None),
            ("recvfrom",), ("recvfrom", -1), ("recvfrom", "x"), ("recvfrom", 1, 2, 3),
            ("recvmsg",), ("recvmsg", -1), ("recvmsg", 10, -1), ("recvmsg", 10, "x"),
            ("recvmsg", 10, 2**33), ("recvmsg", 10, 0, 0, 0),
            ("recv_into",), ("recv_into", frozen), ("recv_into", "text"), ("recv_into", odd),
            ("recv_into", buffer, 11), ("recv_into", buffer, -1), ("recv_into", buffer, "x"),
            ("recv_into", buffer, 1, "x"), ("recv_into", None),
            ("recvfrom_into",), ("recvfrom_into", frozen), ("recvfrom_into", buffer, 11),
            ("recvfrom_into", buffer, -1), ("recvfrom_into", buffer, 0, 1.5),
            ("recvmsg_into",), ("recvmsg_into", 5), ("recvmsg_into", [frozen]),
            ("recvmsg_into", [buffer, "x"]), ("recvmsg_into", [buffer], -1),
            ("recvmsg_into", [buffer], 0, "x"), ("recvmsg_into", [odd]),
            ("sendto",), ("sendto", b"x"), ("sendto", b"x", 0, relayed, 1),
            ("sendto", "x", relayed), ("sendto", b"x", "x", relayed), ("sendto", b"x", None),
            ("sendto", b"x", ("127.0.0.1",)),
            ("sendto", b"x", ("127.0.0.1", 1, 2)), ("sendto", b"x", ["127.0.0.1", 9]),
            ("sendto", b"x", (BROKER[0], 70000)), ("sendto", b"x", (BROKER[0], -1)),
            ("sendto", b"x", (BROKER[0], "9")), ("sendto", b"x", (BROKER[0], 9.5)),
            ("sendto", b"x", (BROKER[0], 0)), ("sendto", b"x", (7, 9)), ("sendto", b"x", ([], 9)),
            ("sendto", b"x", ("127.0.0.1", None)), ("sendto", odd, relayed), ("sendto", 5, relayed),
            ("sendto", b"x", "/tmp/x"), ("sendto", b"x", ("2001:db8::1", 9)),
            ("sendto", b"x", ("no such host.", 9)), ("sendto", b"x", 1.5, relayed),
            ("send", b"x"), ("sendmsg", [b"x"]), ("sendmsg", 5, (), 0, relayed),
            ("sendmsg", ["x"], (), 0, relayed), ("sendmsg", [b"x"], 5, 0, relayed),
            ("sendmsg", [b"x"], (), "x", relayed), ("sendmsg", [b"x"], [(1, 2)], 0, relayed),
            ("sendmsg", [b"x"], (), 0, ("127.0.0.1",)), ("sendmsg", [b"x"], (), 0, "x"),
            ("connect", ("127.0.0.1",)), ("connect", 5), ("connect", (BROKER[0], 70000)),
            ("getpeername",), ("listen", 1),
        ]
        for name, *args in WRONG:
            wrong = []
            for sock in (mirror, ours):
                real = sock._sock if sock is ours else sock
                try:
                    wrong.append((None, getattr(real, name)(*args)))
                except Exception as error:
                    wrong.append((type(error), str(error).replace("_wrefsocket", "socket")))
            assert wrong[0][0] is not None, (name, args, wrong)
            assert wrong[0] == wrong[1], (name, args, wrong)
        peer.sendto(b"12345", ours.getsockname())
        assert ours.recv(Odd()) == b"123"
        """
    )
