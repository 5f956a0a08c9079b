"""multiprocessing's connections and locks under the patch: waiting stops nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mend_ground import PATCHED, STUCK, good, run, without

CONNECTION = "multiprocessing.connection"
SYNCHRONIZE = "multiprocessing.synchronize"
SHARER = "multiprocessing.resource_sharer"

UNMENDED = "from gcbpatch import mends; mends.MENDS.clear()\n" + PATCHED

ECHO_BY_LISTENER_AND_CLIENT = """
    import threading
    from multiprocessing.connection import Client, Listener
    def serve():
        with listener.accept() as conn:
            conn.send([conn.recv(), listener.last_accepted is not None])
    for family, address in (("AF_INET", ("127.0.0.1", 0)), ("AF_UNIX", None)):
        with Listener(address, family, authkey=b"secret") as listener:
            thread = threading.Thread(target=serve)
            thread.start()
            with Client(listener.address, authkey=b"secret") as conn:
                conn.send({"big": b"x" * 3_000_000})
                answer, known = conn.recv()
                assert len(answer["big"]) == 3_000_000 and known
            thread.join()
    print("good")
"""

PIPES_BETWEEN_THREADS = """
    import multiprocessing, threading
    for duplex in (True, False):
        here, there = multiprocessing.Pipe(duplex)
        # More than a pipe or a socket takes: the sender waits while the receiver works.
        thread = threading.Thread(target=lambda: there.send_bytes(b"x" * 3_000_000))
        thread.start()
        assert len(here.recv_bytes()) == 3_000_000
        thread.join()
        there.close()
        try:
            here.recv()
        except EOFError:
            here.close()
    print("good")
"""

OTHERS_RUN_WHILE_ONE_RECEIVES = """
    import multiprocessing, threading
    for duplex in (True, False):
        here, there = multiprocessing.Pipe(duplex)
        threading.Timer(0.05, there.send, ("late",)).start()
        assert here.recv() == "late"
        threading.Timer(0.05, there.send, ("later",)).start()
        assert multiprocessing.connection.wait([here], timeout=30) == [here]
        assert here.recv() == "later"
        assert not here.poll(0.01)
    print("good")
