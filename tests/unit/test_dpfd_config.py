"""dpfd's settings, and what the command says of wrong ones."""

import subprocess
import sys
from pathlib import Path

import pytest

from dpfd.config import Config, load
from dpfd.policy import Allowance, Network
from gcbpatch.errors import ConfigError

FILE = """
private = "lan"
public = ["198.51.100.1", "198.51.100.2"]
ports = "20000-20099"
token-file = "/etc/dpfd/tokens"
lifetime = 20
probe_interval = 2.5
log = "debug"
"""


def test_nothing_given_is_the_default() -> None:
    assert load(None, {"port": None, "public": None}) == Config()


def test_a_file_is_read_and_flags_win_over_it(tmp_path: Path) -> None:
    path = tmp_path / "dpfd.toml"
    path.write_text(FILE)
    config = load(str(path), {"lifetime": 5, "private": None})
    assert config.public == ("198.51.100.1", "198.51.100.2")
    assert (config.private, config.ports) == ("lan", (20000, 20099))
    assert (config.token_file, config.lifetime) == ("/etc/dpfd/tokens", 5)
    assert (config.probe_interval, config.log) == (2.5, "DEBUG")


def test_public_is_an_interface_or_addresses() -> None:
    assert load(None, {"public": "wan"}).public == ("wan",)
    assert load(None, {"public": "198.51.100.1, 198.51.100.2"}).public == (
        "198.51.100.1",
        "198.51.100.2",
    )


WRONG = {
    "--ports": {"ports": "32767-10000"},
    "--port ": {"port": 0},
    "--public": {"public": "wan,lan"},
    "--backend": {"backend": "pf"},
    "--lifetime": {"lifetime": 0},
    "--private": {"private": " "},
    "--log": {"log": "chatty"},
    "--mappings": {"mappings": True},
}


@pytest.mark.parametrize("flag", WRONG)
def test_a_wrong_flag_is_named(flag: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(None, WRONG[flag])
    assert str(refusal.value).replace(":", " ").startswith(flag)


def test_a_wrong_key_is_named_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "dpfd.toml"
    path.write_text("lifetme = 3\n")
    with pytest.raises(ConfigError, match=f"{path}: lifetme is not a setting; known are private"):
        load(str(path), {})


ALLOW = """
wish = "refuse"

[[allow]]
networks = ["10.1.0.0/24"]
tokens = "batch"
ports = "20000-20099, 20200"
inside-ports = "1024-65535"
mappings = 100

[[allow]]
inside = ["10.2.0.0/16"]
"""


def test_what_is_allowed_is_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "dpfd.toml"
    path.write_text(ALLOW)
    config = load(str(path), {})
    assert config.wish == "refuse"
    assert config.allow == (
        Allowance(
            networks=(Network("10.1.0.0/24"),),
            tokens=("batch",),
            ports=((20000, 20099), (20200, 20200)),
            inside_ports=((1024, 65535),),
            mappings=100,
        ),
        Allowance(inside=(Network("10.2.0.0/16"),)),
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('networks = ["10.1.0.5/24"]', "networks like 10.1.0.0/24"),
        ('port = "80"', "port is none of networks, tokens"),
        ('ports = "80-70"', "is no range of ports"),
        ("mappings = -1", "-1 is out of range"),
    ],
)
def test_a_wrong_allowance_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "dpfd.toml"
    path.write_text(f"[[allow]]\n{line}\n")
    with pytest.raises(ConfigError, match=f"{path}: allow: .*{complaint}"):
        load(str(path), {})


def complaint(*flags: str) -> str:
    """What `dpfd` says on one line of standard error before it exits with status 2."""
    argv = [sys.executable, "-m", "dpfd", *flags]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


def test_the_command_says_what_is_wrong_in_one_line() -> None:
    assert complaint("--port", "many").startswith("dpfd: Invalid value for '--port'")
    assert complaint("--no-such-flag").startswith("dpfd: No such option")
    assert complaint() == "dpfd: --private is missing; the private interface would be right"
    assert "--public is missing" in complaint("--private", "lo")
    assert "--ports" in complaint("--ports", "5")
    assert "no-such-file" in complaint("--config", "no-such-file")
