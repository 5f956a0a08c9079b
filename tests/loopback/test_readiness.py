"""Whoever polls sockets: listeners, connects under way and connections tell when they are ready."""

from __future__ import annotations

from pathlib import Path

from .broker_client import Broker
from .side_by_side import brokered, same

POLLERS = """
from gevent import get_hub
from gevent.monkey import get_original

def by_select(sock, reading):
    sets = ([sock], [], []) if reading else ([], [sock], [])
    return any(select.select(*sets, 30))

def by_poll(sock, reading):
    poll = select.poll()
    poll.register(sock, select.POLLIN if reading else select.POLLOUT)
    return bool(poll.poll(30000))

def by_selector(name):
    def wait(sock, reading):
        with getattr(selectors, name)() as selector:
            selector.register(sock, selectors.EVENT_READ if reading else selectors.EVENT_WRITE)
            return bool(selector.select(30))
    return wait

def natively(wait):
    return lambda sock, reading: get_hub().threadpool.apply(wait, (sock.fileno(), reading))

def native_select(number, reading):
    sets = ([number], [], []) if reading else ([], [number], [])
    return any(get_original("select", "select")(*sets, 30))

def native_poll(number, reading):
    poll = get_original("select", "poll")()
    poll.register(number, select.POLLIN if reading else select.POLLOUT)
    return bool(poll.poll(30000))

def native_epoll(number, reading):
    with get_original("select", "epoll")() as epoll:
        epoll.register(number, select.EPOLLIN if reading else select.EPOLLOUT)
        return bool(epoll.poll(30))

WAYS = {
    "select": by_select,
    "poll": by_poll,
    "DefaultSelector": by_selector("DefaultSelector"),
    "SelectSelector": by_selector("SelectSelector"),
    "PollSelector": by_selector("PollSelector"),
    "native select": natively(native_select),
    "native poll": natively(native_poll),
    "native epoll": natively(native_epoll),
}
def meanwhile(call, *arguments):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(call(*arguments)))
    thread.start()
    time.sleep(0.1)
    return seen, thread
"""


def test_a_listener_tells_every_poller_that_somebody_came(broker: Broker, tmp_path: Path) -> None:
    said = same(
        POLLERS
        + """
for name, wait in WAYS.items():
    listener = listening()
    seen, thread = meanwhile(wait, listener, True)
    say(name, seen)
    near = socket.create_connection(listener.getsockname())
    thread.join()
    listener.setblocking(False)
    say(seen, listener.accept()[1] == near.getsockname(), error_of(listener.accept))
    listener.close()
""",
        broker,
        tmp_path / "log",
    )
    assert said.count("[True] True") == 8


def test_a_connect_tells_every_poller_that_it_is_done(broker: Broker, tmp_path: Path) -> None:
    said = same(
        POLLERS
        + """
pair(listening())
for name, wait in WAYS.items():
    with held() as listener:
        sock = starting(listener.getsockname())
        seen, thread = meanwhile(wait, sock, False)
        say(name, seen)
    thread.join()
    say(seen, sock.getsockopt(SOL_SOCKET, SO_ERROR))
    far, _ = listener.accept()
    seen, thread = meanwhile(wait, sock, True)
    say(seen)
    far.sendall(b"x")
    thread.join()
    say(seen, sock.recv(10))
""",
        broker,
        tmp_path / "log",
    )
    assert said.count("[True] 0") == 8


def test_a_native_epoll_that_only_waits_to_read_is_not_forgotten(
    broker: Broker, tmp_path: Path
) -> None:
    said = brokered(
        POLLERS
        + """
pair(listening())
with held() as listener:
    sock = starting(listener.getsockname())
    seen, thread = meanwhile(WAYS["native epoll"], sock, True)
    say(seen)
far, _ = listener.accept()
thread.join()
say(seen, error_of(sock.recv, 10))
far.sendall(b"x")
say(WAYS["native epoll"](sock, True), sock.recv(10))
""",
        broker,
        tmp_path / "log",
    )
    assert said == "[]\n[True] BlockingIOError EAGAIN\nTrue b'x'\n"


def test_a_refused_connect_tells_every_poller(broker: Broker, tmp_path: Path) -> None:
    same(
        POLLERS
        + """
pair(listening())
for name, wait in WAYS.items():
    sock = starting(REFUSING)
    say(name, wait(sock, False), errno.errorcode[sock.getsockopt(SOL_SOCKET, SO_ERROR)])
""",
        broker,
        tmp_path / "log",
    )


def test_a_selector_keeps_a_socket_from_connect_to_end(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        pair(listening())
        for name in "DefaultSelector", "SelectSelector", "PollSelector":
            with getattr(selectors, name)() as selector:
                with held() as listener:
                    sock = starting(listener.getsockname())
                    selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
                    say(name, [mask for _, mask in selector.select(0.1)])
                def until(mask):
                    while not any(seen & mask for _, seen in selector.select(30)):
                        pass
                until(selectors.EVENT_WRITE)
                far, _ = listener.accept()
                far.sendall(b"x")
                until(selectors.EVENT_READ)
                say(sock.recv(10))
                selector.modify(sock, selectors.EVENT_READ)
                far.close()
                until(selectors.EVENT_READ)
                say(sock.recv(10))
                selector.unregister(sock)
        """,
        broker,
        tmp_path / "log",
    )


def test_many_connects_in_one_selector(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        listener = listening(backlog=64)
        def accept():
            for _ in range(40):
                far, _ = listener.accept()
                far.sendall(far.recv(100))
        thread = threading.Thread(target=accept)
        thread.start()
        with selectors.DefaultSelector() as selector:
            for number in range(40):
                selector.register(starting(listener.getsockname()), selectors.EVENT_WRITE, number)
            answers = set()
            while len(answers) < 40:
                for key, mask in selector.select(30):
                    sock = key.fileobj
                    if mask & selectors.EVENT_WRITE:
                        assert not sock.getsockopt(SOL_SOCKET, SO_ERROR)
                        sock.send(b"%d" % key.data)
                        selector.modify(sock, selectors.EVENT_READ, key.data)
                    else:
                        answers.add((key.data, int(sock.recv(100))))
                        selector.unregister(sock)
        say(sorted(answers))
        thread.join()
        """,
        broker,
        tmp_path / "log",
    )


