"""paramiko from behind a NAT to a real sshd, and through it to behind another NAT."""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

from tests.netns.lab import Program
from tests.netns.programs.ground import Ground, need, need_program

PORT = 2222

CONFIGURATION = """
Port {port}
ListenAddress {address}
HostKey {tmp}/host_key
AuthorizedKeysFile {tmp}/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PidFile none
StrictModes no
Subsystem sftp internal-sftp
UsePAM no
"""


def write_keys(tmp: Path, host: str) -> None:
    """Keys of the server and of the user, and what each must know of the other."""
    import paramiko

    server, user = (paramiko.ECDSAKey.generate() for _ in range(2))
    for name, key in (("host_key", server), ("user_key", user)):
        key.write_private_key_file(str(tmp / name))
    known = f"[{host}]:{PORT} {server.get_name()} {server.get_base64()}\n"
    (tmp / "known_hosts").write_text(known)
    (tmp / "authorized_keys").write_text(f"{user.get_name()} {user.get_base64()}\n")


def ssh_server(ground: Ground, tmp: Path) -> Program:
    """A real sshd on the public host `other`, with a configuration of its own."""
    binary, host = need_program("sshd"), ground.other
    write_keys(tmp, host.address)
    text = CONFIGURATION.format(port=PORT, address=host.address, tmp=tmp)
    (tmp / "sshd_config").write_text(text)
    argv = [binary, "-D", "-e", "-f", f"{tmp}/sshd_config"]
    if ground.lab.rootless:
        # To be root where there is no other user is more than it can bear: it is the user again.
        user = [f"--map-user={os.getuid()}", f"--map-group={os.getgid()}"]
        server = host.popen(["unshare", "--user", *user, *argv], privileged=True)
    else:
        # The lab's /run is empty and its own.
        command = f"mkdir -p /run/sshd && exec {shlex.join(argv)}"
        server = host.popen(["sh", "-c", command], privileged=True)
    server.wait_line("Server listening on", stream="stderr")
    return server


def test_paramiko_uses_a_real_sshd_and_reaches_through_it(ground: Ground, tmp_path: Path) -> None:
    need("paramiko")
    ssh_server(ground, tmp_path)
    _, there = ground.served(ground.a, "twisted_lines.py", "serve")
    user = pwd.getpwuid(os.getuid()).pw_name
    argv = [ground.other.address, str(PORT), user, f"{tmp_path}/user_key", str(tmp_path)]
    use = ground.told(ground.b, "ssh_use.py", *argv, *there)
    assert use["command"] == "[b'42', b'from afar']"
    assert use["uploaded"] == "True"
    assert use["through"] == "b'THROUGH THE SERVER\\r\\n'"
