"""Children of multiprocessing: patched as their parent is, with its broker and its agent."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mend_ground import HANG_LIMIT, PATCHED, ROOT, environment, good, run, without

METHODS = ("fork", "spawn", "forkserver")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """A broker on a free port of the loopback interface."""
    argv = [sys.executable, "-m", "brokerd", "--address", "127.0.0.1", "--port", "0"]
    argv += ["--key-file", str(tmp_path / "key")]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, env=environment(), text=True, cwd=ROOT
    ) as daemon:
        assert daemon.stdout is not None
        try:
            yield daemon.stdout.readline().split()[-1]
        finally:
            daemon.terminate()
            daemon.communicate(timeout=HANG_LIMIT)


def agents_in(log: Path) -> set[str]:
    return set(re.findall(r"agent\[(\d+)\]", log.read_text()))


LISTENING_CHILD = """
    import multiprocessing, os, socket, sys
    def serve(conn):
        listener = socket.create_server(("", 0))
        conn.send((socket.socket._gevent_sock_class.__module__, listener.getsockname()))
        sock, peer = listener.accept()
        sock.sendall(b"%d" % os.getpid())
        sock.close()
    if __name__ == "__main__":
        multiprocessing.set_start_method(os.environ["METHOD"])
        own = socket.create_server(("", 0))
        here, there = multiprocessing.Pipe()
        child = multiprocessing.Process(target=serve, args=(there,))
        child.start()
        module, public = here.recv()
        assert module == "gcbpatch.sockets.raw", module
        assert public[0] == "127.0.0.1" != "0.0.0.0", public
        with socket.create_connection(public) as sock:
            assert int(sock.recv(100)) == child.pid
        child.join()
        assert child.exitcode == 0
        print("good")
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_child_is_brokered_by_its_parents_agent(tmp_path: Path, broker: str, method: str) -> None:
    log = tmp_path / "log"
    settings = {"GCB_LOG": "INFO", "GCB_LOG_FILE": str(log), "METHOD": method}
    line = f"import gcbpatch; gcbpatch.patch_all(broker='{broker}')\n"
    done = run(tmp_path, line, LISTENING_CHILD, **settings)
    assert good(done), done.stderr
    assert len(agents_in(log)) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_child_is_patched_where_the_program_has_no_line_of_ours(
    tmp_path: Path, broker: str, method: str
) -> None:
    log = tmp_path / "log"
    settings = {"GCB_LOG": "INFO", "GCB_LOG_FILE": str(log), "METHOD": method}
    program = ["-m", "gcbpatch"]
    done = run(tmp_path, "", LISTENING_CHILD, python=program, GCB_BROKER=broker, **settings)
    assert good(done), done.stderr
    assert len(agents_in(log)) == 1


def test_a_child_is_patched_before_its_main_module_is_loaded(tmp_path: Path) -> None:
    program = """
        import socket
        from socket import create_connection
        import gevent.socket
        assert create_connection is gevent.socket.create_connection, __name__
        import multiprocessing, os
        def child():
            pass
        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
            print("good")
    """
    guarded = "if __name__ == '__main__':\n    " + PATCHED
    done = run(tmp_path, guarded, program)
    assert good(done), done.stderr
    unmended = "if __name__ == '__main__':\n    from gcbpatch import mends\n"
    unmended += "    del mends.MENDS['multiprocessing.spawn']\n    " + PATCHED
    assert not good(run(tmp_path, unmended, program)), "the mend was not needed"


@pytest.mark.parametrize("method", METHODS)
def test_a_child_has_its_parents_gevent_flags_and_settings(tmp_path: Path, method: str) -> None:
    first = "if __name__ == '__main__':\n    import gcbpatch\n"
    first += "    gcbpatch.patch_all(queue=False, broker='127.0.0.1:1', token='a-token-of-mine')\n"
    done = run(
        tmp_path,
        first,
        """
        import multiprocessing, os, queue, socket
        def look(conn):
            from gcbpatch.sockets.layer import LAYER
            conn.send((queue.SimpleQueue.__module__, LAYER.link.config.brokers[0][1],
                       LAYER.link.config.token, LAYER.link.name))
        if __name__ == "__main__":
            context = multiprocessing.get_context(os.environ["METHOD"])
            here, there = context.Pipe()
            for name in list(os.environ):
                if name.startswith("GCB_"):
                    del os.environ[name]  # the environment is the program's own business
            child = context.Process(target=look, args=(there,))
            child.start()
            from gcbpatch.sockets.layer import LAYER
            assert here.recv() == ("_queue", 1, "a-token-of-mine", LAYER.link.name)
            child.join()
            print("good")
        """,
        METHOD=method,
    )
    assert good(done), done.stderr


def test_the_fork_server_and_the_resource_tracker_are_not_patched(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import multiprocessing, os
        from multiprocessing import forkserver, resource_tracker
        def child():
            pass
        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            lock = context.Lock()
            process = context.Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
            for pid in (forkserver._forkserver._forkserver_pid,
                        resource_tracker._resource_tracker._pid):
                with open(f"/proc/{pid}/maps") as maps:
                    assert "gevent" not in maps.read()
            print("good")
        """,
    )
    assert good(done), done.stderr
    assert "leaked" not in done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_an_executor_of_processes_works_and_ends(tmp_path: Path, method: str) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import concurrent.futures, multiprocessing, os, socket
        def kind(number):
            return number, socket.socket._gevent_sock_class.__name__
        if __name__ == "__main__":
            context = multiprocessing.get_context(os.environ["METHOD"])
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
                got = list(executor.map(kind, range(10)))
            assert got == [(n, "Raw") for n in range(10)], got
            print("good")
        """,
        METHOD=method,
    )
    assert good(done), done.stderr


def test_leaving_the_mend_out_leaves_spawned_children_unpatched(tmp_path: Path) -> None:
    program = """
        import multiprocessing, os, socket
        def look(conn):
            conn.send(hasattr(socket.socket, "_gevent_sock_class"))
        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe()
            context.Process(target=look, args=(there,)).start()
            assert here.recv()
            print("good")
    """
    guard = "if __name__ == '__main__':\n    "
    assert good(run(tmp_path, guard + PATCHED, program))
    left_out = guard + without("multiprocessing.spawn").replace("\n", "\n    ", 1)
    assert not good(run(tmp_path, left_out, program))
