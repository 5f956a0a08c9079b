"""Where the layer's own words go, and that nothing else suffers when they cannot go there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gcbpatch.addresses import format_address

from .broker_client import Broker
from .test_patched import run

REGISTERS = """
    import gcbpatch; gcbpatch.patch_all()
    import logging, os, socket
    logging.getLogger("gcbpatch").warning("a line of the program's side")
    with socket.create_server(("", 0)) as listener:
        name = listener.getsockname()
        assert name[0] == os.environ["GCB_BROKER"].split(":")[0], name
        near = socket.create_connection(name)
        far, peer = listener.accept()
        near.sendall(b"as ever")
        assert far.recv(100) == b"as ever"
    print("good")
"""


def test_program_and_agent_write_whole_lines_into_one_file(broker: Broker, tmp_path: Path) -> None:
    log = tmp_path / "log"
    done = run(
        REGISTERS,
        GCB_BROKER=format_address(broker.address),
        GCB_LOG="INFO",
        GCB_LOG_FILE=os.path.relpath(log, Path(__file__).resolve().parents[2]),
    )
    assert (done.stdout, done.stderr) == ("good\n", "")
    who = {line.split()[2].partition("[")[0] for line in log.read_text().splitlines()}
    assert who == {"program", "agent"}


def test_a_full_disk_costs_lines_and_nothing_else(broker: Broker) -> None:
    done = run(
        REGISTERS,
        GCB_BROKER=format_address(broker.address),
        GCB_LOG="DEBUG",
        GCB_LOG_FILE="/dev/full",
    )
    assert (done.stdout, done.stderr) == ("good\n", "")


@pytest.mark.parametrize("path", ["/nonexistent/log", "/dev/null/log", "/"])
def test_a_log_file_that_cannot_be_opened_is_one_warning(broker: Broker, path: str) -> None:
    done = run(
        REGISTERS,
        GCB_BROKER=format_address(broker.address),
        GCB_LOG_FILE=path,
    )
    assert done.stdout == "good\n", done.stderr
    warning, _ = done.stderr.splitlines()  # and the line that could not go there
    assert warning.startswith(f"GCB_LOG_FILE={path}: cannot be written: "), warning


def test_a_program_whose_standard_error_is_full_goes_on() -> None:
    done = run(
        """
        import os
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)
        import gcbpatch; gcbpatch.patch_all()
        import socket
        with socket.create_server(("", 0)) as listener:
            print(listener.getsockname()[0])
        """,
        GCB_BROKER="127.0.0.1:1",
        GCB_PATIENCE="0.2",
    )
    assert (done.returncode, done.stdout) == (0, "0.0.0.0\n")
