"""Sends a job to the pool and waits for it: a Python script, and one task for each input.

An input is what its task reads from standard input. The exit status is 0 if every task ran and
ended with 0, otherwise 1.

    python submit.py --schedd HOST:PORT [--json] [--timeout S] SCRIPT INPUT...
    python submit.py --schedd 192.0.2.1:4000 jobs/primes.py "0 50000" "50000 100000"
"""

import argparse
import json
import socket
import sys
from pathlib import Path
from typing import Any

import service
import wire

CONNECT_TIMEOUT_S = 10.0

Report = dict[str, Any]


def run_job(
    schedd: service.Address, script: str, inputs: list[str], timeout: float
) -> list[Report]:
    """Returns the report of each task, in the order of the inputs.

    `timeout` is how long, in seconds, the schedd may be silent. Raises OSError, wire.Refused,
    wire.BadMessage.
    """
    reports: dict[int, Report] = {}
    with socket.create_connection(schedd, CONNECT_TIMEOUT_S) as sock:
        sock.settimeout(timeout)
        wire.send(sock, {"type": "submit", "script": script, "inputs": inputs})
        while (message := wire.expect(wire.receive(sock))).get("type") != "done":
            report = wire.field(message, "report", dict)
            reports[wire.field(report, "task", int)] = report
    if sorted(reports) != list(range(len(inputs))):
        raise wire.BadMessage(f"{len(reports)} reports for {len(inputs)} tasks")
    return [reports[number] | {"input": inputs[number]} for number in range(len(inputs))]


def succeeded(report: Report) -> bool:
    return report["error"] is None and report["exit_status"] == 0


def print_text(reports: list[Report]) -> None:
    """What each task wrote goes to stdout, everything about it to stderr."""
    for report in reports:
        print(describe(report), file=sys.stderr)
        sys.stderr.write(report["stderr"])
        sys.stderr.flush()
        sys.stdout.write(report["stdout"])
        sys.stdout.flush()


def describe(report: Report) -> str:
    head = f"task {report['task']} ({report['input']})"
    if report["error"] is not None:
        tries = "; ".join(f"{t['startd']} at {t['address']}" for t in report["failed_tries"])
        return f"{head}: failed: {report['error']}" + (f" (tried {tries})" if tries else "")
    where = f"{report['startd']} at {report['address']}, connected in {report['connect_ms']} ms"
    return f"{head}: exit {report['exit_status']} on {where}"


def print_json(script: Path, reports: list[Report]) -> None:
    ok = all(map(succeeded, reports))
    print(json.dumps({"job": script.name, "ok": ok, "tasks": reports}, indent=2))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="sends a job to the pool and waits for it")
    parser.add_argument("--schedd", required=True, type=service.address_argument)
    parser.add_argument("--json", action="store_true", help="print one JSON report of all tasks")
    parser.add_argument(
        "--timeout",
        type=service.seconds_argument,
        default=3600.0,
        metavar="S",
        help="how long no task may end (default: an hour)",
    )
    parser.add_argument("script", type=Path, metavar="SCRIPT", help="the job, in Python")
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="standard input of one task")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    try:
        script = arguments.script.read_text(encoding="utf-8")
        reports = run_job(arguments.schedd, script, arguments.inputs, arguments.timeout)
    except (OSError, ValueError, wire.Refused) as error:
        print(f"submit: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print_json(arguments.script, reports)
    else:
        print_text(reports)
    return 0 if all(map(succeeded, reports)) else 1


if __name__ == "__main__":
    sys.exit(main())
