"""The routing table: what fits, what wins, and what a wrong line is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gcbpatch.config import client_config, to_environ
from gcbpatch.errors import ConfigError
from gcbpatch.routefile import RouteFile
from gcbpatch.routes import Routes, Way, parse

TABLE = """
# the test bench
127.0.0.0/8      gcb
10.0.0.0/8       dpf     # behind the gateway
10.1.2.0/24      direct
10.1.2.3/32      gcb
2001:db8::/32    kernel  # the same as direct
2001:db8:1::/48  deny
"""


@pytest.mark.parametrize(
    ("host", "way"),
    [
        ("127.0.0.1", Way.GCB),
        ("10.9.9.9", Way.DPF),
        ("10.1.2.9", Way.DIRECT),
        ("10.1.2.3", Way.GCB),
        ("::ffff:10.1.2.3", Way.GCB),
        ("2001:db8::7", Way.DIRECT),
        ("2001:db8:1::7", Way.DENY),
        ("2001:db8:1::7%eth0", Way.DENY),
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
    "line",
    [
        "127.0.0.0/8",
        "127.0.0.0/8 udp",
        "127.0.0.1/8 gcb",
        "host gcb",
        "10.0.0.0/8 gcb dpf",
        "10.0.0.0/8 Deny",
        "*/8 direct",
        "10.0.0.0/33 deny",
    ],
)
def test_a_wrong_line_is_named_with_what_would_be_right(line: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: .* is not a route .*192\.0\.2\.0/24 gcb"):
        parse(f"# first\n{line}\n")


OLD_TABLE = """
# the brokers
198.51.100.1/32         GCB
10.20.30.40/255.255.0.0 GCB
*/0                     direct
"""


def test_tables_of_the_old_gcb_are_read() -> None:
    table = parse(OLD_TABLE)
    assert [table.way(host) for host in ("198.51.100.1", "10.20.0.1")] == [Way.GCB, Way.GCB]
    assert [table.way(host) for host in ("198.51.100.2", "2001:db8::1")] == [Way.DIRECT] * 2
    assert parse(str(table)) == table


def test_a_star_speaks_of_destinations_only() -> None:
    table = parse(OLD_TABLE)
    assert table.way("0.0.0.0") is Way.DIRECT
    assert table.way_at("0.0.0.0") is None
    assert table.way_at("198.51.100.1") is Way.GCB
    assert parse("0.0.0.0/0 direct").way_at("0.0.0.0") is Way.DIRECT


def test_of_two_routes_for_one_network_the_first_counts() -> None:
    assert parse("10.0.0.0/8 deny\n10.0.0.0/8 gcb").way("10.0.0.1") is Way.DENY


def test_settings_take_a_file_or_a_list_and_hand_the_text_on(tmp_path: Path) -> None:
    path = tmp_path / "routes"
    path.write_text(TABLE)
    by_file = client_config({"GCB_ROUTES": str(path)})
    assert by_file.routes.current == parse(TABLE)
    path.unlink()
    handed_on = client_config(to_environ(by_file)).routes
    assert handed_on == by_file.routes
    assert handed_on.current == parse(TABLE)
    by_list = client_config({}, routes=["127.0.0.0/8 gcb"])
    assert by_list.routes.way("127.0.0.1") is Way.GCB


def test_a_file_named_by_the_user_wins_over_inherited_text(tmp_path: Path) -> None:
    path = tmp_path / "routes"
    path.write_text("127.0.0.0/8 kernel\n")
    inherited = to_environ(client_config({}, routes=["127.0.0.0/8 gcb"]))
    mine = client_config(inherited | {"GCB_ROUTES": str(path)})
    assert mine.routes.way("127.0.0.1") is Way.DIRECT


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "routes"
    path.write_text("127.0.0.0/8 gcb\n")
    table = RouteFile(str(path))
    first = table.current
    assert table.current is first
    for way in ("dpf", "gcb") * 5:  # of the same size, and within one tick of the file's clock
        path.write_text(f"127.0.0.0/8 {way}\n")
        assert table.way("127.0.0.1") is Way(way)
    another = tmp_path / "another"
    another.write_text("127.0.0.0/8 deny\n")
    os.utime(another, ns=(path.stat().st_mtime_ns,) * 2)
    another.rename(path)
    assert table.way("127.0.0.1") is Way.DENY


def test_a_file_that_is_old_and_the_same_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "routes"
    path.write_text("127.0.0.0/8 gcb\n")
    os.utime(path, (1, 1))
    table = RouteFile(str(path))
    path.chmod(0)
    monkeypatch.setattr("gcbpatch.routefile._read", lambda _: pytest.fail("it was read"))
    assert table.way("127.0.0.1") is Way.GCB


def test_a_change_for_the_worse_is_told_once_and_leaves_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "routes"
    path.write_text("127.0.0.0/8 gcb\n")
    table = RouteFile(str(path))
    path.write_text("127.0.0.0/8 gcb\n10.0.0.0/8 nowhere\n")
    assert [table.way("127.0.0.1") for _ in range(3)] == [Way.GCB] * 3
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: line 2: '10.0.0.0/8 nowhere' is not a route ('nowhere' is not a way); "
        "'192.0.2.0/24 gcb' would be (ways are direct, gcb, dpf and deny); "
        "the routes that were read before stay"
    ]
    path.unlink()
    assert [table.way("127.0.0.1") for _ in range(3)] == [Way.GCB] * 3
    assert len(caplog.records) == 2
    path.write_text("127.0.0.0/8 dpf\n")
    assert table.way("127.0.0.1") is Way.DPF
    assert len(caplog.records) == 2


def test_a_wrong_table_is_a_config_error_with_its_origin(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"GCB_ROUTES: .*cannot be read"):
        client_config({"GCB_ROUTES": str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match=r"route 0: 'nonsense' is not a route"):
        client_config({}, routes=["nonsense"])
