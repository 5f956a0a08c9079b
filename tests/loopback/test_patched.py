"""The patch layer with real daemons on this machine: what is about the program, not about NAT."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HANG_LIMIT = 60.0


def run(
    program: str, limit: float = HANG_LIMIT, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a small program to its end, which has to come within ``limit`` seconds."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=clean_environment() | environ,
        capture_output=True,
        text=True,
        timeout=limit,
        cwd=ROOT,
    )


def clean_environment() -> dict[str, str]:
    """Our environment without any setting of ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GCB_", "DPF_"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A broker on a free port of the loopback interface."""
    argv = [sys.executable, "-m", "brokerd", "--address", "127.0.0.1", "--port", "0"]
    argv += ["--key-file", str(tmp_path / "key")]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, env=clean_environment(), text=True, cwd=ROOT
    ) as daemon:
        assert daemon.stdout is not None
        try:
            yield daemon.stdout.readline().split()[-1]
        finally:
            daemon.terminate()
            daemon.communicate(timeout=HANG_LIMIT)


def agent_in(log: Path) -> int:
    """The agent's pid, from its log."""
    found = re.search(r"agent\[(\d+)\]", log.read_text())
    assert found is not None
    return int(found.group(1))


def wait_end(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], HANG_LIMIT)[0], f"process {pid} goes on"
    finally:
        os.close(descriptor)


def test_importing_patches_nothing_and_loads_no_gevent() -> None:
    done = run(
        """
        import sys, socket, select
        before = socket.socket, select.select
        import gcbpatch
        assert (socket.socket, select.select) == before
        assert not [name for name in sys.modules if name.startswith("gevent")]
        """
    )
    assert done.returncode == 0, done.stderr


def test_one_line_gives_a_listener_its_proxy_address(broker: str) -> None:
    done = run(
        f"""
        import gcbpatch; gcbpatch.patch_all(broker="{broker}")
        import socket, threading
        listener = socket.socket()
        listener.bind(("", 0))
        listener.listen()
        kernel = socket.socket(fileno=listener.fileno())
        public = listener.getsockname()
        assert public[0] == "127.0.0.1", public
        plain = threading.Thread(target=lambda: socket.create_connection(public).sendall(b"hello"))
        plain.start()
        sock, peer = listener.accept()
        assert sock.recv(100) == b"hello"
        assert sock.getsockname() == public
        assert sock.getpeername() == peer
        assert peer[0] == "127.0.0.1"
        kernel.detach()
        print("good")
        """
    )
    assert done.stdout == "good\n", done.stderr


def test_the_name_before_listen_is_the_name_after_it(broker: str) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import socketserver, socket, threading
        class Echo(socketserver.StreamRequestHandler):
            def handle(self):
                self.wfile.write(self.rfile.readline())
        with socketserver.ThreadingTCPServer(("", 0), Echo) as server:
            assert server.server_address[0] == "127.0.0.1", server.server_address
            assert server.socket.getsockname() == server.server_address
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with socket.create_connection(server.server_address) as sock:
                sock.sendall(b"echo\\n")
                assert sock.recv(100) == b"echo\\n"
            server.shutdown()
        print("good")
        """,
        GCB_BROKER=broker,
    )
    assert done.stdout == "good\n", done.stderr


def test_accept_keeps_to_its_timeout(broker: str) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import socket
        listener = socket.create_server(("", 0))
        listener.settimeout(0.2)
        try:
            listener.accept()
        except TimeoutError:
            print("good")
        """,
        GCB_BROKER=broker,
    )
    assert done.stdout == "good\n", done.stderr


def test_many_connections_come_each_once_and_with_their_peer(broker: str) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import socket, threading
        listener = socket.create_server(("", 0), backlog=64)
        public = listener.getsockname()
        names = {}
        def connect(number):
            sock = socket.create_connection(public)
            names[number] = sock.getsockname()[1]
            sock.sendall(b"%d\\n" % number)
            sock.recv(1)
        threads = [threading.Thread(target=connect, args=(n,)) for n in range(40)]
        for thread in threads:
            thread.start()
        seen = {}
        for _ in threads:
            sock, peer = listener.accept()
            seen[int(sock.makefile().readline())] = peer[1]
            sock.sendall(b"x")
        for thread in threads:
            thread.join()
        assert seen == names, (seen, names)
        print("good")
        """,
        GCB_BROKER=broker,
    )
    assert done.stdout == "good\n", done.stderr


def test_a_forked_child_accepts_brokered_connections(broker: str) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import os, socket
        listener = socket.create_server(("", 0))
        public = listener.getsockname()
        child = os.fork()
        if child == 0:
            sock, peer = listener.accept()
            sock.sendall(b"from the child" if sock.getsockname() == public else b"wrong name")
            os._exit(0)
        with socket.create_connection(public) as sock:
            print(sock.recv(100).decode())
        os.waitpid(child, 0)
        """,
        GCB_BROKER=broker,
    )
    assert done.stdout == "from the child\n", done.stderr