"""

MANAGER = """
    import multiprocessing, threading
    from multiprocessing.managers import BaseManager
    class Register(BaseManager):
        pass
    store = {}
    Register.register("store", callable=lambda: store, proxytype=multiprocessing.managers.DictProxy)
    def serve():
        manager = Register(("127.0.0.1", 0), b"key")
        server = manager.get_server()
        addresses.append(server.address)
        ready.set()
        server.serve_forever()
    if __name__ == "__main__":
        addresses, ready = [], threading.Event()
        threading.Thread(target=serve, daemon=True).start()
        ready.wait()
        manager = Register(addresses[0], b"key")
        manager.connect()
        manager.store().update(a=1)
        assert manager.store().copy() == {"a": 1} == store
        with multiprocessing.Manager() as shared:
            names = shared.list()
            threads = [threading.Thread(target=names.append, args=(n,)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sorted(names) == list(range(8))
        print("good")
"""


@pytest.mark.parametrize(
    "program",
    [
        ECHO_BY_LISTENER_AND_CLIENT,
        PIPES_BETWEEN_THREADS,
        OTHERS_RUN_WHILE_ONE_RECEIVES,
        MANAGER,
    ],
    ids=["listener and client", "pipes", "others run", "manager"],
)
def test_a_connection_waits_without_stopping_the_others(tmp_path: Path, program: str) -> None:
    done = run(tmp_path, PATCHED, program)
    assert good(done), done.stderr
    assert not good(run(tmp_path, without(CONNECTION), program, STUCK)), "the mend was not needed"


def test_the_end_of_a_pipe_is_seen_when_nothing_else_happens(tmp_path: Path) -> None:
    program = """
        import multiprocessing, threading
        here, there = multiprocessing.Pipe(duplex=False)
        started = threading.Event()
        def close():
            started.wait()
            there.close()
        threading.Thread(target=close).start()
        started.set()
        try:
            here.recv()
        except EOFError:
            print("good")
    """
    done = run(tmp_path, PATCHED, program)
    assert good(done), done.stderr
    assert not good(run(tmp_path, without("os"), program, STUCK)), "the mend was not needed"


def test_a_pipe_stays_as_blocking_as_it_was_made(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import multiprocessing, os, subprocess, sys, threading
        here, there = multiprocessing.Pipe(duplex=False)
        threading.Timer(0.05, there.send, (1,)).start()
        here.recv()
        assert os.get_blocking(here.fileno()) and os.get_blocking(there.fileno())
        # A program that is not patched and reads the same pipe expects to wait.
        reads = "import os, sys; print(os.read(int(sys.argv[1]), 1))"
        child = subprocess.Popen([sys.executable, "-I", "-c", reads, str(here.fileno())],
                                 pass_fds=[here.fileno()], stdout=subprocess.PIPE)
        threading.Timer(0.3, os.write, (there.fileno(), b"x")).start()
        assert child.communicate()[0] == b"b'x'\\n"
        print("good")
        """,
    )
    assert good(done), done.stderr


TWO_GET_FROM_ONE_QUEUE = """
    import multiprocessing, threading
    queue = multiprocessing.Queue()
    got = []
    threads = [threading.Thread(target=lambda: got.append(queue.get())) for _ in range(3)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.05)
    for number in range(3):
        queue.put(number)
    for thread in threads:
        thread.join()
    assert sorted(got) == [0, 1, 2], got
    print("good")
"""

LOCKS_BETWEEN_THREADS = """
    import multiprocessing, threading, time
    for lock in (multiprocessing.Lock(), multiprocessing.RLock(), multiprocessing.Semaphore(1)):
        inside, order = threading.Event(), []
        def hold():
            with lock:
                inside.set()
                time.sleep(0.05)
                order.append("holder")
        thread = threading.Thread(target=hold)
        thread.start()
        inside.wait()
        assert not lock.acquire(False)
        assert not lock.acquire(True, 0.01)
        with lock:
            order.append("waiter")
        thread.join()
        assert order == ["holder", "waiter"], (lock, order)
    with multiprocessing.RLock() as _, multiprocessing.RLock():
        pass
    recursive = multiprocessing.RLock()
    with recursive, recursive:
        assert recursive._semlock._count() == 2
    print("good")
"""

CONDITIONS_EVENTS_AND_BARRIERS = """
    import multiprocessing, threading
    event = multiprocessing.Event()
    threading.Timer(0.05, event.set).start()
    assert event.wait(30)
    assert not multiprocessing.Event().wait(0.01)
    condition, said = multiprocessing.Condition(), []
    def say():
        with condition:
            said.append(1)
            condition.notify_all()
    threading.Timer(0.05, say).start()
    with condition:
        assert condition.wait_for(lambda: said, timeout=30)
    barrier, passed = multiprocessing.Barrier(3), []
    threads = [threading.Thread(target=lambda: passed.append(barrier.wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(passed) == [0, 1, 2], passed
    print("good")
"""


@pytest.mark.parametrize(
    "program",
    [TWO_GET_FROM_ONE_QUEUE, LOCKS_BETWEEN_THREADS, CONDITIONS_EVENTS_AND_BARRIERS],
    ids=["queue", "locks", "conditions"],
)
def test_a_semaphore_is_waited_for_without_stopping_the_others(
    tmp_path: Path, program: str
) -> None:
    done = run(tmp_path, PATCHED, program)
    assert good(done), done.stderr
    assert not good(run(tmp_path, without(SYNCHRONIZE), program, STUCK)), "the mend was not needed"


POOL = """
    import multiprocessing, os
    def square(number):
        return number * number
    if __name__ == "__main__":
        multiprocessing.set_start_method(os.environ["METHOD"])
        with multiprocessing.Pool(2) as pool:
            assert pool.map(square, range(20)) == [n * n for n in range(20)]
            assert pool.apply_async(square, (3,)).get(30) == 9
        print("good")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_works_and_ends(tmp_path: Path, method: str) -> None:
    done = run(tmp_path, PATCHED, POOL, METHOD=method)
    assert good(done), done.stderr
    assert not good(run(tmp_path, UNMENDED, POOL, STUCK, METHOD=method)), "no mend was needed"


def test_a_descriptor_is_shared_without_blocking_the_programs_signals(tmp_path: Path) -> None:
    program = """
        import multiprocessing, os, signal, sys, time
        def child(conn, queue):
            conn.send("from the child")
            queue.put("through a queue")
        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            queue = multiprocessing.SimpleQueue()
            here, there = multiprocessing.Pipe()
            # Sent to a process that runs already, the pipe goes by the resource sharer.
            ours, theirs = multiprocessing.Pipe()
            ours.send(there)
            theirs.recv().send("word")
            assert here.recv() == "word"
            assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())
            print("good")
    """
    done = run(tmp_path, PATCHED, program)
    assert good(done), done.stderr
    assert not good(run(tmp_path, without(SHARER), program, STUCK)), "the mend was not needed"


def test_a_forked_child_is_not_kept_busy_by_what_its_parent_shares(tmp_path: Path) -> None:
    program = """
        import multiprocessing
        def child(conn):
            for _ in range(20):
                conn.send(conn.recv())
        if __name__ == "__main__":
            multiprocessing.set_start_method("fork")
            ours, theirs = multiprocessing.Pipe()
            shared, _ = multiprocessing.Pipe()
            ours.send(shared)
            theirs.recv().close()  # the thread that shares descriptors is at work
            near, far = multiprocessing.Pipe()
            process = multiprocessing.Process(target=child, args=(far,))
            process.start()
            for number in range(20):
                near.send(number)
                assert near.recv() == number
            process.join()
            print("good")
    """
    done = run(tmp_path, PATCHED, program)
    assert good(done) and not done.stderr, done.stderr[-2000:]
    assert not good(run(tmp_path, without(SHARER), program, STUCK)), "the mend was not needed"
