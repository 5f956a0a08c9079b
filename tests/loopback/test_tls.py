"""TLS over brokered connections: as over any others, and as without a broker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.certificates import make_authority

from .broker_client import Broker
from .side_by_side import same

CONTEXTS = """
import ssl
def server_context(name="server", version=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{CERTIFICATES}/{name}.both.pem")
    if version:
        context.maximum_version = version
    return context
def client_context():
    return ssl.create_default_context(cafile=f"{CERTIFICATES}/ca.pem")
def in_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread
def echo(listener, wrap=lambda sock: sock, times=1):
    for _ in range(times):
        sock, peer = listener.accept()
        try:
            with wrap(sock) as sock:
                while data := sock.recv(65536):
                    sock.sendall(data)
        except OSError as error:
            say("server:", type(error).__name__, getattr(error, "reason", error.errno))
def exchange(sock):
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
    block = bytes(range(256)) * 4000
    sending = in_thread(sock.sendall, block)
    got = bytearray()
    while len(got) < len(block):
        got += sock.recv(65536)
    sending.join()
    return got == block
"""


@pytest.fixture
def contexts(tmp_path: Path) -> str:
    """Text that defines contexts with certificates for localhost and for name.test."""
    made = make_authority(tmp_path)
    made.of("server", "DNS:localhost, IP:127.0.0.1")
    made.of("other", "DNS:name.test")
    return f'CERTIFICATES = "{tmp_path}"\n{CONTEXTS}'


def test_either_side_wraps_before_or_after(contexts: str, broker: Broker, tmp_path: Path) -> None:
    said = same(
        contexts
        + """
for wraps_listener in True, False:
    for when in "before connect", "after connect":
        context = server_context()
        listener = listening()
        if wraps_listener:
            listener = context.wrap_socket(listener, server_side=True)
            server = in_thread(echo, listener)
        else:
            wrap = lambda sock: context.wrap_socket(sock, server_side=True)
            server = in_thread(echo, listener, wrap)
        address = "localhost", listener.getsockname()[1]
        if when == "before connect":
            sock = client_context().wrap_socket(socket.socket(), server_hostname="localhost")
            sock.connect(address)
        else:
            plain = socket.create_connection(address)
            sock = client_context().wrap_socket(plain, server_hostname="localhost")
        say(wraps_listener, when, exchange(sock), sock.version())
        say(sock.getpeercert()["subjectAltName"], sock.getpeername()[1] == address[1])
        sock.close()
        server.join()
""",
        broker,
        tmp_path / "log",
    )
    assert said.count("True") >= 6 and "False True" not in said


def test_certificates_are_checked_by_the_name_that_was_asked_for(
    contexts: str, broker: Broker, tmp_path: Path
) -> None:
    said = same(
        contexts
        + """
asked = []
def chosen(sock, name, context):
    asked.append(name)
    if name == "name.test":
        sock.context = server_context("other")
for name in "localhost", "127.0.0.1", "name.test", "wrong.test":
    context = server_context()
    context.sni_callback = chosen
    listener = listening()
    wrap = lambda sock: context.wrap_socket(sock, server_side=True)
    server = in_thread(echo, listener, wrap)
    plain = socket.create_connection(listener.getsockname())
    try:
        sock = client_context().wrap_socket(plain, server_hostname=name)
        say(name, exchange(sock), sock.getpeercert()["subjectAltName"])
        sock.close()
    except ssl.SSLCertVerificationError as error:
        say(name, error.verify_message)
    plain.close()
    server.join()
say(asked)
listener = listening()
server = in_thread(echo, listener, wrap)
try:
    ssl.create_default_context().wrap_socket(
        socket.create_connection(listener.getsockname()), server_hostname="localhost")
except ssl.SSLCertVerificationError as error:
    say(error.verify_message)
server.join()
""",
        broker,
        tmp_path / "log",
    )
    assert "wrong.test Hostname mismatch" in said


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_sessions_are_resumed(version: str, contexts: str, broker: Broker, tmp_path: Path) -> None:
    said = same(
        contexts
        + f"""
context = server_context(version=ssl.TLSVersion.{version})
listener = context.wrap_socket(listening(), server_side=True)
server = in_thread(echo, listener, lambda sock: sock, 3)
client = client_context()
session = None
for _ in range(3):
    sock = client.wrap_socket(
        socket.create_connection(listener.getsockname()), server_hostname="localhost",
        session=session)
    say(exchange(sock), sock.session_reused)
    session = sock.session
    sock.close()
server.join()
""",
        broker,
        tmp_path / "log",
    )
    assert said == "True False\nTrue True\nTrue True\n"


def test_a_handshake_in_steps_and_an_end_in_steps(
    contexts: str, broker: Broker, tmp_path: Path
) -> None:
    said = same(
        contexts
        + """
context = server_context()
def serve(listener):
    sock, _ = listener.accept()
    tls = context.wrap_socket(sock, server_side=True)
    tls.sendall(tls.recv(100).upper())
    plain = tls.unwrap()
    say(plain.recv(100))
    plain.sendall(b"in the clear, too")
listener = listening()
pair(listening())
server = in_thread(serve, listener)
sock = socket.socket()
sock.setblocking(False)
say(errno.errorcode[sock.connect_ex(listener.getsockname())])
say(writable(sock))
tls = client_context().wrap_socket(
    sock, server_hostname="localhost", do_handshake_on_connect=False)
say(tls.getsockopt(SOL_SOCKET, SO_ERROR))
def steps(step, *arguments):
    while True:
        try:
            return step(*arguments)
        except ssl.SSLWantReadError:
            assert select.select([tls], [], [], 30)[0]
        except ssl.SSLWantWriteError:
            assert writable(tls)
steps(tls.do_handshake)
say(tls.version(), tls.getpeercert()["subjectAltName"])
steps(tls.send, b"question")
say(steps(tls.recv, 100))
plain = steps(tls.unwrap)
plain.setblocking(True)
plain.sendall(b"in the clear")
say(plain.recv(100))
server.join()
""",
        broker,
        tmp_path / "log",
    )
    assert "b'in the clear, too'" in said


def test_a_client_without_tls_and_one_that_leaves(
    contexts: str, broker: Broker, tmp_path: Path
) -> None:
    same(
        contexts
        + """
context = server_context()
for first in b"GET / HTTP/1.0\\r\\n\\r\\n", b"":
    listener = listening()
    server = in_thread(echo, listener, lambda sock: context.wrap_socket(sock, server_side=True))
    sock = socket.create_connection(listener.getsockname())
    sock.sendall(first)
    sock.shutdown(socket.SHUT_WR)
    while error_of(sock.recv, 100) not in (b"", "ConnectionResetError ECONNRESET"):
        pass
    server.join()
""",
        broker,
        tmp_path / "log",
    )


def test_streams_of_asyncio_begin_tls_in_the_midst(
    contexts: str, broker: Broker, tmp_path: Path
) -> None:
    said = same(
        contexts
        + """
import asyncio
BLOCK = bytes(range(256)) * 4000
async def serve(reader, writer):
    try:
        assert await reader.readline() == b"STARTTLS\\n"
        writer.write(b"ready\\n")
        await writer.drain()
        await writer.start_tls(server_context())
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError as error:
        say("server:", type(error).__name__)
    finally:
        writer.close()
async def begin(address, name):
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"STARTTLS\\n")
    assert await reader.readline() == b"ready\\n"
    await writer.start_tls(client_context(), server_hostname=name)
    return reader, writer
