"""The routing table: what fits, what wins, and what a wrong line is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from gcbpatch.config import client_config, to_environ
from gcbpatch.errors import ConfigError
from gcbpatch.routes import Routes, Way, parse

TABLE = """
# the test bench
127.0.0.0/8      gcb
10.0.0.0/8       dpf     # behind the gateway
10.1.2.0/24      kernel
10.1.2.3/32      gcb
2001:db8::/32    kernel
"""


@pytest.mark.parametrize(
    ("host", "way"),
    [
        ("127.0.0.1", Way.GCB),
        ("10.9.9.9", Way.DPF),
        ("10.1.2.9", Way.KERNEL),
        ("10.1.2.3", Way.GCB),
        ("::ffff:10.1.2.3", Way.GCB),
        ("2001:db8::7", Way.KERNEL),
        ("198.51.100.1", None),
        ("::1", None),
        ("host.example", None),
        ("", None),
    ],
)
def test_the_longest_prefix_decides(host: str, way: Way | None) -> None:
    assert parse(TABLE).way(host) is way


def test_a_table_survives_being_written_and_read() -> None:
    table = parse(TABLE)
    assert parse(str(table)) == table
    assert parse("") == Routes()


@pytest.mark.parametrize(
    "line", ["127.0.0.0/8", "127.0.0.0/8 udp", "127.0.0.1/8 gcb", "host gcb", "10.0.0.0/8 gcb dpf"]
)
def test_a_wrong_line_is_named_with_what_would_be_right(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: .* is not a route .*192\.0\.2\.0/24 gcb"):
        parse(f"# first\n{line}\n")


def test_settings_take_a_file_or_a_list_and_hand_the_text_on(tmp_path: Path) -> None:
    path = tmp_path / "routes"
    path.write_text(TABLE)
    by_file = client_config({"GCB_ROUTES": str(path)})
    assert by_file.routes == parse(TABLE)
    path.unlink()
    assert client_config(to_environ(by_file)).routes == by_file.routes
    by_list = client_config({}, routes=["127.0.0.0/8 gcb"])
    assert by_list.routes.way("127.0.0.1") is Way.GCB


def test_a_file_named_by_the_user_wins_over_inherited_text(tmp_path: Path) -> None:
    path = tmp_path / "routes"
    path.write_text("127.0.0.0/8 kernel\n")
    inherited = to_environ(client_config({}, routes=["127.0.0.0/8 gcb"]))
    mine = client_config(inherited | {"GCB_ROUTES": str(path)})
    assert mine.routes.way("127.0.0.1") is Way.KERNEL


def test_a_wrong_table_is_a_config_error_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"GCB_ROUTES: .*cannot be read"):
        client_config({"GCB_ROUTES": str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match=r"route 0: 'nonsense' is not a route"):
        client_config({}, routes=["nonsense"])
