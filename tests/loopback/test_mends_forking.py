"""os.fork() under the patch: the thread that forks is the only one that the child has."""

from __future__ import annotations

from pathlib import Path

from .mend_ground import PATCHED, good, run, without

# Each of these waits for something that is to be had at once in the child.
WAITING = """
    import os, posix, queue, select, selectors, socket, threading, time, _thread
    parent, seen, done = os.getpid(), os.pipe(), threading.Event()
    near, far = socket.socketpair()
    listener = socket.create_server(("127.0.0.1", 0))
    lock, event, names = threading.Lock(), threading.Event(), queue.Queue()
    lock.acquire()
    def selected():
        selector = selectors.DefaultSelector()
        selector.register(near, selectors.EVENT_READ)
        selector.select()
    def polled(timeout=None):
        poller = select.poll()
        poller.register(near, select.POLLIN)
        poller.poll(timeout)
    def slept():
        for _ in range(1000):
            time.sleep(0.01)
            if os.getpid() != parent or done.is_set():
                return
    waits = [
        lambda: near.recv(1), lambda: listener.accept(), lambda: select.select([near], [], []),
        selected, polled, lambda: polled(100000), slept, event.wait, lambda: event.wait(100),
        lock.acquire, lambda: lock.acquire(timeout=100), names.get,
    ]
    def waiting(number):
        try:
            waits[number]()
        finally:
            if os.getpid() != parent:
                posix.write(seen[1], b"%d " % number)
    for number in range(len(waits)):
        threading.Thread(target=waiting, args=(number,), daemon=True).start()
    time.sleep(0.05)
    turns = []
    if os.fork() == 0:
        import gevent
        gevent.get_hub().loop.prepare().start(turns.append, 1)
        far.send(b"x" * 100)
        lock.release(); event.set(); names.put(1)
        socket.create_connection(listener.getsockname())
        time.sleep(0.3)
        posix.write(seen[1], b"%s " % (b"quiet" if len(turns) < 100 else b"busy"))
        raise SystemExit
    os.wait()
    posix.close(seen[1])
    print(posix.read(seen[0], 1000).decode())
    print("good")
"""

# The main thread waits for what the child could have, too.
IN_A_THREAD = """
    import os, posix, threading, time
    here, there = os.pipe()
    def fork():
        if os.fork() == 0:
            time.sleep(0.1)
            os.write(there, b"child ")
            return
        os.wait()
        time.sleep(0.1)
        posix.write(there, b"parent")
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    print(os.read(here, 100).decode())
    print("good")
"""


def test_the_other_threads_stay_where_they_are(tmp_path: Path) -> None:
    done = run(tmp_path, PATCHED, WAITING)
    assert good(done), done.stderr
    assert done.stdout.splitlines()[0] == "quiet ", done.stdout
    assert done.stderr == ""


def test_without_the_mend_they_go_on_in_the_child(tmp_path: Path) -> None:
    done = run(tmp_path, without("gevent.hub"), WAITING)
    assert set("01234") & set(done.stdout.splitlines()[0].split()), done.stdout


def test_a_child_of_a_thread_ends_with_it(tmp_path: Path) -> None:
    done = run(tmp_path, PATCHED, IN_A_THREAD)
    assert good(done), done.stderr
    assert done.stdout == "child parent\ngood\n"


def test_as_it_does_without_any_patch(tmp_path: Path) -> None:
    for program in IN_A_THREAD, WAITING.replace("import gevent", "").replace("gevent.get_hub", "#"):
        done = run(tmp_path, "", program)
        assert good(done), done.stderr
        assert done.stdout.splitlines()[0] in ("child parent", "quiet "), done.stdout


def test_a_program_without_threads_forks_as_ever(tmp_path: Path) -> None:
    """Greenlets that it has made of gevent itself are not touched."""
    done = run(
        tmp_path,
        PATCHED,
        """
        import gevent, os
        def told():
            gevent.sleep(0.05)
            os.write(1, b"told\\n")
        greenlet = gevent.spawn(told)
        gevent.sleep(0)
        if os.fork() == 0:
            greenlet.join()
            os._exit(0)
        os.wait()
        greenlet.join()
        print("good")
        """,
    )
    assert good(done), done.stderr
    assert done.stdout.count("told\n") == 2
