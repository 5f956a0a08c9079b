"""What a sandbox does to a program: system calls that fail with EPERM, from now on.

forbid("execve") has the kernel refuse it (seccomp), for this process and all its children.
"""

import ctypes
import errno
import os
import platform
import struct

NUMBERS = {
    "x86_64": {"socket": 41, "socketpair": 53, "execve": 59},
    "aarch64": {"socket": 198, "socketpair": 199, "execve": 221},
}
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def forbid(call: str, first: int | None = None) -> None:
    """Have a system call refused: every one, or those with this first argument."""
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code = [(_LOAD, 0, 0, 0), (_EQUALS, 0, 3, NUMBERS[platform.machine()][call]), refuse]
    if first is not None:
        code[2:] = [(_LOAD, 0, 0, 16), (_EQUALS, 0, 1, first), refuse]
    else:
        code[1] = (_EQUALS, 0, 1, code[1][3])
    code.append((_RETURN, 0, 0, _ALLOW))
    program = _Program(len(code), b"".join(struct.pack("HBBI", *line) for line in code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
