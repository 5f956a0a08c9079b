"""A client's settings: which source wins, and that what is wrong is named with what is right."""

from pathlib import Path

import pytest

from gcbpatch.config import (
    VARIABLES,
    ClientConfig,
    client_config,
    read_tokens,
    read_toml,
    to_environ,
)
from gcbpatch.errors import ConfigError
from gcbpatch.wire.auth import Key


def problem(environ: dict[str, str], **given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        client_config(environ, **given)
    return str(caught.value)


def file(folder: Path, content: str, name: str = "gcb.toml") -> str:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


# --- where settings come from


def test_nothing_configured_is_nothing_to_do() -> None:
    assert client_config({}) == ClientConfig()
    assert not client_config({}).active
    assert client_config({}).key() is None


def test_the_environment_is_read() -> None:
    config = client_config(
        {
            "GCB_BROKER": "198.51.100.1, broker.example:7 ,[2001:db8::1]:8",
            "DPF_SERVER": "10.1.0.1",
            "GCB_TOKEN_FILE": "/etc/tokens",
            "GCB_NETWORK": "cs.example",
            "GCB_LOG": "debug",
            "GCB_IDENTITY": "local",
            "GCB_LIFETIME": "20",
            "GCB_PATIENCE": "1.5",
            "GCB_REGISTER": "always",
            "HOME": "/",
        }
    )
    assert config == ClientConfig(
        brokers=(("198.51.100.1", 65432), ("broker.example", 7), ("2001:db8::1", 8)),
        gateway=("10.1.0.1", 65431),
        token_file="/etc/tokens",
        network="cs.example",
        log="DEBUG",
        identity="local",
        register="always",
        lifetime=20,
        patience=1.5,
    )
    assert config.active


def test_a_gateway_alone_is_something_to_do() -> None:
    assert client_config({"DPF_SERVER": "10.1.0.1"}).active


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, 'broker = ["192.0.2.1:1"]\nlifetime = 10\nnetwork = "file"\n')
    environ = {"GCB_CONFIG": path, "GCB_LIFETIME": "20", "GCB_NETWORK": "environ"}
    config = client_config(environ, network="argument", dpf=None)
    assert config.brokers == (("192.0.2.1", 1),)
    assert (config.lifetime, config.network) == (20, "argument")


def test_a_file_given_as_argument_wins_over_the_variables(tmp_path: Path) -> None:
    wanted, other = file(tmp_path, "lifetime = 5\n"), file(tmp_path, "lifetime = 6\n", "other")
    assert client_config({"GCB_CONFIG": other}, config=wanted).lifetime == 5


def test_an_empty_variable_is_as_none() -> None:
    assert client_config({"GCB_BROKER": "", "GCB_LIFETIME": ""}) == ClientConfig()


def test_children_get_the_same_settings(tmp_path: Path) -> None:
    config = client_config(
        {},
        broker="198.51.100.1,[2001:db8::1]:8",
        dpf="10.1.0.1:9",
        token="correct-horse-battery",
        token_file=file(tmp_path, "site secret-secret\n"),
        network="cs.example",
        log="ERROR",
        identity="local",
        register="always",
        lifetime=20,
        patience=1.5,
        routes=["127.0.0.0/8 gcb"],
    )
    assert client_config(to_environ(config)) == config
    assert client_config(to_environ(ClientConfig())) == ClientConfig()
    assert set(to_environ(config)) == set(VARIABLES) - {"GCB_ROUTES"}


def test_children_find_the_token_file_wherever_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file(tmp_path, "secret-secret", "tokens")
    monkeypatch.chdir(tmp_path)
    assert to_environ(client_config({}, token_file="tokens"))["GCB_TOKEN_FILE"] == str(
        tmp_path / "tokens"
    )


# --- what is wrong is named


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("GCB_BROKER", "host:99999", "0 to 65535 would be"),
        ("GCB_BROKER", "[::1", "[2001:db8::1]:65432 would be"),
        ("DPF_SERVER", ":7", "host:port would be right"),
        ("GCB_LOG", "loud", "DEBUG, INFO, WARNING or ERROR would be right"),
        ("GCB_IDENTITY", "mine", "'proxy' or 'local' would be right"),
        ("GCB_REGISTER", "maybe", "'auto', 'never' or 'always' would be"),
        ("GCB_LIFETIME", "0", "1 to 86400 would be right"),
        ("GCB_LIFETIME", "86401", "1 to 86400 would be right"),
        ("GCB_LIFETIME", "soon", "soon"),
        ("GCB_PATIENCE", "0.05", "0.1 to 600.0 would be right"),
        ("GCB_PATIENCE", "601", "0.1 to 600.0 would be right"),
        ("GCB_PATIENCE", "nan", "0.1 to 600.0 would be right"),
        ("GCB_PATIENCE", "long", "long"),
    ],
)
def test_a_wrong_variable_is_named_and_mended(variable: str, value: str, right: str) -> None:
    text = problem({variable: value})
    assert text.startswith(f"{variable}: ") and right in text


