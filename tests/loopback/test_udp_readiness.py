"""A registered UDP socket is readable when there is something to read, and for nothing else."""

from __future__ import annotations

from .udp_ground import Relay, odd_relay, relay

__all__ = ["odd_relay", "relay"]

# Every poller reports on the socket, while control datagrams and a peer's come.
POLLERS = '''
import selectors
native_select = monkey.get_original("select", "select")
native_poll = monkey.get_original("select", "poll")

def by_select(sock, wait): return bool(select.select([sock], [], [], wait)[0])
def by_native_select(sock, wait): return bool(native_select([sock], [], [], wait)[0])
def by_poll(sock, wait):
    poller = select.poll(); poller.register(sock, select.POLLIN)
    return bool(poller.poll(wait * 1000))
def by_native_poll(sock, wait):
    poller = native_poll(); poller.register(sock, select.POLLIN)
    return bool(poller.poll(wait * 1000))
def by_selector(kind):
    def poll(sock, wait):
        with kind() as selector:
            selector.register(sock, selectors.EVENT_READ)
            return bool(selector.select(wait))
    return poll
def by_original_epoll(sock, wait):
    with monkey.get_original("select", "epoll")() as epoll:
        epoll.register(sock.fileno(), 1)
        return bool(epoll.poll(wait))

POLLERS = [by_select, by_native_select, by_poll, by_native_poll, by_original_epoll,
           by_selector(selectors.DefaultSelector), by_selector(selectors.SelectSelector),
           by_selector(selectors.PollSelector)]
'''


def test_no_poller_reports_control_datagrams(odd_relay: Relay) -> None:
    odd_relay.good(
        POLLERS
        + """
ours, peer = bound(), plain()
for poll in POLLERS:
    assert tell("flood 200") == "done flood"
    assert not poll(ours, 0.05), poll
    peer.sendto(b"data", ours.getsockname())
    assert poll(ours, 20), poll
    assert poll(ours, 0), poll
    assert ours.recv(100) == b"data"
    assert not poll(ours, 0), poll
"""
    )


def test_a_native_poller_in_a_thread_wakes_for_data_alone(odd_relay: Relay) -> None:
    odd_relay.good(
        POLLERS
        + """
ours, peer = bound(), plain()
seen = []
descriptor = os.dup(ours.fileno())
def watch():
    poller = native_poll()
    poller.register(descriptor, select.POLLIN)
    while poller.poll(20000):
        seen.append(os.read(descriptor, 100))
        if seen[-1] == b"end":
            break
    os.write(ended, b"x")
reads, ended = os.pipe()
monkey.get_original("_thread", "start_new_thread")(watch, ())
for _ in range(20):
    tell("flood 50")
    peer.sendto(b"data", direct(ours))
peer.sendto(b"end", direct(ours))
assert native_select([reads], [], [], 30)[0]
assert seen == [b"data"] * 20 + [b"end"], seen
"""
    )


def test_what_a_relay_should_not_send_is_passed_over(odd_relay: Relay) -> None:
    odd_relay.good(
        """
        ours, peer = bound(), plain()
        for kind in ("garbage", "stranger"):
            for receive in (
                lambda: ours.recvfrom(100),
                lambda: (ours.recvfrom(100, socket.MSG_PEEK), ours.recvfrom(100))[1],
                lambda: (ours.recv(100, socket.MSG_PEEK), ours.recvmsg(100)[::3])[1],
            ):
                tell(kind)
                peer.sendto(b"good", ours.getsockname())
                assert receive() == (b"good", peer.getsockname())
                tell(kind)
                ours.settimeout(0)
                raises(BlockingIOError, ours.recv, 100)
                raises(BlockingIOError, ours.recv, 100, socket.MSG_PEEK)
                ours.settimeout(20)
        """
    )


def test_parts_come_in_any_order_and_one_alone_is_nothing(odd_relay: Relay) -> None:
    odd_relay.good(
        """
        ours, peer = bound(), plain()
        one, two = os.urandom(65507), os.urandom(65501)
        for peek in (0, socket.MSG_PEEK):
            tell("reorder")
            peer.sendto(one, ours.getsockname())
            if peek:
                assert ours.recv(70000, peek) == one
                assert select.select([ours], [], [], 0)[0]
            assert ours.recv(70000) == one
            tell("lose")
            peer.sendto(one, ours.getsockname())
            peer.sendto(b"small", ours.getsockname())
            peer.sendto(two, ours.getsockname())
            assert ours.recv(70000) == b"small"
            assert ours.recv(70000) == two
        """
    )


def test_timeouts_and_sockets_that_do_not_block_are_as_ever(relay: Relay) -> None:
    relay.good(
        """
        ours, peer = bound(), plain()
        ours.settimeout(0.05)
        buffer = bytearray(9)
        calls = [(ours.recv, 9), (ours.recvfrom, 9), (ours.recvmsg, 9), (ours.recv_into, buffer),
                 (ours.recvfrom_into, buffer), (ours.recvmsg_into, [buffer])]
        for call, argument in calls:
            assert str(raises(TimeoutError, call, argument)) == "timed out"
        ours.setblocking(False)
        for call, argument in calls:
            assert raises(BlockingIOError, call, argument).errno == errno.EAGAIN
        ours.setblocking(True)
        import gevent
        gevent.spawn_later(0.05, peer.sendto, b"late", ours.getsockname())
        assert ours.recvfrom(9) == (b"late", peer.getsockname())
        """
    )


def test_asyncio_speaks_datagrams_with_peers_by_relay_and_beside_it(odd_relay: Relay) -> None:
    odd_relay.good(
        """
        import asyncio
        class Echo(asyncio.DatagramProtocol):
            def connection_made(self, transport): self.transport = transport
            def datagram_received(self, data, address):
                self.transport.sendto(data[::-1], address)
        class Client(asyncio.DatagramProtocol):
            def __init__(self): self.got = asyncio.get_running_loop().create_future()
            def datagram_received(self, data, address): self.got.set_result((data, address))
        async def main():
            loop = asyncio.get_running_loop()
            server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 0))
            name = server.get_extra_info("sockname")
            assert name[0] == BROKER[0], name
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.settimeout(20)
                peer.bind(("127.0.0.1", 0))  # not registered
                peer.sendto(b"by relay", name)
                got = await loop.run_in_executor(None, peer.recvfrom, 99)
            assert got == (b"yaler yb", name)
            client, protocol = await loop.create_datagram_endpoint(
                Client, local_addr=("0.0.0.0", 0), remote_addr=name)
            assert client.get_extra_info("peername") == name
            tell("flood 20")
            client.sendto(b"hello")
            assert await asyncio.wait_for(protocol.got, 20) == (b"olleh", name)
            client.close()
            server.close()
            await asyncio.sleep(0)
        asyncio.run(main())
        """
    )
