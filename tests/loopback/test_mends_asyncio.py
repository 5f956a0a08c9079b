"""asyncio under the patch: a loop for each thread, beside blocking code in others."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mend_ground import PATCHED, STUCK, good, run, without

WITHOUT = without("asyncio.events")

TWO_LOOPS = """
    import asyncio, threading
    async def ticks(name):
        for _ in range(5):
            await asyncio.sleep(0.01)
        return name, asyncio.get_running_loop()
    got = []
    threads = [threading.Thread(target=lambda n=n: got.append(asyncio.run(ticks(n)))) for n in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in got) == ["a", "b"], got
    assert got[0][1] is not got[1][1]
    print("good")
"""

LOOPS_BY_OTHER_SELECTORS = """
    import asyncio, selectors, threading
    got = []
    def turn(kind):
        loop = asyncio.SelectorEventLoop(kind())
        got.append(loop.run_until_complete(asyncio.sleep(0.02, kind)))
        loop.close()
    kinds = [selectors.SelectSelector, selectors.PollSelector, selectors.DefaultSelector]
    threads = [threading.Thread(target=turn, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(got) == set(kinds), got
    print("good")
"""

BLOCKING_CODE_IN_A_COROUTINE = """
    import asyncio, threading, time
    inside = threading.Event()
    async def blocks():
        inside.set()
        time.sleep(0.05)
        return asyncio.get_running_loop() is loop
    def other():
        inside.wait()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            seen.append("no loop here")
        seen.append(asyncio.run(asyncio.sleep(0, "a loop of its own")))
    seen = []
    thread = threading.Thread(target=other)
    thread.start()
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(blocks())
    thread.join()
    loop.close()
    assert seen == ["no loop here", "a loop of its own"], seen
    print("good")
"""

FORGOTTEN_GENERATORS = """
    import asyncio, threading
    closed = {}
    turn = threading.Barrier(2)
    async def numbers(name):
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed[name] = threading.get_ident()
    async def main(name):
        await asyncio.sleep(0.01 if name == "a" else 0.02)
        generator = numbers(name)
        await generator.__anext__()
        await asyncio.sleep(0.03)
        kept.append(generator)
        return threading.get_ident()
    kept, expected = [], {}
    def run(name):
        turn.wait()
        expected[name] = asyncio.run(main(name))
    threads = [threading.Thread(target=run, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(closed) == 2 and closed == expected, (closed, expected)
    print("good")
"""

STREAMS_BESIDE_PLAIN_SOCKETS = """
    import asyncio, socket, threading
    async def echo(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    def client(address, loop, done):
        with socket.create_connection(address) as sock:
            sock.sendall(b"hello\\n")
            got.append(sock.makefile().readline())
        # A second loop, whose streams talk to the first one's server.
        got.append(asyncio.run(ask(address)))
        loop.call_soon_threadsafe(done.set)
    async def ask(address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"streams\\n")
        line = await reader.readline()
        writer.close()
        return line.decode()
    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        done = asyncio.Event()
        address = server.sockets[0].getsockname()
        thread = threading.Thread(
            target=client, args=(address, asyncio.get_running_loop(), done))
        thread.start()
        await done.wait()
        server.close()
    got = []
    asyncio.run(main())
    assert got == ["hello\\n", "streams\\n"], got
    print("good")
"""


@pytest.mark.parametrize(
    "program",
    [
        TWO_LOOPS,
        LOOPS_BY_OTHER_SELECTORS,
        BLOCKING_CODE_IN_A_COROUTINE,
        FORGOTTEN_GENERATORS,
        STREAMS_BESIDE_PLAIN_SOCKETS,
    ],
    ids=["two loops", "other selectors", "blocking code", "generators", "streams"],
)
def test_every_thread_has_a_loop_of_its_own(tmp_path: Path, program: str) -> None:
    done = run(tmp_path, PATCHED, program)
    assert good(done), done.stderr
    assert not good(run(tmp_path, WITHOUT, program, STUCK)), "the mend was not needed"


def test_executors_subprocesses_and_signals_work_in_a_loop(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import asyncio, os, signal, sys, time
        async def main():
            loop = asyncio.get_running_loop()
            assert await asyncio.to_thread(lambda: time.sleep(0.01) or 7) == 7
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "print(input())", stdin=-1, stdout=-1)
            out, _ = await child.communicate(b"word\\n")
            assert (out, child.returncode) == (b"word\\n", 0)
            came = asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, came.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await came.wait()
        asyncio.run(main())
        print("good")
        """,
    )
    assert good(done), done.stderr


def test_a_program_that_does_not_use_asyncio_does_not_load_it(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        PATCHED,
        """
        import sys
        loaded = {name.split(".")[0] for name in sys.modules}
        assert not loaded & {"asyncio", "multiprocessing"}, loaded
        from gevent.hub import Hub
        assert "switch" not in vars(Hub)
        import asyncio
        assert "switch" in vars(Hub)
        print("good")
        """,
    )
    assert good(done), done.stderr