def test_a_program_without_listeners_starts_no_agent(broker: str, tmp_path: Path) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import socket
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()) as sock:
                assert listener.accept()[0].getpeername() == sock.getsockname()
        """,
        GCB_BROKER=broker,
        GCB_LOG="DEBUG",
        GCB_LOG_FILE=str(tmp_path / "log"),
    )
    assert done.returncode == 0, done.stderr
    assert "agent[" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("setting", ["GCB_TOKEN", "GCB_TOKEN_FILE"])
def test_a_program_without_brokered_sockets_loads_nothing_that_only_those_need(
    setting: str, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("somebody a-secret-token\n")
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import socket, sys
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()) as sock:
                listener.accept()
        dear = ("msgspec", "cachetools", "hashlib", "tomllib", "gcbpatch.agent", "gcbpatch.wire")
        print(*[name for name in dear if name in sys.modules])
        """,
        GCB_BROKER="198.51.100.9",
        **{setting: str(tmp_path / "tokens")},
    )
    assert done.stdout == "\n", done.stderr


def test_the_agent_ends_with_its_program_and_is_nobody_elses_child(
    broker: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import os, posix, socket
        listener = socket.create_server(("", 0))
        for wait in (os.waitpid, posix.waitpid):
            try:
                print(wait(-1, os.WNOHANG))
            except ChildProcessError:
                print("no child")
        """,
        GCB_BROKER=broker,
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(log),
    )
    assert done.stdout == "no child\nno child\n", done.stderr
    wait_end(agent_in(log))


def test_python_m_gcbpatch_leaves_no_trace_of_itself(tmp_path: Path) -> None:
    (tmp_path / "sibling.py").write_text("word = 'sibling'\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, socket, sibling\n"
        "print(__name__, sys.argv, sibling.word, socket.socket.__module__)\n"
        "sys.exit(7)\n"
    )
    argv = [sys.executable, "-m", "gcbpatch", str(program), "--flag", "x"]
    done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True)
    expected = f"__main__ {[str(program), '--flag', 'x']} sibling gevent._socket3\n"
    assert (done.returncode, done.stdout) == (7, expected), done.stderr


def test_a_child_with_other_settings_gets_an_agent_of_its_own(broker: str) -> None:
    done = run(
        """
        import gcbpatch; gcbpatch.patch_all()
        import os, socket, subprocess, sys
        listener = socket.create_server(("", 0))
        child = "import gcbpatch; gcbpatch.patch_all()\\n"
        child += "import socket; print(socket.create_server(('', 0)).getsockname()[0])"
        same = dict(os.environ)
        other = same | {"GCB_BROKER": "127.0.0.1:1", "GCB_PATIENCE": "0.3"}
        for environ in (same, other):
            print(subprocess.run([sys.executable, "-c", child], env=environ, text=True,
                                 capture_output=True).stdout.strip())
        """,
        GCB_BROKER=broker,
    )
    assert done.stdout == "127.0.0.1\n0.0.0.0\n", done.stderr


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"GCB_BROKER": "host:99999"}, "GCB_BROKER: port of host: '99999' is not a port"),
        ({"GCB_LIFETIME": "soon"}, "GCB_LIFETIME: "),
        ({"GCB_TOKEN_FILE": "/nonexistent", "GCB_BROKER": "h"}, "/nonexistent: the token file"),
        ({"GCB_CONFIG": "/nonexistent"}, "/nonexistent: cannot be read"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(environ: dict[str, str], words: str) -> None:
    argv = [sys.executable, "-m", "gcbpatch", "-m", "this"]
    done = subprocess.run(argv, env=clean_environment() | environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_usage_is_told_in_one_line() -> None:
    for arguments in ([], ["--nonsense"], ["-m"]):
        argv = [sys.executable, "-m", "gcbpatch", *arguments]
        done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
