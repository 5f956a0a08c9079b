"""The warden: the process that holds a lab's network namespaces and ends what runs in them.

Started by path with `python -I -S warden.py OWNER_PID`, as root or below `unshare -Urn`; its
standard input is a SEQPACKET socket to the lab. One JSON request, one JSON reply, one at a time:

    {"op": "space", "sysctls": [[path, value], …]}       -> {"fd": N}   at /proc/WARDEN/fd/N
    {"op": "socket", "fd": N, "family": F, "type": T}    -> {}          and a descriptor
    {"op": "sysctl", "fd": N, "sysctls": [[path, value], …]}    -> {}
    {"op": "close"}                                      -> {"killed": COUNT}, then it exits

When the lab closes the socket, or the owner process ends in whatever way, the warden does what
`close` does. It must never kill a process outside the namespaces it made, nor outlive the lab.
Nothing but the standard library, and nothing of this package, is imported: it starts in
milliseconds and works from any directory.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

CLONE_NEWNS = 0x0002_0000
CLONE_NEWNET = 0x4000_0000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
REQUEST_LIMIT = 65536  # bytes
SECRET_DESCRIPTORS = 500  # from here on are descriptors that no command prefix names
EXIT_LIMIT_MS = 10_000  # how long a killed process may take before it is looked for again

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Call a libc function that returns 0, or raise OSError."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def private_mounts() -> None:
    """A mount namespace of the lab's own, with an empty /run: lock files must not be shared."""
    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    call("mount", b"tmpfs", b"/run", b"tmpfs", ctypes.c_ulong(0), b"mode=0755")


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = fcntl.ioctl(handle, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        flags = struct.unpack_from("h", request, 16)[0] | IFF_UP
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags))


def write_sysctls(sysctls: list[list[str]]) -> None:
    for path, value in sysctls:
        # Some exist only where a kernel module is loaded (net/bridge/*): not there, not needed.
        with contextlib.suppress(FileNotFoundError), open(f"/proc/sys/{path}", "w") as file:
            file.write(value)


class Warden:
    """The namespaces of one lab, and the requests of its owner."""

    def __init__(self, control: socket.socket, owner: int) -> None:
        self.control = control
        self.owner = owner  # a pidfd
        self.home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.spaces: dict[int, int] = {}  # inode of a namespace -> the descriptor that holds it

    @contextlib.contextmanager
    def back_home(self) -> Iterator[None]:
        """Whatever namespace the block enters, afterwards the warden is in its own again."""
        try:
            yield
        finally:
            call("setns", self.home, CLONE_NEWNET)

    def op_space(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.back_home():
            call("unshare", CLONE_NEWNET)
            space = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.spaces[os.fstat(space).st_ino] = space
            bring_up_loopback()
            write_sysctls(request["sysctls"])
        return {"fd": space}

    def op_socket(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.back_home():
            call("setns", request["fd"], CLONE_NEWNET)
            made = socket.socket(request["family"], request["type"])
        return {"socket": made}

    def op_sysctl(self, request: dict[str, Any]) -> dict[str, Any]:
        with self.back_home():
            call("setns", request["fd"], CLONE_NEWNET)
            write_sysctls(request["sysctls"])
        return {}

    def op_close(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"killed": self.kill_all(), "closed": True}

    def serve(self) -> None:
        """Answer requests until the lab is closed or its owner is gone."""
        poller = select.poll()
        poller.register(self.control, select.POLLIN)
        poller.register(self.owner, select.POLLIN)
        closed = False
        while not closed:
            ready = {fd for fd, _ in poller.poll()}
            message = b""
            if self.owner not in ready:
                with contextlib.suppress(ConnectionResetError):
                    message = self.control.recv(REQUEST_LIMIT)
            if not message:
                self.kill_all()
                return
            closed = self.answer(json.loads(message))

    def answer(self, request: dict[str, Any]) -> bool:
        """Carry out one request and reply; true if that was the last one."""
        try:
            reply = getattr(self, "op_" + request["op"])(request)
        except OSError as error:
            reply = {"error": f"{request['op']}: {error}"}
        made = reply.pop("socket", None)
        descriptors = [] if made is None else [made.fileno()]
        with contextlib.suppress(BrokenPipeError):  # the owner is gone: the next recv says so
            socket.send_fds(self.control, [json.dumps(reply).encode()], descriptors)
        if made is not None:
            made.close()
        return bool(reply.get("closed"))

    def kill_all(self) -> int:
        """SIGKILL every process in the lab's namespaces until there is none; how many it was."""
        self.lock_out()
        killed = 0
        while found := [pidfd for pid in every_pid() if (pidfd := self.catch(pid)) is not None]:
            killed += len(found)
            for pidfd in found:
                wait_for_end(pidfd)
        return killed

    def lock_out(self) -> None:
        """Let nobody enter any more, but keep the namespaces, so their inodes stay theirs."""
        for inode, space in self.spaces.items():
            self.spaces[inode] = fcntl.fcntl(space, fcntl.F_DUPFD_CLOEXEC, SECRET_DESCRIPTORS)
            os.close(space)

    def catch(self, pid: int) -> int | None:
        """Kill the process if it lives in one of the lab's namespaces, and return its pidfd."""
        if not self.is_inmate(pid):
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return None
        # Asked again behind the pidfd: in between the number may have gone to somebody else.
        if self.is_inmate(pid):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return pidfd
        os.close(pidfd)
        return None

    def is_inmate(self, pid: int) -> bool:
        """Whether the process is in one of the lab's namespaces, or just about to be."""
        try:
            if pid == os.getpid():
                return False
            return os.stat(f"/proc/{pid}/ns/net").st_ino in self.spaces or is_entering(pid)
        except (FileNotFoundError, ProcessLookupError):
            return False  # gone, or a zombie
        except PermissionError:
            return is_entering(pid)  # of the user outside our user namespace, or a stranger's


def is_entering(pid: int) -> bool:
    """Whether it is an nsenter that has perhaps opened a namespace but not yet entered it."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    door = f"--net=/proc/{os.getpid()}/fd/".encode()
    return os.path.basename(words[0]) == b"nsenter" and any(w.startswith(door) for w in words)


def every_pid() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def wait_for_end(pidfd: int) -> None:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll(EXIT_LIMIT_MS)
    os.close(pidfd)


def main() -> None:
    owner_pid = int(sys.argv[1])
    # Only the end of the lab ends the warden: without it nobody would clean up.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    owner = os.pidfd_open(owner_pid)
    if os.getppid() != owner_pid:
        return  # the owner died before we could watch it, and its number may be another's now
    try:
        private_mounts()
    except OSError as error:
        sys.exit(f"no private mounts: {error}")
    Warden(socket.socket(fileno=os.dup(0)), owner).serve()


if __name__ == "__main__":
    main()
