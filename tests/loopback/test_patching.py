"""patch_all() where it was not the first line, not the only one, or not for everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mend_ground import PATCHED, good, run
from .test_multiprocessing import broker  # noqa: F401

WARNING = "patch_all() came late and does not reach"

USES_EARLY_NAMES = """
import queue, select as selectmodule, ssl, subprocess, threading
from os import close, fork, waitpid
from queue import Queue
from select import select
from socket import SOCK_STREAM, create_connection, create_server, getaddrinfo, socket
from socket import socket as Other
from subprocess import Popen
from threading import Event, Lock, Thread, current_thread
from time import sleep, monotonic
"""


def test_names_imported_before_are_bound_again_without_a_warning(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(USES_EARLY_NAMES)
    done = run(
        tmp_path,
        USES_EARLY_NAMES + "import package\n" + PATCHED,
        """
        import os, sys
        import gevent.queue, gevent.select, gevent.socket, gevent.subprocess, gevent.threading
        for module in (sys.modules["__main__"], package):
            assert module.socket is module.Other is gevent.socket.socket
            assert module.create_connection is gevent.socket.create_connection
            assert module.getaddrinfo is gevent.socket.getaddrinfo
            assert module.select is gevent.select.select
            assert module.Queue is gevent.queue.Queue is queue.Queue
            assert module.Popen is gevent.subprocess.Popen
            assert module.Thread is gevent.threading.Thread
            assert module.sleep is gevent.sleep
            assert module.fork is os.fork and module.waitpid is os.waitpid
            assert module.close is os.close
        order = []
        thread = Thread(target=lambda: (sleep(0.01), order.append("thread")))
        thread.start()
        thread.join()
        assert order == ["thread"] and len(os.listdir("/proc/self/task")) == 1
        print("good")
        """,
    )
    assert good(done), done.stderr
    assert done.stderr == ""


def test_the_library_and_debuggers_keep_what_they_kept(tmp_path: Path) -> None:
    (tmp_path / "debugpy.py").write_text("from time import sleep\nfrom threading import Thread\n")
    done = run(
        tmp_path,
        "import debugpy, functools, logging, multiprocessing.connection, sched, tempfile, time\n"
        "import sys, _thread, types, _socket, asyncio, concurrent.futures.process, json\n"
        "import gevent.hub, gevent.threading, gevent.ssl, gevent.queue, gevent.signal\n"
        "import gevent.monkey, gevent.subprocess\n"
        "def state():\n"
        "    return {(m, k): v for m, module in list(sys.modules.items()) for k, v in\n"
        "            vars(module).items() if isinstance(module, types.ModuleType)}\n",
        """
        other = {}
        import subprocess, sys
        # What gevent itself changes, seen in another process.
        before = state()
        import gcbpatch
        gcbpatch.patch_all()
        after = state()
        kept = {"gevent", "debugpy", "_socket", "json", "asyncio", "multiprocessing", "tempfile",
                "functools", "sched"}
        changed = [k for k in before if k[0].split(".")[0] in kept
                   and after.get(k) is not before[k]]
        allowed = {("gevent.socket", "socket"), ("gevent.ssl", "_contextawaresock")}
        allowed |= {(m, k) for m, k in changed if (m, k) in MENDED}
        assert set(changed) <= allowed, changed
        for name, items in gevent.monkey.saved.items():
            for item, original in items.items() if not name.startswith("_gevent") else ():
                assert gevent.monkey.get_original(name, item) is original
        print("good")
        """.replace("MENDED", "{('multiprocessing.spawn', 'get_preparation_data')}"),
    )
    assert good(done), done.stderr


def test_what_is_not_reached_is_named_in_one_warning(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """
import logging, socket, ssl, threading
class Mine(socket.socket):
    pass
class Worker(threading.Thread):
    pass
class Context(ssl.SSLContext):
    pass
