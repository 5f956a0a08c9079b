"""unpatch_all(): everything is what it was, works as it did, and can be patched again."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mend_ground import good, run
from .test_multiprocessing import broker  # noqa: F401

# What is compared: every name of every module, every attribute of every class in them, the
# main thread, the environment, the finders. Modules that patching loads may stay.
SNAPSHOT = """
    import gcbpatch
    import os, sys, types
    import concurrent.futures.thread, logging, queue, select, selectors, signal, socket, ssl
    import subprocess, threading, time
    import gcbpatch.agent.door, gcbpatch.sockets.raw, gevent.hub, gevent.signal, gevent.ssl
    EXTRA = os.environ.get("EXTRA", "").split()
    for name in EXTRA:
        __import__(name)
    def snapshot():
        seen = {("environ", k): v for k, v in os.environ.items()}
        seen |= {("main thread", k): v for k, v in vars(threading.main_thread()).items()}
        seen |= {("active", k): v for k, v in threading._active.items()}
        seen |= {("finder", n): finder for n, finder in enumerate(sys.meta_path)}
        seen |= {("path", n): path for n, path in enumerate(sys.path)}
        for name, module in list(sys.modules.items()):
            if isinstance(module, types.ModuleType) and name.split(".")[0] in WATCHED:
                seen |= {(name, k): v for k, v in vars(module).items()}
                for kind in [v for v in vars(module).values() if isinstance(v, type)]:
                    for k, v in vars(kind).items():
                        seen[name, kind.__qualname__, k] = v
                        seen[name, kind.__qualname__, k, 1] = getattr(v, "__defaults__", None)
        return seen
    WATCHED = set(sys.stdlib_module_names) | {"gevent"}
    def changed(before, after):
        return sorted(str(k) for k in before | after
                      if k[0] in loaded and differ(before.get(k, None), after.get(k, None)))
    def differ(old, new):
        if old is None and isinstance(new, types.ModuleType):
            return False  # a module that was loaded is an attribute of its package
        return old != new if isinstance(old, str) else old is not new
    loaded = {*sys.modules, "environ", "main thread", "active", "finder", "path"}
"""


@pytest.mark.parametrize(
    "extra",
    ["", "asyncio multiprocessing.connection multiprocessing.synchronize multiprocessing.spawn"],
    ids=["little loaded", "much loaded"],
)
def test_everything_is_what_it_was(tmp_path: Path, extra: str) -> None:
    done = run(
        tmp_path,
        "",
        SNAPSHOT
        + """
    import gevent.monkey
    before = snapshot()
    for _ in range(3):
        gcbpatch.patch_all(broker="127.0.0.1:1", token="a-token-of-mine")
        patched = changed(before, snapshot())
        for name in ("_thread", "logging", "os", "queue", "select", "selectors", "signal",
                     "socket", "ssl", "subprocess", "threading", "time", "environ"):
            assert any(f"'{name}'" in change for change in patched), name
        gcbpatch.unpatch_all()
        left = changed(before, snapshot())
        assert not left, left
        assert not gevent.monkey.saved
    gcbpatch.unpatch_all()
    print("good")
""",
        EXTRA=extra,
    )
    assert good(done), done.stderr


def test_the_ordinary_library_works_after_it_and_patching_works_again(
    tmp_path: Path,
    broker: str,  # noqa: F811
) -> None:
    done = run(
        tmp_path,
        "",
        """
        import gcbpatch, os
        def use():
            import concurrent.futures, logging, queue, select, socket, subprocess, sys
            import threading, time
            listener = socket.create_server(("127.0.0.1", 0))
            got = queue.Queue()
            def serve():
                sock, _ = listener.accept()
                time.sleep(0.01)
                sock.sendall(sock.recv(100))
                got.put(threading.current_thread().name)
            thread = threading.Thread(target=serve, name="server")
            thread.start()
            with socket.create_connection(listener.getsockname()) as sock:
                sock.sendall(b"x")
                assert select.select([sock], [], [], 30)[0] and sock.recv(10) == b"x"
            thread.join()
            assert got.get() == "server"
            assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True,
                                  timeout=30).stdout == b"1\\n"
            with concurrent.futures.ThreadPoolExecutor(2) as executor:
                assert list(executor.map(abs, [-1, -2])) == [1, 2]
            pid = os.fork()
            if pid == 0:
                assert threading.main_thread() is threading.current_thread()
                other = threading.Thread(target=logging.getLogger().debug, args=("x",))
                other.start()
                other.join()
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert threading.main_thread() is threading.current_thread()
            native = len(os.listdir("/proc/self/task"))
            stop = threading.Event()
            threads = [threading.Thread(target=stop.wait) for _ in range(3)]
            for thread in threads:
                thread.start()
            more = len(os.listdir("/proc/self/task")) - native
            stop.set()
            for thread in threads:
                thread.join()
            return more
        def brokered():
            import socket
            listener = socket.create_server(("", 0))
            public = listener.getsockname()
            with socket.create_connection(public) as sock:
                assert listener.accept()[0].getpeername() == sock.getsockname()
            return public[0] == "127.0.0.1"
        assert use() == 3
        for _ in range(2):
            gcbpatch.patch_all(broker=os.environ["BROKER"])
            assert use() == 0 and brokered()
            gcbpatch.unpatch_all()
            assert use() == 3 and not brokered()
        print("good")
        """,
        BROKER=broker,
    )
    assert good(done), done.stderr
    assert "rror" not in done.stderr, done.stderr


def test_the_agent_goes_when_its_program_is_no_longer_patched(
    tmp_path: Path,
    broker: str,  # noqa: F811
) -> None:
    log = tmp_path / "log"
    done = run(
        tmp_path,
        "",
        """
        import gcbpatch, os, re, select
        gcbpatch.patch_all()
        import socket
        listener = socket.create_server(("", 0))
        listener.close()
        agent = int(re.search(r"agent.(\\d+)", open(os.environ["GCB_LOG_FILE"]).read())[1])
        ended = os.pidfd_open(agent)
        gcbpatch.unpatch_all()
        assert select.select([ended], [], [], 30)[0], "the agent goes on"
        print("good")
        """,
        GCB_BROKER=broker,
        GCB_LOG="INFO",
        GCB_LOG_FILE=str(log),
    )
    assert good(done), done.stderr


def test_a_loop_that_was_left_watches_nothing_of_ours(
    tmp_path: Path,
    broker: str,  # noqa: F811
) -> None:
    """A watcher of a number that was closed may meet another file there."""
    done = run(
        tmp_path,
        "",
        """
        import gcbpatch
        gcbpatch.patch_all()
        import socket
        listener = socket.create_server(("", 0))
        from gcbpatch.sockets.layer import LAYER
        watchers = LAYER.link._watcher, LAYER.link._fork_watcher
        assert all(watcher.active for watcher in watchers)
        gcbpatch.unpatch_all()
        assert not any(watcher.active for watcher in watchers)
        print("good")
        """,
        GCB_BROKER=broker,
    )
    assert good(done), done.stderr
