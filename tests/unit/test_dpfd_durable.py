"""What is left of the mirror after power loss, and when its changes are on the disk."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from dpfd.mirror import Mirror
from dpfd.table import Mapping
from gcbpatch.errors import ConfigError
from tests.unit.test_dpfd_table import mapping

EPOCH = b"epoch..1"
HANG_LIMIT = 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "mirror.db"


@pytest.fixture
def mirror(path: Path) -> Iterator[Mirror]:
    made = Mirror(str(path), EPOCH)
    yield made
    made.close()


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes that files had when they were brought to the disk."""
    sizes: list[int] = []
    real = os.fdatasync

    def counted(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counted)
    return sizes


def history(mirror: Mirror, chance: random.Random, steps: int) -> list[list[Mapping]]:
    """Change the mirror at random; what it held after each change."""
    states = [mirror.mappings()]
    for _ in range(steps):
        number = chance.randrange(8)
        if chance.random() < 0.6:
            mirror.put(mapping(number))
        else:
            mirror.remove([mapping(number).owner])
        states.append(mirror.mappings())
    return states


def as_power_loss_left_it(path: Path, place: Path, size: int, rest: bytes) -> Mirror:
    """A mirror opened on a copy of one in use: of its log ``size`` bytes, and then a rest."""
    place.mkdir()
    shutil.copy(path, place / "mirror.db")
    log = Path(f"{path}-wal").read_bytes()
    (place / "mirror.db-wal").write_bytes(log[:size] + rest)
    return Mirror(str(place / "mirror.db"), b"epoch..2")


@pytest.mark.parametrize("seed", range(4))
def test_power_loss_leaves_a_state_that_was_and_none_older_than_the_last_sync(
    mirror: Mirror, path: Path, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    before = history(mirror, chance, 12)
    mirror.sync()
    safe = Path(f"{path}-wal").stat().st_size
    states = before[-1:] + history(mirror, chance, 12)
    whole = Path(f"{path}-wal").stat().st_size
    assert whole > safe
    for number in range(25):
        cut = chance.randint(safe, whole)
        rest = chance.choice((b"", bytes(chance.randint(1, 9000)), chance.randbytes(5000)))
        torn = as_power_loss_left_it(path, tmp_path / str(number), cut, rest)
        assert torn.mappings() in states
        assert torn.epoch == EPOCH
        torn.put(mapping(9))  # and it can be written
        torn.close()


def test_a_log_that_is_lost_altogether_leaves_a_new_mirror_or_an_older_one(
    mirror: Mirror, path: Path, tmp_path: Path
) -> None:
    mirror.put(mapping(0))
    fresh = as_power_loss_left_it(path, tmp_path / "lost", 0, b"")
    assert fresh.mappings() == []
    fresh.close()


def test_a_damaged_mirror_is_refused_and_stays_as_it_is(path: Path) -> None:
    mirror = Mirror(str(path), EPOCH)
    for number in range(200):
        mirror.put(mapping(number))
    mirror.close()
    data = bytearray(path.read_bytes())
    data[5000:20000] = b"\xaa" * 15000
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"{path}.*not touched") as refusal:
        Mirror(str(path), b"epoch..2")
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == data


def test_changes_of_one_moment_are_brought_to_the_disk_together(
    mirror: Mirror, path: Path, syncs: list[int]
) -> None:
    keeper = gevent.spawn(mirror.keep_durable)
    for number in range(20):
        mirror.put(mapping(number))
    size = Path(f"{path}-wal").stat().st_size
    with gevent.Timeout(HANG_LIMIT):
        while not syncs:
            gevent.sleep(0.01)
        assert syncs == [size]
        mirror.remove([mapping(3).owner])
        while len(syncs) < 2:
            gevent.sleep(0.01)
    assert syncs[1] > size
    keeper.kill()


def test_a_freed_address_goes_to_another_when_that_is_on_the_disk(
    mirror: Mirror, syncs: list[int]
) -> None:
    mirror.put(mapping(0))
    mirror.put(mapping(1))
    mirror.remove([mapping(0).owner])
    assert syncs == []
    mirror.put(mapping(2))
    assert syncs == []
    mirror.put(mapping(3, public=mapping(0).public))
    assert len(syncs) == 1
    mirror.put(mapping(4), instead=mapping(1).owner)  # in one change: nothing can come between
    mirror.put(mapping(4, public=mapping(1).public))
    assert len(syncs) == 2