SERVERS = """
import socketserver, http.server, urllib.request, xmlrpc.server, xmlrpc.client
from wsgiref.simple_server import make_server
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())
            self.wfile.write(f"{self.client_address == self.connection.getpeername()}\\n".encode())
def served(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address
"""


def test_servers_of_the_standard_library(broker: Broker, tmp_path: Path) -> None:
    said = same(
        SERVERS
        + """
for name in "TCPServer", "ThreadingTCPServer", "ForkingTCPServer":
    with getattr(socketserver, name)(("127.0.0.1", 0), Echo) as server:
        address = served(server)
        for number in range(3):
            with socket.create_connection(address) as sock:
                sock.sendall(b"line %d\\n" % number)
                sock.shutdown(socket.SHUT_WR)
                say(name, sock.makefile().read())
        server.shutdown()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.path.encode() * 10000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
for kind in http.server.HTTPServer, http.server.ThreadingHTTPServer:
    with kind(("127.0.0.1", 0), Handler) as server:
        host, port = served(server)
        with urllib.request.urlopen(f"http://localhost:{port}/path") as answer:
            say(kind.__name__, answer.status, len(answer.read()))
        server.shutdown()
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode(), environ["REMOTE_ADDR"].encode()]
with make_server("127.0.0.1", 0, application) as server:
    server.RequestHandlerClass.log_message = lambda *args: None
    host, port = served(server)
    say("wsgi", urllib.request.urlopen(f"http://{host}:{port}/wsgi").read())
    server.shutdown()
with xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
    server.register_function(pow)
    host, port = served(server)
    say("xmlrpc", xmlrpc.client.ServerProxy(f"http://{host}:{port}").pow(2, 10))
    server.shutdown()
""",
        broker,
        tmp_path / "log",
    )
    assert "xmlrpc 1024" in said and "LINE 2\nTrue" in said


def test_real_threads_each_with_a_hub_of_its_own(broker: Broker, tmp_path: Path) -> None:
    said = brokered(
        """
        listener = listening(backlog=64)
        public = listener.getsockname()
        import _thread
        seen, lock = [], threading.Lock()
        def client(number):
            with socket.create_connection(public, timeout=30) as sock:
                sock.sendall(b"%d" % number)
                answer = int(sock.recv(100))
            sock = starting(public)
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_WRITE)
                assert selector.select(30)
            assert not sock.getsockopt(SOL_SOCKET, SO_ERROR)
            sock.setblocking(True)
            sock.sendall(b"%d" % number)
            with lock:
                seen.append((answer, int(sock.recv(100)), _thread.get_ident()))
        threads = [threading.Thread(target=client, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            far, _ = listener.accept()
            far.sendall(far.recv(100))
        for thread in threads:
            thread.join()
        say(sorted(one[:2] for one in seen) == [(n, n) for n in range(10)])
        say(len({one[2] for one in seen}) > 1)
        """,
        broker,
        tmp_path / "log",
        PATCH="thread=False",
    )
    assert said == "True\nTrue\n"


def test_asyncio(broker: Broker, tmp_path: Path) -> None:
    same(
        """
        import asyncio
        async def echo(reader, writer):
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()
        class Shout(asyncio.Protocol):
            def connection_made(self, transport):
                self.transport = transport
                transport.write(b"welcome")
            def data_received(self, data):
                self.transport.write(data * 2)
        async def client(address, number):
            reader, writer = await asyncio.open_connection(*address)
            line = b"%d " % number + b"x" * 30000 + b"\\n"
            writer.write(line)
            got = await reader.readline()
            same = writer.get_extra_info("peername") == address
            writer.close()
            await writer.wait_closed()
            return same and got == line.upper()
        async def main():
            loop = asyncio.get_running_loop()
            async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
                address = server.sockets[0].getsockname()
                say(await asyncio.gather(*(client(address, n) for n in range(10))))
            server = await loop.create_server(Shout, "127.0.0.1", 0)
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, server.sockets[0].getsockname())
            say(await loop.sock_recv(sock, 100))
            await loop.sock_sendall(sock, b"abc")
            say(await loop.sock_recv(sock, 100))
            sock.close()
            server.close()
            listener = listening()
            listener.setblocking(False)
            near = socket.socket()
            near.setblocking(False)
            (far, peer), _ = await asyncio.gather(
                loop.sock_accept(listener), loop.sock_connect(near, listener.getsockname()))
            say(peer == near.getsockname())
            try:
                await asyncio.open_connection(*REFUSING)
            except OSError as error:
                say(type(error).__name__)
        asyncio.run(main())
        """,
        broker,
        tmp_path / "log",
    )
