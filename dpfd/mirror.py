"""The mirror file: the mapping table on disk, so that mappings outlive the daemon.

SQLite in WAL mode. A change that was committed survives the death of the process. It is on the
disk at most GROUP_SECONDS and one fdatasync later, together with all others of that time; power
loss may cost those, which the clients' RENEW and FORWARD bring back. A public address that was
freed goes to somebody else only when its freeing is on the disk, or a lost tail could bring
back its old owner. The file is held exclusively while it is open, and holds the clients'
nonces, so only its owner may read it. It must never overwrite a file that is not a mirror of
this version.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any

import gevent
from gevent.event import Event

from gcbpatch.errors import ConfigError, GcbError

from . import faults
from .table import Mapping, Owner

APPLICATION_ID = 0x47434264
"""Marks a SQLite file as dpfd's (bytes 68 to 71 of the file)."""
VERSION = 1
GROUP_SECONDS = 0.05
"""How long the first change of a group waits for others before all are made durable."""
RETRY_SECONDS = 5.0
"""Before a disk that refused is tried again."""

log = logging.getLogger("dpfd.mirror")

_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE mappings (
    client BLOB NOT NULL, listener BLOB NOT NULL, protocol INTEGER NOT NULL,
    public_host TEXT NOT NULL, public_port INTEGER NOT NULL,
    inside_host TEXT NOT NULL, inside_port INTEGER NOT NULL,
    management_host TEXT NOT NULL, management_port INTEGER NOT NULL,
    nonce BLOB NOT NULL, lifetime INTEGER NOT NULL,
    PRIMARY KEY (client, listener), UNIQUE (protocol, public_host, public_port)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""
_OWNED = "FROM mappings WHERE client = ? AND listener = ?"
_PUBLIC = f"SELECT protocol, public_host, public_port {_OWNED}"
_DELETE = f"DELETE {_OWNED}"


class MirrorError(GcbError):
    """The mirror could not be written; it holds what it held before."""


class Mirror:
    """An open mirror file."""

    def __init__(self, path: str, fresh_epoch: bytes) -> None:
        """Open or make the file; ``fresh_epoch`` becomes the epoch of a new one.

        Raises ConfigError if it is somebody else's file, or newer, or held by another dpfd.
        """
        self._path = path
        self._log: int | None = None
        self._changed = Event()
        self._freed: set[tuple[int, str, int]] = set()
        self._connection = _opened(path)
        try:
            self._prepare(fresh_epoch)
        except sqlite3.Error as error:
            self._connection.close()
            raise ConfigError(_complaint(path, error)) from error
        except ConfigError:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let go of the file; SQLite moves what is in the log into it, durably."""
        if self._log is not None:
            os.close(self._log)
            self._log = None
        self._connection.close()

    def keep_durable(self) -> None:
        """Bring changes to the disk, a group at a time; to be run as a greenlet."""
        while True:
            self._changed.wait()
            gevent.sleep(GROUP_SECONDS)
            self._changed.clear()
            freed = set(self._freed)
            try:
                gevent.get_hub().threadpool.apply(self.sync)
            except OSError as error:
                log.error("%s: not on the disk, tried again: %s", self._path, error)
                self._changed.set()
                gevent.sleep(RETRY_SECONDS)
            else:
                self._freed -= freed

    def sync(self) -> None:
        """Have on the disk what was committed. Raises OSError."""
        if self._log is None:
            self._log = os.open(f"{self._path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        os.fdatasync(self._log)

    @property
    def epoch(self) -> bytes:
        """8 bytes that stay the same as long as this file does."""
        query = "SELECT value FROM meta WHERE name = 'epoch'"
        return bytes(self._connection.execute(query).fetchone()[0])

    def born(self, now: int) -> int:
        """Return since when this mirror has kept what is in it; ``now`` if it does not know yet.

        Seconds by the clock on the wall. Raises MirrorError.
        """
        with self._change() as connection:
            known = (str(now).encode(),)
            connection.execute("INSERT OR IGNORE INTO meta VALUES ('born', ?)", known)
            query = "SELECT value FROM meta WHERE name = 'born'"
            return int(connection.execute(query).fetchone()[0])

    def mappings(self) -> list[Mapping]:
        """Return all mappings. Raises MirrorError."""
        try:
            rows = self._connection.execute("SELECT * FROM mappings ORDER BY client, listener")
            return [_mapping(row) for row in rows]
        except sqlite3.Error as error:
            raise MirrorError(f"{self._path}: cannot be read: {error}") from error

    def put(self, mapping: Mapping, instead: Owner | None = None) -> None:
        """Enter a mapping in the place of its owner's old one, and of another owner's.

        Raises MirrorError; nothing is changed then.
        """
        self._settle(mapping)
        marks = ", ".join("?" * len(_row(mapping)))
        with self._change() as connection:
            for owner in {mapping.owner, instead or mapping.owner}:
                self._delete(connection, owner)
            connection.execute(f"INSERT INTO mappings VALUES ({marks})", _row(mapping))
        self._freed.discard((mapping.protocol, *mapping.public))

    def remove(self, owners: list[Owner]) -> None:
        """Take mappings out; one that is not there is passed over. Raises MirrorError."""
        with self._change() as connection:
            for owner in owners:
                self._delete(connection, owner)

    def _delete(self, connection: sqlite3.Connection, owner: Owner) -> None:
        self._freed.update(connection.execute(_PUBLIC, owner))
        connection.execute(_DELETE, owner)

    def _settle(self, mapping: Mapping) -> None:
        """Wait for the disk if this mapping's public address was another's a moment ago."""
        if (mapping.protocol, *mapping.public) not in self._freed:
            return
        try:
            self.sync()
        except OSError as error:
            raise MirrorError(f"{self._path}: cannot be written: {error}") from error
        self._freed.clear()

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._connection:
                yield self._connection
                faults.point("mirror: written")
        except sqlite3.Error as error:
            raise MirrorError(f"{self._path}: cannot be written: {error}") from error
        faults.point("mirror: committed")
        self._changed.set()

    def _prepare(self, fresh_epoch: bytes) -> None:
        # The first reading tells a file that is no database, the exclusive lock another dpfd.
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        if self._pragma("schema_version") == 0 and self._pragma("application_id") == 0:
            self._make(fresh_epoch)
            return
        if self._pragma("application_id") != APPLICATION_ID:
            raise ConfigError(f"{self._path}: a database, but no mirror of dpfd's; not touched")
        version = self._pragma("user_version")
        if version != VERSION:
            raise ConfigError(
                f"{self._path}: a mirror of version {version}, {VERSION} is read here; not touched"
            )
        self._tune()
        found = str(self._connection.execute("PRAGMA quick_check(1)").fetchone()[0])
        if found != "ok":
            problem = f"a damaged mirror ({' '.join(found.split())}); not touched"
            raise ConfigError(f"{self._path}: {problem}")

    def _make(self, fresh_epoch: bytes) -> None:
        self._tune()
        self._connection.executescript(
            f"BEGIN EXCLUSIVE; {_SCHEMA} "
            f"INSERT INTO meta VALUES ('epoch', x'{fresh_epoch.hex()}'); COMMIT;"
        )

    def _tune(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        # Takes the exclusive lock now, not at the first change.
        self._connection.execute("BEGIN EXCLUSIVE")
        self._connection.execute("COMMIT")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])


def _opened(path: str) -> sqlite3.Connection:
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return sqlite3.connect(path, timeout=0)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"{path}: the mirror cannot be opened: {error}") from error


def _complaint(path: str, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"{path}: held by another dpfd; each needs a mirror of its own"
    return f"{path}: not a mirror of dpfd's ({error}); not touched"


def _row(mapping: Mapping) -> tuple[Any, ...]:
    return (
        mapping.client,
        mapping.listener,
        mapping.protocol,
        *mapping.public,
        *mapping.inside,
        *mapping.management,
        mapping.nonce,
        mapping.lifetime,
    )


def _mapping(row: tuple[Any, ...]) -> Mapping:
    client, listener, protocol, a, b, x, y, m, n, nonce, lifetime = row
    a, x, m = map(sys.intern, (a, x, m))  # hosts are few, mappings may be many
    return Mapping(client, listener, protocol, (a, b), (x, y), (m, n), nonce, lifetime)
