"""FTP in both modes, unmodified, across two NATs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.netns.lab import ProgramError
from tests.netns.programs.ground import Ground, need, need_program


def ftp_server(ground: Ground, tmp: Path, *options: str) -> list[str]:
    """An FTP server behind a NAT; its address."""
    need("pyftpdlib")
    (tmp / "files").mkdir()
    _, address = ground.served(ground.a, "ftp_server.py", f"{tmp}/files", *options)
    assert address[0] == ground.public_address(ground.a)
    return address


def transferred(ground: Ground, tmp: Path, mode: str, *options: str) -> None:
    """Store a file on a server behind a NAT from behind another, and fetch it back."""
    address = ftp_server(ground, tmp, *options)
    use = ground.told(ground.b, "ftp_client.py", *address, mode)
    assert (use["names"], use["same"]) == ("['file']", "True")
    stored = (tmp / "files" / "file").read_bytes()
    assert hashlib.sha256(stored).hexdigest() == use["stored"]


@pytest.mark.parametrize("kind", ["loop", "threads"])
@pytest.mark.parametrize("mode", ["passive", "active"])
def test_ftp_in_both_modes(ground: Ground, tmp_path: Path, mode: str, kind: str) -> None:
    foreign = "strict" if may_be_strict(ground, mode) else "foreign"
    transferred(ground, tmp_path, mode, foreign, kind)


def may_be_strict(ground: Ground, mode: str) -> bool:
    """By GCB a client's data port is at the broker's host, its commands come from its gateway."""
    return ground.system == "dpf" or mode == "passive"


def test_a_strict_ftp_server_refuses_active_mode_by_gcb_only(
    ground: Ground, tmp_path: Path
) -> None:
    if may_be_strict(ground, "active"):
        transferred(ground, tmp_path, "active", "strict")
    else:
        with pytest.raises(ProgramError, match="501 Rejected data connection to foreign address"):
            transferred(ground, tmp_path, "active", "strict")


@pytest.mark.parametrize("mode", ["--ftp-pasv", "--disable-epsv", "--ftp-port=-"])
def test_an_unpatched_curl_outside_fetches_by_ftp(
    ground: Ground, tmp_path: Path, mode: str
) -> None:
    curl = need_program("curl")
    host, port = ftp_server(ground, tmp_path)
    content = os.urandom(300_000)
    (tmp_path / "files" / "file").write_bytes(content)
    options = ["-sS", "-m", "60", "-u", "user:word", *mode.split("="), "-o", f"{tmp_path}/got"]
    ground.other.run([curl, *options, f"ftp://{host}:{port}/file"], hang_limit=90)
    assert (tmp_path / "got").read_bytes() == content
