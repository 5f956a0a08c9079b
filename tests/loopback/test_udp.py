"""Registered UDP sockets: who is one, what they share, how they begin and end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .udp_ground import Relay, brokering, odd_relay, relay

__all__ = ["odd_relay", "relay"]


def test_a_bound_socket_is_reached_at_its_proxy_address(relay: Relay) -> None:
    relay.good(
        """
        ours, peer = bound(), plain()
        assert type(ours) is socket.socket
        assert kernel_name(ours)[0] == "0.0.0.0"
        peer.sendto(b"hello", ours.getsockname())
        assert ours.recvfrom(100) == (b"hello", peer.getsockname())
        ours.sendto(b"hello to you", peer.getsockname())
        assert peer.recvfrom(100) == (b"hello to you", ours.getsockname())
        """
    )


def test_sockets_that_are_not_registered_are_gevents_own(odd_relay: Relay) -> None:
    odd_relay.good(
        """
        from gcbpatch.sockets.raw import Raw
        from gevent._socket3 import _wrefsocket
        def datagram(*options):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            for option in options:
                sock.setsockopt(*option)
            return sock
        unbound, outbound, local, shared = datagram(), datagram(), datagram(), datagram()
        outbound.connect(("127.0.0.1", 9))
        local.bind(("127.0.0.1", 0))
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(("", 0))
        group = datagram()
        group.bind(("224.1.1.1", 0))
        six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        six.bind(("::1", 0))
        unix, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for sock in (unbound, outbound, local, shared, group, six, unix):
            assert type(sock._sock) is Raw, sock
            for name in "recv recvfrom recv_into recvfrom_into recvmsg recvmsg_into".split() + [
                    "send", "sendto", "sendmsg"]:
                assert getattr(Raw, name) is getattr(_wrefsocket, name)
        assert local.getsockname() == kernel_name(local)
        assert shared.getsockname() == kernel_name(shared)
        assert tell("proxies") == "proxies 0"
        """
    )
    assert "agent[" not in odd_relay.log.read_text(), "none of them needs an agent"


def test_a_port_that_is_in_use_is_in_use(relay: Relay) -> None:
    relay.good(
        """
        ours = bound()
        port = kernel_name(ours)[1]
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
        for kind in (socket.socket, Plain):
            with kind(socket.AF_INET, socket.SOCK_DGRAM) as other:
                assert raises(OSError, other.bind, ("", port)).errno == errno.EADDRINUSE
        assert raises(OSError, ours.bind, ("", 0)).errno == errno.EINVAL
        """
    )


def test_a_port_that_was_given_up_is_free_at_once(relay: Relay) -> None:
    relay.good(
        """
        port = 0
        for _ in range(30):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("", port))
                port = kernel_name(sock)[1]
                assert sock.getsockname()[0] == BROKER[0]
        child = os.fork()
        if child == 0:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("", port))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    )


def test_the_proxy_address_goes_with_the_last_descriptor(relay: Relay) -> None:
    relay.good(
        """
        ours = bound()
        copy = ours.dup()
        ours.close()
        peer = plain()
        peer.sendto(b"still", copy.getsockname())
        assert copy.recv(10) == b"still"
        peer.connect(copy.getsockname())
        copy.close()
        while True:
            try:
                peer.send(b"anybody?")
            except ConnectionRefusedError:
                break
            time.sleep(0.01)
        """
    )


def test_dup_fromfd_detach_and_descriptors_in_messages_carry_the_address_along(
    relay: Relay,
) -> None:
    relay.good(
        """
        from gcbpatch.sockets.datagram import Datagram
        ours, peer = bound(), plain()
        name = ours.getsockname()
        def check(sock):
            assert type(sock._sock) is Datagram and sock.getsockname() == name
            sock.settimeout(20)
            peer.sendto(b"hello", name)
            assert sock.recvfrom(10) == (b"hello", peer.getsockname())
            sock.sendto(b"back", peer.getsockname())
            assert peer.recvfrom(10) == (b"back", name)
        check(ours.dup())
        check(socket.fromfd(ours.fileno(), socket.AF_INET, socket.SOCK_DGRAM))
        here, there = socket.socketpair()
        socket.send_fds(here, [b"x"], [ours.fileno()])
        check(socket.socket(fileno=socket.recv_fds(there, 1, 1)[1][0]))
        check(socket.socket(fileno=ours.detach()))
        """
    )