early = socket.create_server(("127.0.0.1", 0))
stop = threading.Event()
running = threading.Thread(target=stop.wait, name="early bird")
running.start()
said = []
class Keep(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())
logging.getLogger("gcbpatch").addHandler(Keep())
import warnings
warnings.simplefilter("ignore")  # gevent's own, about ssl
""",
        """
        import gcbpatch
        gcbpatch.patch_all()
        gcbpatch.patch_all()
        assert len(said) == 1, said
        for words in ("sockets that are open already (fd %d)" % early.fileno(), "early bird",
                      "__main__.Context, __main__.Mine, __main__.Worker", "first line"):
            assert words in said[0], (words, said)
        stop.set()
        running.join()
        # What was there before works as it did.
        client = socket.create_connection(early.getsockname())
        assert early.accept()[0].getpeername() == client.getsockname()
        print("good")
        """,
    )
    assert good(done), done.stderr


def test_a_first_line_says_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, PATCHED, "print('good')")
    assert good(done)
    assert done.stderr == ""


def test_patching_again_changes_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "",
        """
        import gcbpatch
        gcbpatch.patch_all(broker="127.0.0.1:1")
        import gevent, os, socket, sys
        from gcbpatch.sockets.layer import LAYER
        before = LAYER.link, dict(os.environ), list(sys.meta_path), socket.socket, os.close
        gcbpatch.patch_all(broker="127.0.0.1:1")
        gcbpatch.patch_all()
        after = LAYER.link, dict(os.environ), list(sys.meta_path), socket.socket, os.close
        assert before == after
        print("good")
        """,
    )
    assert good(done), done.stderr
    assert done.stderr == ""


def test_other_settings_are_for_the_sockets_made_from_then_on(
    tmp_path: Path,
    broker: str,  # noqa: F811
) -> None:
    done = run(
        tmp_path,
        "",
        """
        import gcbpatch, os
        gcbpatch.patch_all(broker=os.environ["BROKER"])
        import socket
        first = socket.create_server(("", 0))
        public = first.getsockname()
        assert public[0] == "127.0.0.1"
        gcbpatch.patch_all(broker="127.0.0.1:1")
        assert os.environ["GCB_BROKER"] == "127.0.0.1:1"
        with socket.create_server(("", 0)) as second:
            assert second.getsockname()[0] == "0.0.0.0"
        assert first.getsockname() == public
        with socket.create_connection(public) as sock:
            assert first.accept()[0].getpeername() == sock.getsockname()
        print("good")
        """,
        BROKER=broker,
        GCB_PATIENCE="0.3",
    )
    assert good(done), done.stderr


def test_a_wrong_setting_changes_nothing(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "",
        """
        import gcbpatch, gcbpatch.errors, os, socket, threading, time
        os.environ["GCB_TOKEN_FILE"] = "/nonexistent"
        before = dict(os.environ), socket.socket, threading.Thread, time.sleep, os.fork
        try:
            gcbpatch.patch_all(broker="127.0.0.1:1")
        except gcbpatch.errors.ConfigError:
            after = dict(os.environ), socket.socket, threading.Thread, time.sleep, os.fork
            assert before == after
            print("good")
        """,
    )
    assert good(done), done.stderr


TALK = """
    def talk():
        listener = socket.create_server(("", 0))
        public = listener.getsockname()
        assert public[0] == "127.0.0.1", public
        got = []
        thread = threading.Thread(
            target=lambda: got.append(socket.create_connection(public).recv(10)))
        thread.start()
        sock, _ = listener.accept()
        sock.sendall(b"hello")
        sock.close()
        thread.join()
        assert got == [b"hello"], got
"""


@pytest.mark.parametrize(
    ("lines", "noise"),
    [
        ("gcbpatch.patch_all(thread=False)", ""),
        ("gcbpatch.patch_all(thread=False); gcbpatch.patch_all()", "Patching more than once"),
        ("gcbpatch.patch_all(time=False, select=False, signal=False, os=False)", ""),
        ("gcbpatch.patch_all(subprocess=False, queue=False, ssl=False)", ""),
        ("gevent.monkey.patch_all(); gcbpatch.patch_all()", ""),
        ("gevent.monkey.patch_all(socket=False); gcbpatch.patch_all()", "Patching more than once"),
        ("gevent.monkey.patch_socket(); gcbpatch.patch_all()", ""),
        ("in_a_thread()", "not on the main thread"),
    ],
)
def test_brokered_sockets_work_however_gevent_patched(
    tmp_path: Path,
    broker: str,  # noqa: F811
    lines: str,
    noise: str,
) -> None:
    done = run(
        tmp_path,
        "",
        "    import gcbpatch, gevent.monkey\n"
        "    def in_a_thread():\n"
        "        import threading\n"
        "        thread = threading.Thread(target=gcbpatch.patch_all)\n"
        "        thread.start(); thread.join()\n"
        f"    {lines}\n    import socket, threading\n{TALK}\n    talk()\n"
        "    assert socket.socket._gevent_sock_class.__module__ == 'gcbpatch.sockets.raw'\n"
        "    print('good')\n",
        GCB_BROKER=broker,
    )
    assert good(done), done.stderr
    assert (noise in done.stderr) if noise else not done.stderr, done.stderr


def test_without_gevents_sockets_nothing_is_brokered_which_is_said(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "",
        """
        import gcbpatch
        gcbpatch.patch_all(socket=False, broker="127.0.0.1:1")
        import socket
        assert not hasattr(socket.socket, "_gevent_sock_class")
        with socket.create_server(("", 0)) as listener:
            assert listener.getsockname()[0] == "0.0.0.0"
        print("good")
        """,
    )
    assert good(done), done.stderr
    assert done.stderr.count("nothing is brokered") == 1
