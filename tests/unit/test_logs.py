"""The log file: whole lines, and no trouble for anybody when it cannot be written."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from gcbpatch.logs import LineFile, log_into


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger of its own, without anybody else's handlers."""
    made = logging.getLogger("tests.logs")
    made.setLevel("INFO")
    made.propagate = False
    yield made
    for handler in ours(made):
        made.removeHandler(handler)
        handler.close()


def ours(logger: logging.Logger) -> list[LineFile]:
    """Our handlers: pytest has some of its own on every logger."""
    return [one for one in logger.handlers if isinstance(one, LineFile)]


def test_a_line_says_who_and_which_process(logger: logging.Logger, tmp_path: Path) -> None:
    assert log_into(logger, str(tmp_path / "log"), "program") is None
    logger.info("on %s", "and on")
    assert (tmp_path / "log").read_text().endswith(f" program[{os.getpid()}] on and on\n")


def test_a_program_may_do_without_process_numbers(
    logger: logging.Logger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "logProcesses", False)
    log_into(logger, str(tmp_path / "log"), "program")
    logger.info("on")
    assert (tmp_path / "log").read_text().endswith(f" program[{os.getpid()}] on\n")


def test_what_is_there_already_stays(logger: logging.Logger, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    log_into(logger, str(tmp_path / "log"), "program")
    logger.info("after")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split()[-1] for line in lines] == ["before", "after"]


def test_a_full_disk_is_not_told_on_the_terminal(
    logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    assert log_into(logger, "/dev/full", "program") is None
    logger.warning("lost")
    assert capfd.readouterr() == ("", "")


def test_lines_that_were_lost_are_counted(
    logger: logging.Logger, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log_into(logger, str(log), "program")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        logger.info("one")
        logger.info("two")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.read_text() == ""
    logger.info("three")
    logger.info("four")
    lines = log.read_text().splitlines()
    assert lines[0] == "(2 lines could not be written)"
    assert [line.split()[-1] for line in lines[1:]] == ["three", "four"]
    assert capfd.readouterr() == ("", "")


def test_a_descriptor_that_is_another_files_by_now_is_left_alone(
    logger: logging.Logger, tmp_path: Path
) -> None:
    log_into(logger, str(tmp_path / "log"), "program")
    (handler,) = ours(logger)
    number = handler._fd
    with open(tmp_path / "other", "w") as other:
        os.dup2(other.fileno(), number)  # as if a daemon had closed all and opened others
        logger.info("mine")
        assert (tmp_path / "other").read_text() == ""
        assert "mine" in (tmp_path / "log").read_text()
        handler.close()
        os.close(number)


def test_a_file_that_cannot_be_opened_is_reported(logger: logging.Logger, tmp_path: Path) -> None:
    problem = log_into(logger, str(tmp_path / "nowhere" / "log"), "program")
    assert isinstance(problem, FileNotFoundError)
    assert ours(logger) == []


def test_a_pipe_that_nobody_reads_holds_nobody_up(logger: logging.Logger, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    assert isinstance(log_into(logger, str(tmp_path / "log"), "program"), OSError)
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert log_into(logger, str(tmp_path / "log"), "program") is None
        for _ in range(2000):
            logger.info("x" * 100)  # more than a pipe holds
        assert len(os.read(reader, 1000)) == 1000
    finally:
        os.close(reader)
