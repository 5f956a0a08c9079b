"""Where we log to: one file that a program, its children and their agent write lines into.

Logging must never cost a program anything else: a disk that is full loses lines, a file that
cannot be opened is warned about once, and nothing is ever printed or raised in the midst of a
connect. Nor may a line ever be written into a file of the program's that has got our number.
"""

from __future__ import annotations

import logging
import os
from copy import copy

FILE_VARIABLE = "GCB_LOG_FILE"


class LineFile(logging.Handler):
    """Appends each record to a file with one write, so that lines of several processes stay whole.

    Raises OSError when the file cannot be opened at first. Later failures are counted, and the
    number of lost lines is told with the next line that can be written.
    """

    def __init__(self, path: str, who: str) -> None:
        self._path = os.path.abspath(path)
        self._fd, self._identity = _open(self._path)
        self._lost = 0
        super().__init__()
        self.setFormatter(logging.Formatter(f"%(asctime)s {who}[%(process)d] %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it as lost."""
        ours = copy(record)
        # A program may have switched it off (logging.logProcesses), as pyftpdlib does.
        ours.process = os.getpid()
        text = self.format(ours)
        if self._lost:
            text = f"({self._lost} lines could not be written)\n{text}"
        try:
            self._write(f"{text}\n".encode(errors="backslashreplace"))
            self._lost = 0
        except OSError:
            # A full disk, a descriptor table that is full: told as soon as it can be.
            self._lost += 1

    def _write(self, line: bytes) -> None:
        if not _is(self._fd, self._identity):
            # The program has closed all descriptors, as daemons do: the number is not ours.
            self._fd, self._identity = _open(self._path)
        while line:
            line = line[os.write(self._fd, line) :]

    def close(self) -> None:
        """Close the file, if the number is still its own."""
        if _is(self._fd, self._identity):
            os.close(self._fd)
        super().close()


def _open(path: str) -> tuple[int, tuple[int, int]]:
    # Where the file is a pipe, nobody who does not read may hold the program up.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK
    fd = os.open(path, flags, 0o666)
    found = os.fstat(fd)
    return fd, (found.st_dev, found.st_ino)


def _is(fd: int, identity: tuple[int, int]) -> bool:
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == identity


def log_into(logger: logging.Logger, path: str, who: str) -> OSError | None:
    """Have a logger write into ``path``; return what was in the way, if it cannot.

    ``who`` stands in each line, before the process's number.
    """
    try:
        logger.addHandler(LineFile(path, who))
    except OSError as error:
        return error
    return None