async def converse(address, name):
    reader, writer = await begin(address, name)
    tls = writer.get_extra_info("ssl_object")
    peer = writer.get_extra_info("peername") == address
    async def send():
        writer.write(BLOCK)
        await writer.drain()
    sending = asyncio.create_task(send())
    got = await reader.readexactly(len(BLOCK))
    await sending
    writer.close()
    names = writer.get_extra_info("peercert")["subjectAltName"]
    return got == BLOCK, peer, tls.version(), tls.server_hostname, names
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        say(await asyncio.gather(*(converse(address, "localhost") for _ in range(5))))
        try:
            await begin(address, "name.test")
        except ssl.SSLCertVerificationError as error:
            say(error.verify_message)
asyncio.run(main())
""",
        broker,
        tmp_path / "log",
    )
    assert said.count("(True, True, 'TLSv1.3', 'localhost'") == 5
    assert "Hostname mismatch" in said


def test_a_transport_of_asyncio_is_given_to_tls_by_either_side(
    contexts: str, broker: Broker, tmp_path: Path
) -> None:
    said = same(
        contexts
        + """
import asyncio
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.got = transport, []
    def data_received(self, data):
        self.got.append(data)
        if data == b"STARTTLS":
            self.transport.write(b"ready")
            self.task = asyncio.create_task(self.begin())
        else:
            self.transport.write(data.upper())
    async def begin(self):
        loop = asyncio.get_running_loop()
        self.transport = await loop.start_tls(
            self.transport, self, server_context(), server_side=True
        )
        self.transport.write(b"welcome")
class Client(asyncio.Protocol):
    def __init__(self):
        self.told = asyncio.Queue()
    def data_received(self, data):
        self.told.put_nowait(data)
    def connection_lost(self, error):
        self.told.put_nowait(error)
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0)
    for given in True, False:
        address = server.sockets[0].getsockname()
        if given:
            sock = socket.socket()
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
            plain, client = await loop.create_connection(Client, sock=sock)
        else:
            plain, client = await loop.create_connection(Client, *address)
        plain.write(b"STARTTLS")
        say(await client.told.get())
        tls = await loop.start_tls(
            plain, client, client_context(), server_hostname="localhost"
        )
        say(await client.told.get())
        tls.write(b"hello")
        say(await client.told.get(), tls.get_extra_info("peername") == address)
        say(tls.get_extra_info("cipher")[1])
        tls.close()
        say(await client.told.get())
    server.close()
asyncio.run(main())
""",
        broker,
        tmp_path / "log",
    )
    assert said == "b'ready'\nb'welcome'\nb'HELLO' True\nTLSv1.3\nNone\n" * 2