def test_bounds_are_taken() -> None:
    for lifetime in ("1", "86400"):
        assert client_config({"GCB_LIFETIME": lifetime}).lifetime == int(lifetime)
    for patience in ("0.1", "600"):
        assert client_config({"GCB_PATIENCE": patience}).patience == float(patience)


def test_a_wrong_argument_is_named() -> None:
    assert problem({}, lifetime=0).startswith("lifetime=: ")
    text = problem({}, brokker="198.51.100.1")
    assert text.startswith("brokker= is not a setting") and "broker" in text


def test_a_wrong_key_of_a_file_is_named_with_the_file(tmp_path: Path) -> None:
    path = file(tmp_path, "lifetime = 0\n")
    assert problem({"GCB_CONFIG": path}).startswith(f"{path}: lifetime: ")
    path = file(tmp_path, "[server]\nport = 1\n")
    text = problem({"GCB_CONFIG": path})
    assert text.startswith(f"{path}: server is not a setting; known are ")
    for name in VARIABLES.values():
        assert name in text


def test_a_broker_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = file(tmp_path, "broker = [1, 2]\n")
    assert problem({}, config=path).startswith(f"{path}: broker: ")


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    path = file(tmp_path, "lifetime = 10\nbroker = \n")
    text = problem({"GCB_CONFIG": path})
    assert text.startswith(f"{path}: not TOML: ") and "line 2" in text


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gcb.toml"
    path.write_bytes(b"\xff\xfe")
    assert problem({}, config=str(path)).startswith(f"{path}: not TOML: ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.toml")
    assert problem({"GCB_CONFIG": path}) == f"{path}: cannot be read: No such file or directory"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(str(tmp_path))


# --- tokens


def test_a_token_file_has_a_token_a_line(tmp_path: Path) -> None:
    path = file(tmp_path, "# for the site\n\nsite  correct-horse\n  battery-staple  \n#x y z\n")
    keys = read_tokens(path)
    assert [key.name for key in keys] == ["site", "default"]
    assert [key.key_id for key in keys] == [
        Key(b"correct-horse").key_id,
        Key(b"battery-staple").key_id,
    ]


def test_a_client_uses_the_first_token_of_its_file(tmp_path: Path) -> None:
    key = client_config({"GCB_TOKEN_FILE": file(tmp_path, "a first-token\nb second-token\n")}).key()
    assert key is not None
    assert (key.name, key.key_id) == ("a", Key(b"first-token").key_id)


def test_a_token_wins_over_a_token_file(tmp_path: Path) -> None:
    path = file(tmp_path, "from-the-file")
    key = client_config({"GCB_TOKEN_FILE": path, "GCB_TOKEN": "from-the-variable"}).key()
    assert key is not None and key.key_id == Key(b"from-the-variable").key_id


@pytest.mark.parametrize("line", ["short77", "name short77", "name two words", "a fish:and chips"])
def test_a_line_that_is_no_token_is_named_but_not_shown(tmp_path: Path, line: str) -> None:
    path = file(tmp_path, f"# tokens\n{line}\n")
    with pytest.raises(ConfigError) as caught:
        read_tokens(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:2: not a token; 'name token' with a token of 8")
    assert line not in text and line.split()[-1] not in text.removeprefix(path)


def test_a_token_of_eight_characters_is_long_enough(tmp_path: Path) -> None:
    assert len(read_tokens(file(tmp_path, "eight888\n"))) == 1


@pytest.mark.parametrize("token", ["short77", "with a space"])
def test_a_token_that_no_token_file_can_hold_is_refused(token: str) -> None:
    """A server could never know it, and the client would only see NOT_AUTHORIZED."""
    assert "GCB_TOKEN" in problem({"GCB_TOKEN": token})


def test_a_token_file_without_a_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no token in it"):
        read_tokens(file(tmp_path, "# nothing\n\n"))


def test_a_token_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    with pytest.raises(ConfigError, match="token file cannot be read") as caught:
        client_config({"GCB_TOKEN_FILE": str(path)}).key()
    assert str(path) in str(caught.value)
    path.write_bytes(b"name \xff\xff\xff\xff\xff\xff\xff\xff\n")
    with pytest.raises(ConfigError, match="token file cannot be read"):
        read_tokens(str(path))


def test_a_token_is_not_shown() -> None:
    config = client_config({"GCB_TOKEN": "correct-horse-battery"})
    assert "horse" not in repr(config) and "horse" not in str(config)
