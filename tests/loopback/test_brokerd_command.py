"""The brokerd command: flags, files, and one line for each that is wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from .broker_client import (
    HANG_S,
    ROOT,
    Broker,
    loopback_host,
)
from .broker_ground import (
    LISTENER,
    greeted,
)

BAD_USAGE = {
    "an unknown flag": (["--wings", "2"], "--wings"),
    "a port that is none": (["--port", "banana"], "--port"),
    "a port too high": (["--port", "70000"], "--port"),
    "a range that is none": (["--proxy-ports", "9-1"], "--proxy-ports"),
    "a name for an address": (["--address", "example.org"], "--address"),
    "the wildcard for an address": (["--address", "0.0.0.0"], "--address"),
    "a lifetime of nothing": (["--lifetime", "0"], "--lifetime"),
    "no level": (["--log", "LOUD"], "--log"),
    "no token file": (["--token-file", "/nowhere/tokens"], "/nowhere/tokens"),
    "no config file": (["--config", "/nowhere/config"], "/nowhere/config"),
    "no place for the key": (["--key-file", "/proc/nowhere/key"], "--key-file"),
}


def complaint(*flags: str) -> str:
    """Run brokerd, which must refuse to; return its one line."""
    result = subprocess.run(
        [sys.executable, "-m", "brokerd", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False,
    )
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage_is_said_in_one_line(case: str, tmp_path: Path) -> None:
    flags, said = BAD_USAGE[case]
    key = [] if "--key-file" in flags else ["--key-file", str(tmp_path / "key")]
    assert said in complaint("--port", "0", *key, *flags)


BAD_FILES = {
    "not TOML": ("port", "not TOML"),
    "an unknown key": ("prot = 1", "prot"),
    "a text for a number": ("port = '1'", "port"),
    "a limit that is none": ("[limits]\nwings = 2", "wings"),
    "a limit of nothing": ("[limits]\nrelays = 0", "relays"),
    "limits that are no table": ("limits = 3", "limits"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_said_in_one_line(case: str, tmp_path: Path) -> None:
    text, said = BAD_FILES[case]
    (tmp_path / "config.toml").write_text(text)
    line = complaint("--config", str(tmp_path / "config.toml"), "--key-file", str(tmp_path / "key"))
    assert said in line and "config.toml" in line


def test_a_port_in_use_is_said_in_one_line(broker: Broker, tmp_path: Path) -> None:
    port = str(broker.address[1])
    line = complaint("--address", broker.host, "--port", port, "--key-file", str(tmp_path / "key"))
    assert port in line and "in use" in line


@pytest.mark.parametrize("text, mode", [("damaged", 0o600), ("0" * 64, 0o644)])
def test_a_key_file_that_is_none_is_not_replaced(tmp_path: Path, text: str, mode: int) -> None:
    key = tmp_path / "key"
    key.write_text(text)
    key.chmod(mode)
    assert str(key) in complaint("--port", "0", "--key-file", str(key))
    assert key.read_text() == text


def test_the_key_file_is_made_for_its_owner_alone(broker: Broker) -> None:
    key = broker.directory / "claims.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in broker.directory.iterdir() if "claims" in p.name] == ["claims.key"]


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("address = '127.0.0.9'\nlifetime = 7\n")
    broker = Broker(tmp_path, "--config", str(tmp_path / "config.toml"), host=loopback_host())
    try:
        with greeted(broker) as alice:
            reply = alice.register(LISTENER)
        assert (reply.proxy.host, reply.lifetime) == (broker.host, 7)
    finally:
        broker.kill()


def test_two_brokers_that_start_at_once_agree_on_the_key(tmp_path: Path) -> None:
    host = loopback_host()
    brokers: list[Broker] = []
    threads = [
        threading.Thread(target=lambda: brokers.append(Broker(tmp_path, host=host)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    try:
        one, other = brokers
        with greeted(one) as here, greeted(other, client=here.client) as there:
            held = here.register(LISTENER)
            here.unregister(LISTENER)
            got = there.register(LISTENER, proxy=held.proxy, claim=held.claim)
            assert got.proxy == held.proxy
    finally:
        for broker in brokers:
            broker.kill()
