"""Network namespaces as the lab sees them: made by a warden, entered by nsenter.

Two ways, chosen once per lab. With CAP_SYS_ADMIN and CAP_NET_ADMIN the warden makes namespaces
directly; without them it is started below `unshare -Urn`, where an ordinary user may do the same
things to networks of its own. The process that builds the lab changes its own namespaces and
capabilities in neither, so it may have threads, be a test runner, or build several labs.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests.netns.lab import program
from tests.netns.lab.errors import LabError

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
REPLY_LIMIT = 65536  # bytes
_TOOLS = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "env": "coreutils",
}
# What may differ from one machine to another, and matters to what tests see.
_SYSCTLS = [
    *[(f"net/ipv4/conf/{which}/rp_filter", "0") for which in ("all", "default")],
    *[(f"net/ipv4/conf/{which}/send_redirects", "0") for which in ("all", "default")],
    # Rejections are answered each time, not six times and then once a second.
    ("net/ipv4/icmp_ratelimit", "0"),
    # The stack still has IPv6 (dual-stack listeners, ::1), links are not configured for it.
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv4/tcp_congestion_control", "reno"),
    ("net/bridge/bridge-nf-call-iptables", "0"),
]
# First of all: it resets some of the others.
_FORWARDING = ("net/ipv4/ip_forward", "1")


def tool(name: str) -> str:
    """The path of a system tool. LabError says which package has it."""
    path = shutil.which(name, path=program.environment()["PATH"])
    if path is None:
        raise LabError(f"the lab needs `{name}`: install {_TOOLS[name]}")
    return path


def has_capabilities() -> bool:
    """Whether this process may make network namespaces without a user namespace."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    return all(effective >> bit & 1 for bit in (CAP_NET_ADMIN, CAP_SYS_ADMIN))


class Warden:
    """The lab's end of its warden process."""

    def __init__(self, *, rootless: bool) -> None:
        self.rootless = rootless
        self._lock = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the warden)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(program.HANG_LIMIT)
        with theirs:
            self._process = subprocess.Popen(
                self._argv(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                cwd="/",
                start_new_session=True,
            )
        self.pid = self._process.pid

    def _argv(self) -> list[str]:
        script = str(Path(__file__).with_name("warden.py"))
        argv = [sys.executable, "-I", "-S", script, str(os.getpid())]
        return [tool("unshare"), "-Urn", *argv] if self.rootless else argv

    def space(self, *, forwarding: bool = False) -> "Space":
        """A new network namespace with its loopback up, forwarding IPv4 or not."""
        sysctls = [_FORWARDING, *_SYSCTLS] if forwarding else _SYSCTLS
        reply, _ = self._ask({"op": "space", "sysctls": sysctls})
        return Space(self, reply["fd"])

    def socket(self, space: "Space", family: int, kind: int) -> socket.socket:
        """A socket made inside a namespace; it stays there, wherever it is used."""
        request = {"op": "socket", "fd": space.fd, "family": family, "type": kind}
        _, descriptors = self._ask(request)
        return socket.socket(fileno=descriptors[0])

    def sysctl(self, space: "Space", path: str, value: str) -> None:
        """Write a setting of one namespace."""
        self._ask({"op": "sysctl", "fd": space.fd, "sysctls": [(path, value)]})

    def has_user(self, uid: int) -> bool:
        """Whether there is such a user: a user namespace may have but one."""
        lines = Path(f"/proc/{self.pid}/uid_map").read_text().splitlines()
        blocks = [(int(first), int(count)) for first, _, count in map(str.split, lines)]
        return any(first <= uid < first + count for first, count in blocks)

    def close(self) -> None:
        """Kill everything in the namespaces, then give them up. LabError if the warden is dead."""
        try:
            self._ask({"op": "close"})
        finally:
            self._control.close()
            self._process.wait(program.HANG_LIMIT)
            self._errors.close()

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        with self._lock:
            try:
                self._control.send(json.dumps(request).encode())
                message, descriptors, _, _ = socket.recv_fds(self._control, REPLY_LIMIT, 1)
            except (ConnectionError, TimeoutError) as error:
                raise LabError(self._obituary()) from error
        if not message:
            raise LabError(self._obituary())
        reply = json.loads(message)
        if "error" in reply:
            raise LabError(f"no network namespace to be had: {reply['error']}")
        return reply, descriptors

    def _obituary(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._errors.seek(0)
        last_words = self._errors.read().decode(errors="replace").strip()
        return f"the lab's warden does not answer (status {self._process.poll()}): {last_words}"


class Space:
    """One network namespace."""

    def __init__(self, warden: Warden, fd: int) -> None:
        self._warden = warden
        self.fd = fd
        self.path = f"/proc/{warden.pid}/fd/{fd}"

    @property
    def inode(self) -> int:
        """The namespace's number, as in `readlink /proc/PID/ns/net`."""
        return os.stat(self.path).st_ino

    def entry(self, *, mounts: bool = False) -> list[str]:
        """The command prefix that enters this namespace with all capabilities there.

        With `mounts` also the lab's mount namespace, where /run is writable and empty.
        """
        prefix = [tool("nsenter")]
        if self._warden.rootless:
            prefix += ["--preserve-credentials", f"--user=/proc/{self._warden.pid}/ns/user"]
        if mounts:
            prefix.append(f"--mount=/proc/{self._warden.pid}/ns/mnt")
        return [*prefix, f"--net={self.path}", "--"]

    def socket(self, family: int, kind: int) -> socket.socket:
        """A socket of this namespace, for the process that built the lab."""
        return self._warden.socket(self, family, kind)

    def sysctl(self, path: str, value: str) -> None:
        """Set what the kernel does here, such as net/ipv6/conf/all/forwarding."""
        self._warden.sysctl(self, path, value)

    def ip(self, *commands: str) -> None:
        """Carry out `ip` commands here; LabError says what was refused."""
        self._batch([tool("ip"), "-batch", "-"], commands)

    def nft(self, *commands: str) -> None:
        """Carry out nft commands here, all or none; LabError says what was refused."""
        self._batch([tool("nft"), "-f", "-"], commands)

    def _batch(self, argv: list[str], commands: tuple[str, ...]) -> None:
        text = "\n".join([*commands, ""])
        done = subprocess.run(
            [*self.entry(), *argv], input=text, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise LabError(f"{argv[0]} refused:\n{text}{done.stderr}")
