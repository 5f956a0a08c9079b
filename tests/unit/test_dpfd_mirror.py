"""The mirror file keeps what was committed, and touches nothing that is not its own."""

import os
import signal
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from dpfd.mirror import VERSION, Mirror, MirrorError
from gcbpatch.errors import ConfigError
from tests.unit.test_dpfd_table import mapping

EPOCH, OTHER_EPOCH = b"epoch..1", b"epoch..2"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "mirror.db")


def test_what_was_put_is_there_after_opening_again(path: str) -> None:
    mirror = Mirror(path, EPOCH)
    for number in range(3):
        mirror.put(mapping(number))
    mirror.put(replace(mapping(1), lifetime=7))
    mirror.remove([mapping(0).owner, mapping(9).owner])
    mirror.close()
    again = Mirror(path, OTHER_EPOCH)
    assert again.mappings() == [replace(mapping(1), lifetime=7), mapping(2)]
    assert again.epoch == EPOCH
    again.close()


def test_a_new_mirror_has_the_epoch_it_was_given(path: str) -> None:
    mirror = Mirror(path, EPOCH)
    assert (mirror.epoch, mirror.mappings()) == (EPOCH, [])
    mirror.close()


def test_one_mapping_takes_the_place_of_another(path: str) -> None:
    mirror = Mirror(path, EPOCH)
    mirror.put(mapping(0))
    successor = mapping(1, public=mapping(0).public)
    mirror.put(successor, instead=mapping(0).owner)
    assert mirror.mappings() == [successor]
    mirror.close()


def test_what_was_put_survives_sigkill(path: str) -> None:
    child = os.fork()
    if not child:
        try:
            mirror = Mirror(path, EPOCH)
            mirror.put(mapping(0))
            mirror.put(mapping(1))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    mirror = Mirror(path, OTHER_EPOCH)
    assert mirror.mappings() == [mapping(0), mapping(1)]
    assert mirror.epoch == EPOCH
    mirror.close()


def test_only_its_owner_may_read_it(path: str) -> None:
    Mirror(path, EPOCH).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def foreign_text(path: str) -> None:
    Path(path).write_text("what somebody else wrote, and at some length\n" * 50)


def foreign_database(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mappings (what TEXT)")
    connection.close()


def newer_mirror(path: str) -> None:
    Mirror(path, EPOCH).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


@pytest.mark.parametrize("make", [foreign_text, foreign_database, newer_mirror])
def test_a_file_of_somebody_elses_is_refused_and_stays_as_it_is(make, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    make(path)
    before = Path(path).read_bytes()
    with pytest.raises(ConfigError, match=f"{path}.*not touched") as refusal:
        Mirror(path, OTHER_EPOCH)
    assert "\n" not in str(refusal.value)
    assert Path(path).read_bytes() == before


def test_a_mirror_in_use_is_refused(path: str) -> None:
    mirror = Mirror(path, EPOCH)
    with pytest.raises(ConfigError, match="another dpfd"):
        Mirror(path, OTHER_EPOCH)
    mirror.put(mapping())
    mirror.close()


def test_a_mirror_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        Mirror(str(tmp_path), EPOCH)


def test_a_failed_change_changes_nothing(path: str) -> None:
    mirror = Mirror(path, EPOCH)
    mirror.put(mapping(0))
    broken = replace(mapping(0), lifetime=None)  # type: ignore[arg-type]
    with pytest.raises(MirrorError, match="cannot be written"):
        mirror.put(broken, instead=mapping(0).owner)
    assert mirror.mappings() == [mapping(0)]
    mirror.close()