def test_other_processes_get_the_address_with_the_descriptor(relay: Relay) -> None:
    relay.good(
        """
        import subprocess
        there, here = socket.socketpair()
        child = os.fork()          # before there is anything that it could inherit
        if child == 0:
            got = socket.socket(fileno=socket.recv_fds(there, 1, 1)[1][0])
            data, peer = got.recvfrom(100)
            got.sendto(data + b" by message from %d" % got.getsockname()[1], peer)
            os._exit(0)
        ours, peer = bound(), plain()
        name = ours.getsockname()
        socket.send_fds(here, [b"x"], [ours.fileno()])
        peer.sendto(b"hello", name)
        assert peer.recvfrom(100) == (b"hello by message from %d" % name[1], name)
        assert os.waitpid(child, 0)[1] == 0

        program = '''if True:
            import gcbpatch; gcbpatch.patch_all()
            import socket
            got = socket.socket(fileno=FD)
            data, peer = got.recvfrom(100)
            got.sendto(data + b" by exec from %d" % got.getsockname()[1], peer)
        '''.replace("FD", str(ours.fileno()))
        peer.sendto(b"hello", name)
        subprocess.run([sys.executable, "-c", program], pass_fds=[ours.fileno()], check=True)
        assert peer.recvfrom(100) == (b"hello by exec from %d" % name[1], name)
        """
    )


def test_forked_children_answer_at_the_address_that_was_asked(relay: Relay) -> None:
    relay.good(
        """
        import socketserver
        class Echo(socketserver.BaseRequestHandler):
            def handle(self):
                data, sock = self.request
                sock.sendto(b"%d " % os.getpid() + data, self.client_address)
        class Server(socketserver.ForkingMixIn, socketserver.UDPServer):
            pass
        with Server(("", 0), Echo) as server:
            name = server.server_address
            assert name[0] == BROKER[0]
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(20)
            client.bind(("127.0.0.1", 0))
            for number in range(3):
                client.sendto(b"%d" % number, name)
                server.handle_request()
                data, address = client.recvfrom(100)
                assert address == name and data.split()[1] == b"%d" % number
                assert int(data.split()[0]) != os.getpid()
        """
    )


def test_a_threading_server_serves_peers_by_relay_and_beside_it(relay: Relay) -> None:
    relay.good(
        """
        import socketserver
        class Echo(socketserver.DatagramRequestHandler):
            def handle(self):
                self.wfile.write(self.rfile.read()[::-1])
        with socketserver.ThreadingUDPServer(("", 0), Echo) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            for name in (server.server_address, direct(server.socket)):
                client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                client.settimeout(20)
                client.bind(("127.0.0.1", 0))
                client.sendto(b"hello", name)
                assert client.recvfrom(100) == (b"olleh", name)
            server.shutdown()
        """
    )


def test_ancillary_data_of_every_kind_is_kept(relay: Relay) -> None:
    relay.good(
        """
        IP_PKTINFO = 8
        ours, peer = bound(), plain()
        ours.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        ours.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        for where in (ours.getsockname(), direct(ours)):
            peer.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
            peer.sendto(b"hello", where)
            data, ancillary, flags, address = ours.recvmsg(100, 200)
            assert (data, flags, address) == (b"hello", 0, peer.getsockname())
            kinds = {kind for level, kind, _ in ancillary if level == socket.IPPROTO_IP}
            assert {IP_PKTINFO, socket.IP_TOS} <= kinds, ancillary
            peer.sendto(b"hello", where)
            data, ancillary, flags, address = ours.recvmsg(100, 16)
            assert flags == socket.MSG_CTRUNC, flags
            peer.sendto(b"hello", where)
            buffer = bytearray(3)
            size, ancillary, flags, address = ours.recvmsg_into([buffer], 200)
            assert (size, bytes(buffer), flags) == (3, b"hel", socket.MSG_TRUNC)
            assert kinds == {kind for _, kind, _ in ancillary}
            info = struct.pack("=I4s4s", 0, socket.inet_aton("127.0.0.1"), bytes(4))
            ttl = (socket.IPPROTO_IP, socket.IP_TTL, struct.pack("i", 9))
            both = [(socket.IPPROTO_IP, IP_PKTINFO, info), ttl]
            assert ours.sendmsg([b"ba", b"ck"], both, 0, peer.getsockname()) == 4
            assert peer.recvfrom(100) == (b"back", where)
        """
    )


def test_a_broker_without_a_free_port_is_told_of_as_listen_tells_it(tmp_path: Path) -> None:
    with brokering(tmp_path, "--proxy-ports", "40123-40123") as relay:
        relay.good(
            """
            first = bound()
            ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            assert raises(OSError, ours.bind, ("", 0)).errno == errno.EADDRNOTAVAIL
            peer = plain()
            peer.connect(first.getsockname())
            first.close()
            assert raises(ConnectionRefusedError, lambda: [peer.send(b"") for _ in iter(int, 1)])
            assert bound().getsockname() == peer.getpeername()
            """
        )


