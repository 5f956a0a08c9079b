"""Dask: put data on one worker, compute with it on the other. dask_use.py SCHEDULER [restart].

Prints as JSON who of the workers fetched how many bytes from whom. It knows nothing of NATs.
"""

import json
import sys

from distributed import Client


def incoming(dask_worker) -> list[tuple[str, int]]:  # type: ignore[no-untyped-def]
    """Runs in a worker: from whom it fetched data, and how many bytes."""
    return [(entry["who"], entry["total"]) for entry in dask_worker.transfer_incoming_log]


def main(scheduler: str, *commands: str) -> None:
    """Have each worker compute with what the other one holds; with new workers, if told so."""
    with Client(scheduler, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        if commands:
            client.restart(timeout=60)
        first, second = sorted(client.scheduler_info()["workers"])
        for here, there in ((first, second), (second, first)):
            data = client.submit(bytes, 1_000_000, workers=[here], pure=False)
            size = client.submit(len, data, workers=[there], pure=False)
            print("size", size.result(timeout=60), flush=True)
        print("transfers", json.dumps(client.run(incoming)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
