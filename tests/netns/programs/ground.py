"""What the tests of real software share: who runs where, and what may be missing.

The scripts of `scripts/` and the programs that packages bring are run as their users would,
by `python -m gcbpatch` on hosts that have a broker or a gateway, by plain Python elsewhere.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab, Program
from tests.netns.lab.program import SYSTEM_PATH
from tests.netns.pairs import ADDRESS, World

SCRIPTS = Path(__file__).parent / "scripts"


class Ground(World):
    """Two NATs; patched hosts a and a2 behind the one, b behind the other; public ones are not.

    `public_address` is where listeners of a and a2 are to be found in this system.
    """

    def __init__(self, lab: Lab, tmp: Path, system: str) -> None:
        super().__init__(lab, tmp)
        self.system = system
        inside = (self.a, self.a2, self.b)
        if system == "gcb":
            self.broker(self.public)
            for host in inside:
                self.use_broker(host, self.public.address)
        else:
            for gateway in (self.gateway_a, self.gateway_b):
                self.gateway_daemon(gateway)
            for host in inside:
                self.use_gateway(host)

    def public_address(self, host: Host) -> str:
        """The host part of the addresses that listeners of a host get."""
        gateway = self.gateway_of(host)
        return self.public.address if self.system == "gcb" or not gateway else gateway.address

    def python(self, host: Host, *argv: str, **env: str) -> Program:
        """Start `python argv`, patched if the host has settings; a script of ours by its name."""
        settings = self.settings.get(host.name, {})
        words = ["-m", "gcbpatch"] if settings else []
        words += [str(SCRIPTS / argv[0]) if argv[0].endswith(".py") else argv[0], *argv[1:]]
        log = {"GCB_LOG": "INFO", "GCB_LOG_FILE": str(self.log_of(host))} if settings else {}
        return host.popen([sys.executable, *words], env={**settings, **log, **env})

    def with_one_line(self, host: Host, script: str, name: str) -> None:
        """Write a copy of a script that patches itself, with a host's settings, by one line."""
        settings = self.settings[host.name]
        broker, gateway = settings.get("GCB_BROKER"), settings.get("DPF_SERVER")
        line = f"import gcbpatch; gcbpatch.patch_all(broker={broker!r}, dpf={gateway!r})\n"
        (self.tmp / name).write_text(line + (SCRIPTS / script).read_text())

    def plain_python(self, host: Host, name: str, *argv: str) -> Program:
        """Start such a copy, by nothing but Python."""
        return host.popen([sys.executable, str(self.tmp / name), *argv])

    def served(self, host: Host, *argv: str, **env: str) -> tuple[Program, list[str]]:
        """Start a server that tells its address; it, and host and port as words."""
        program = self.python(host, *argv, **env)
        return program, program.wait_line(ADDRESS).group(1).rsplit(":", 1)

    def told(self, host: Host, *argv: str, **env: str) -> dict[str, str]:
        """Run a client to its end; the last line that it printed for each first word."""
        done = self.python(host, *argv, **env).result(check=True, hang_limit=90)
        return {key: rest for key, _, rest in (ln.partition(" ") for ln in done.stdout.split("\n"))}


def in_ci() -> bool:
    """Whether nothing may be left out."""
    return os.environ.get("CI", "").lower() in ("true", "1")


def leave_out(reason: str) -> None:
    """Skip with a reason; fail in CI."""
    if in_ci():
        pytest.fail(f"CI must run the tests of real software, but: {reason}", pytrace=False)
    pytest.skip(reason)


def need(*modules: str) -> None:
    """The packages of the extra `programs` are optional."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            leave_out(f"{module} is not installed (extra `programs`)")


def need_program(*names: str) -> str:
    """The path of a system program, by the first of its names that is there."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    found = [where for name in names if (where := shutil.which(name, path=path))]
    if not found:
        leave_out(f"{names[0]} is not installed")
    return found[0]