def test_names_of_hosts_are_looked_up(relay: Relay) -> None:
    relay.good(
        """
        ours, peer = bound(), plain()
        peer.sendto(b"here", ours.getsockname())
        ours.recv(10)
        ours.sendto(b"by name", ("localhost", peer.getsockname()[1]))
        assert peer.recvfrom(10) == (b"by name", ours.getsockname())
        raises(socket.gaierror, ours.sendto, b"x", ("no such host.", 9))
        """
    )


def test_a_peer_is_answered_the_way_that_it_spoke_last(relay: Relay) -> None:
    relay.good(
        """
        ours, peer = bound(), plain()
        for where in (ours.getsockname(), direct(ours)) * 2:
            peer.sendto(b"hello", where)
            ours.recv(10)
            ours.sendto(b"back", peer.getsockname())
            assert peer.recvfrom(10) == (b"back", where)
        """
    )


def test_local_identity_leaves_names_as_they_are_and_brokers_all_the_same(relay: Relay) -> None:
    relay.good(
        """
        ours, peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), plain()
        ours.bind(("", 0))
        ours.settimeout(20)
        assert ours.getsockname() == kernel_name(ours)
        ours.sendto(b"find me", peer.getsockname())
        peer.recv(10)
        proxy = ours._sock._state.label.public
        peer.sendto(b"hello", proxy)
        assert ours.recvfrom(10) == (b"hello", peer.getsockname())
        """,
        GCB_IDENTITY="local",
    )


def test_the_way_is_kept_open_from_the_programs_own_port(odd_relay: Relay) -> None:
    odd_relay.good(
        """
        ours = bound()
        def flows(): return int(tell("flows").split()[1])
        first = flows()
        while flows() < first + 3:
            time.sleep(0.1)
        """,
        GCB_LIFETIME="1",
    )


def test_when_the_broker_is_dead_plain_datagrams_go_on(relay: Relay) -> None:
    done = relay.run(
        f"""
        ours, peer = bound(), plain()
        peer.sendto(b"here", ours.getsockname())
        ours.recv(10)
        os.kill({relay.process.pid}, 9)
        ours.sendto(b"nobody relays this", peer.getsockname())
        other = plain()
        for number in range(50):
            ours.sendto(b"%d" % number, other.getsockname())
            assert other.recvfrom(10) == (b"%d" % number, direct(ours))
            other.sendto(b"back %d" % number, direct(ours))
            assert ours.recvfrom(100) == (b"back %d" % number, other.getsockname())
        assert ours.getsockname()[0] == BROKER[0]
        begin = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as late:
            late.bind(("", 0))
            assert late.getsockname() == kernel_name(late)
            late.sendto(b"late", other.getsockname())
            assert other.recv(10) == b"late"
        print("good")
        """,
        GCB_LIFETIME="1",
        GCB_PATIENCE="0.5",
    )
    assert done.stdout == "good\n", done.stderr


def test_when_the_agent_is_killed_datagrams_go_on_and_the_next_keeps_the_way_open(
    odd_relay: Relay,
) -> None:
    odd_relay.good(
        """
        import re, signal
        ours, peer = bound(), plain()
        peer.sendto(b"here", ours.getsockname())
        ours.recv(10)
        agent = int(re.search(r"agent\\[(\\d+)\\]", open(os.environ["GCB_LOG_FILE"]).read())[1])
        os.kill(agent, signal.SIGKILL)
        peer.sendto(b"by relay", ours.getsockname())
        assert ours.recvfrom(10) == (b"by relay", peer.getsockname())
        ours.sendto(b"back", peer.getsockname())
        assert peer.recvfrom(10) == (b"back", ours.getsockname())
        before = int(tell("flows").split()[1])
        ours.settimeout(0.05)
        while int(tell("flows").split()[1]) == before:
            raises(TimeoutError, ours.recv, 10)   # waiting is enough for the next agent to come
        ours.settimeout(20)
        tell("flood 20")
        assert not select.select([ours], [], [], 0.05)[0]
        with bound() as another:
            peer.sendto(b"hello", another.getsockname())
            assert another.recv(10) == b"hello"
        """
    )


@pytest.mark.parametrize("calls", [1, 50])
def test_a_broker_without_udp_leaves_sockets_to_the_kernel_and_nobody_is_warned(
    odd_relay: Relay, calls: int
) -> None:
    odd_relay.good(
        f"""
        from gcbpatch.sockets.raw import Raw
        tell("streams")
        peer = plain()
        for _ in range({calls}):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("", 0))
            assert type(sock._sock) is Raw
            assert sock.getsockname() == kernel_name(sock)
            sock.sendto(b"plain", peer.getsockname())
            assert peer.recvfrom(10) == (b"plain", direct(sock))
            sock.close()
        """
    )
    text = odd_relay.log.read_text()
    assert "stays the kernel's" in text
    assert text.count("UNSUPPORTED") <= 4, "the broker is asked once"
    assert not re.search("warn", text, re.IGNORECASE)
