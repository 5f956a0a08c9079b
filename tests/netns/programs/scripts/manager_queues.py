"""multiprocessing.managers: queues and a dictionary that processes on other hosts share.

manager_queues.py serve | manager_queues.py work HOST PORT | manager_queues.py ask HOST PORT.
It knows nothing of NATs.
"""

import queue
import sys
import time
from multiprocessing.managers import SyncManager

KEY = b"a key of the test"


class Shared(SyncManager):
    """A manager with two queues and a dictionary that everybody gets the same of."""


def serve() -> None:
    """Serve for ever, in a process of its own, as managers do."""
    tasks: queue.Queue[int] = queue.Queue()
    results: queue.Queue[tuple[int, int]] = queue.Queue()
    Shared.register("tasks", callable=lambda: tasks)
    Shared.register("results", callable=lambda: results)
    with Shared(address=("", 0), authkey=KEY) as manager:
        print("listening on {}:{}".format(*manager.address), flush=True)
        while True:
            time.sleep(60)


def connected(host: str, port: str) -> Shared:
    """A manager that somebody else serves."""
    for name in ("tasks", "results"):
        Shared.register(name)
    manager = Shared(address=(host, int(port)), authkey=KEY)
    manager.connect()
    return manager


def work(host: str, port: str) -> None:
    """Work until there is a task of 0."""
    manager = connected(host, port)
    tasks, results = manager.tasks(), manager.results()
    print("working", flush=True)
    for number in iter(tasks.get, 0):
        results.put((number, number**2))


def ask(host: str, port: str) -> None:
    """Hand out tasks and collect the results in a dictionary that the manager keeps."""
    manager = connected(host, port)
    tasks, results, found = manager.tasks(), manager.results(), manager.dict()
    for number in range(1, 6):
        tasks.put(number)
    for _ in range(5):
        found.update([results.get()])
    tasks.put(0)
    print("found", sorted(found.items()), flush=True)


if __name__ == "__main__":
    {"serve": serve, "work": work, "ask": ask}[sys.argv[1]](*sys.argv[2:])
