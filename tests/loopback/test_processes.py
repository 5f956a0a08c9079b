"""Nothing of the agent shows in how a program starts, waits for and leaves processes."""

from __future__ import annotations

import os
import re
import select
import socket
from pathlib import Path

import pytest

from .mend_ground import HANG_LIMIT, PATCHED, good, run
from .test_multiprocessing import broker  # noqa: F401


@pytest.fixture
def settings(tmp_path: Path, broker: str) -> dict[str, str]:  # noqa: F811
    return {"GCB_BROKER": broker, "GCB_LOG": "INFO", "GCB_LOG_FILE": str(tmp_path / "log")}


def agent_in(log: Path) -> int:
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


def test_output_is_captured_to_its_end_though_the_agent_was_started_in_between(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    """An agent that held the child's pipe would keep it open, and the parent waiting."""
    done = run(
        tmp_path,
        PATCHED,
        """
        import socket, subprocess, sys
        child = "import gcbpatch; gcbpatch.patch_all(); import socket; "
        child += "print(socket.create_server(('', 0)).getsockname()[0])"
        for _ in range(2):
            done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
            assert (done.returncode, done.stdout, done.stderr) == (0, "127.0.0.1\\n", "")
            listener = socket.create_server(("", 0))
        print("good")
        """,
        **settings,
    )
    assert good(done), done.stderr


def test_a_child_inherits_no_descriptor_of_ours(tmp_path: Path, settings: dict[str, str]) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import os, socket, subprocess, sys
        show = "import os; print(sorted(os.listdir('/proc/self/fd')))"
        def shown(**how):
            argv = [sys.executable, "-I", "-c", show]
            return subprocess.run(argv, capture_output=True, **how).stdout
        before = shown(), shown(close_fds=False)
        listener = socket.create_server(("", 0))
        sock = socket.create_connection(listener.getsockname())
        accepted = listener.accept()
        assert (shown(), shown(close_fds=False)) == before
        print("good")
        """,
        **settings,
    )
    assert good(done), done.stderr


def test_wait_returns_the_programs_children_only(tmp_path: Path, settings: dict[str, str]) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import os, posix, signal, socket
        came = []
        signal.signal(signal.SIGCHLD, lambda *_: came.append(1))
        listener = socket.create_server(("", 0))
        listener.getsockname()
        children = []
        for code in (3, 4):
            pid = os.fork()
            if pid == 0:
                os._exit(code)
            children.append((pid, code))
        got = []
        for wait in (os.wait, lambda: os.waitpid(-1, 0)):
            pid, status = wait()
            got.append((pid, os.waitstatus_to_exitcode(status)))
        assert sorted(got) == children, (got, children)
        for wait in (os.wait, posix.wait, lambda: os.waitpid(-1, os.WNOHANG)):
            try:
                raise SystemExit(f"a child too many: {wait()}")
            except ChildProcessError:
                pass
        print("good")
        """,
        **settings,
    )
    assert good(done), done.stderr


def test_a_program_that_ignores_its_children_is_left_with_none(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import os, signal, socket
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        listener = socket.create_server(("", 0))
        assert listener.getsockname()[0] == "127.0.0.1"
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            assert children.read() == ""
        print("good")
        """,
        **settings,
    )
    assert good(done), done.stderr


def test_a_daemon_that_closes_all_descriptors_listens_and_accepts(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    """Closed before anything has waited: gevent's own loop does not survive it later."""
    done = run(
        tmp_path,
        PATCHED,
        """
        import os, socket
        report, pipe = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() != 0:
                os._exit(0)
            os.close(report)
            os.closerange(0, pipe)
            os.closerange(pipe + 1, 256)
            while os.open(os.devnull, os.O_RDWR) < 2:
                pass
            listener = socket.create_server(("", 0))
            os.write(pipe, repr(listener.getsockname()).encode())
            sock, peer = listener.accept()
            sock.sendall(b"from the daemon")
            sock.close()
            os._exit(0)
        os.close(pipe)
        os.wait()
        public = eval(os.read(report, 100))
        assert public[0] == "127.0.0.1", public
        sock = socket.create_connection(public)
        assert sock.recv(100) == b"from the daemon"
        assert os.read(report, 1) == b""  # nobody else holds the daemon's pipe
        print("good")
        """,
        **settings,
    )
    assert good(done), done.stderr
    wait_end(agent_in(tmp_path / "log"))


def test_the_agent_lives_with_the_daemon_after_its_parent_has_gone(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import os, socket, sys
        listener = socket.create_server(("", 0))
        listener.getsockname()
        if os.fork() == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
            sock, peer = listener.accept()
            sock.sendall(b"%d" % os.getpid())
            os._exit(0)
        print(listener.getsockname()[1], flush=True)
        print("good")
        """,
        **settings,
    )
    assert good(done), done.stderr
    port = int(done.stdout.split()[0])
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_LIMIT) as sock:
        assert int(sock.recv(100)) > 0
    wait_end(agent_in(tmp_path / "log"))


def test_a_thread_that_connects_does_so_in_the_process_that_asked_for_it_only(
    tmp_path: Path, settings: dict[str, str]
) -> None:
    """Its greenlet is in a child, too, that another one forks as soon as it has accepted."""
    done = run(
        tmp_path,
        PATCHED,
        """
        import os, socket, threading, time
        listener = socket.create_server(("", 0), backlog=100)
        parent, children, socks = os.getpid(), [], []
        def serve():
            for _ in range(30):
                sock, _ = listener.accept()
                socks.append(sock)
                pid = os.fork()
                if pid == 0:
                    time.sleep(0.3)
                    os._exit(0)
                children.append(pid)
        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(30):
            socks.append(socket.create_connection(listener.getsockname()))
            if os.getpid() != parent:
                os._exit(1)
        thread.join()
        print([os.waitpid(pid, 0)[1] for pid in children])
        print("good")
        """,
        **settings,
    )
    assert good(done), done.stderr
    assert done.stdout.startswith(str([0] * 30)), done.stdout
