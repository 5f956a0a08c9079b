"""The arrows between the rooms go down only; held here, and shown here to be able to fail."""

from pathlib import Path

import pytest

from tests.unit.architecture import Rules, Tree, violations

ROOT = Path(__file__).parents[2]
HOUSES = ("gcbpatch", "brokerd", "dpfd")

# What everything may stand on, and what the daemons may take from gcbpatch.
GROUND = ("gcbpatch.addresses", "gcbpatch.errors", "gcbpatch.tree")
OWN = ("gcbpatch.outlets", *GROUND)
SHARED = (*GROUND, "gcbpatch.wire.*", "gcbpatch.config")
SETTINGS = ("gcbpatch.config", "gcbpatch.routes", "gcbpatch.routefile", "gcbpatch.logs")
PROGRAM = ("gcbpatch.sockets.*", "gcbpatch.agent.door", "gcbpatch.wire.*", *SETTINGS, *OWN)

# The first pattern that fits a module says what it may import; what lies lower stands later.
ARROWS: dict[str, tuple[str, ...]] = {
    "gcbpatch.__main__": ("gcbpatch", "gcbpatch.patching", *PROGRAM),
    "gcbpatch.cli": ("gcbpatch", "gcbpatch.__main__", "gcbpatch.patching", *PROGRAM),
    "gcbpatch": ("gcbpatch.patching", *SETTINGS, *GROUND),
    "gcbpatch.patching": ("gcbpatch.mends.*", "gcbpatch.early", "gcbpatch.originals", *PROGRAM),
    "gcbpatch.reach.*": ("gcbpatch", "gcbpatch.errors"),
    "gcbpatch.early": ("gcbpatch.mends.journal",),
    "gcbpatch.originals": ("gcbpatch.mends.journal",),
    "gcbpatch.mends.*": ("gcbpatch.mends.*",),
    "gcbpatch.sockets.*": PROGRAM,
    "gcbpatch.agent.paths": ("gcbpatch.wire.*", "gcbpatch.routes", *GROUND),
    "gcbpatch.agent.memory": ("gcbpatch.agent.paths", "gcbpatch.wire.*", *GROUND),
    "gcbpatch.agent.*": ("gcbpatch.agent.*", "gcbpatch.wire.*", *SETTINGS, *OWN),
    "gcbpatch.config": ("gcbpatch.wire.*", "gcbpatch.routes", "gcbpatch.routefile", *GROUND),
    "gcbpatch.routefile": ("gcbpatch.routes", *GROUND),
    "gcbpatch.routes": GROUND,
    "gcbpatch.logs": (),
    "gcbpatch.wire.*": ("gcbpatch.wire.*", *GROUND),
    "gcbpatch.addresses": ("gcbpatch.errors",),
    "gcbpatch.errors": (),
    "gcbpatch.tree": (),
    "gcbpatch.outlets": (),
}


def storeys(house: str, *levels: str) -> dict[str, tuple[str, ...]]:
    """The arrows of a daemon: a room may use those on its own level, lower ones, and SHARED."""
    rooms = [tuple(f"{house}.{name}" for name in level.split()) for level in levels]
    lower = [tuple(room for level in rooms[n:] for room in level) for n in range(len(rooms))]
    return {
        room: (*below, *SHARED) for level, below in zip(rooms, lower, strict=True) for room in level
    } | {house: SHARED}


ARROWS |= storeys(
    "brokerd",
    "__main__",
    "cli",
    "daemon",
    "server",
    "dispatch parking",
    "relay",
    "crew worker",
    "channel proxies probes holds pump datagrams lines",
    "refusals splitting arrival config metrics limits cards",
    "registry arrange introductions drain",
    "hosts",
)
ARROWS |= storeys(
    "dpfd",
    "__main__",
    "cli",
    "daemon",
    "server upkeep",
    "dispatch standard",
    "grants",
    "mappings liveness",
    "mirror kernel.*",
    "config faults privileges others",
    "policy pool table reconcile natpmp pcp",
)

RULES = Rules(
    arrows=ARROWS,
    pure=(
        "gcbpatch.wire.*",
        "gcbpatch.agent.paths",
        "gcbpatch.agent.memory",
        "gcbpatch.routes",
        "brokerd.registry",
        "brokerd.arrange",
        "brokerd.drain",
        "brokerd.hosts",
        "dpfd.policy",
        "dpfd.pool",
        "dpfd.table",
        "dpfd.reconcile",
        "dpfd.natpmp",
        "dpfd.pcp",
    ),
    # The agent is never patched; python-iptables runs modprobe when imported.
    banned={"gcbpatch.agent.*": ("gevent",)},
    quiet={"gcbpatch": ("gevent",), "gcbpatch.agent.*": ("gevent",), "dpfd.cli": ("iptc",)},
    apart={
        "gcbpatch.sockets.*": (
            "gcbpatch.agent.broker",
            "gcbpatch.agent.gateway",
            "gcbpatch.agent.race",
            "gcbpatch.agent.answer",
            "gcbpatch.agent.paths",
        )
    },
)


def test_the_project_keeps_its_arrows() -> None:
    assert violations(Tree(ROOT, HOUSES), RULES) == []


def test_all_modules_are_seen() -> None:
    files = [path for house in HOUSES for path in (ROOT / house).rglob("*.py")]
    assert len(Tree(ROOT, HOUSES).modules) == len(files)


def judge(root: Path, files: dict[str, str]) -> list[str]:
    """Writes modules, given by their paths without .py, and says what the rules make of them."""
    for name, text in files.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return violations(Tree(root, HOUSES), RULES)


FORBIDDEN: dict[str, tuple[dict[str, str], str]] = {
    "sockets import another room of the agent": (
        {
            "gcbpatch/sockets/connector": "from gcbpatch.agent import race",
            "gcbpatch/agent/race": "",
        },
        "imports gcbpatch.agent.race, which gcbpatch.sockets.* may not",
    ),
    "sockets reach another room of the agent through the door": (
        {
            "gcbpatch/sockets/raw": "import gcbpatch.agent.door",
            "gcbpatch/agent/door": "from . import broker",
            "gcbpatch/agent/broker": "",
        },
        "gcbpatch.sockets.raw -> gcbpatch.agent.door -> gcbpatch.agent.broker",
    ),
    "wire imports upwards": (
        {"gcbpatch/wire/codec": "from .. import config", "gcbpatch/config": ""},
        "imports gcbpatch.config, which gcbpatch.wire.* may not",
    ),
    "the agent imports sockets": (
        {
            "gcbpatch/agent/race": "def f():\n    from gcbpatch.sockets import raw",
            "gcbpatch/sockets/raw": "",
        },
        "gcbpatch.agent.race:2 imports gcbpatch.sockets.raw",
    ),
    "a circle": (
        {
            "gcbpatch/wire/codec": "from gcbpatch.wire import messages",
            "gcbpatch/wire/messages": "def f():\n    import gcbpatch.wire.codec",
        },
        "circle: gcbpatch.wire.codec -> gcbpatch.wire.messages -> gcbpatch.wire.codec",
    ),
    "wire imports the clock": (
        {"gcbpatch/wire/session": "import time"},
        "pure gcbpatch.wire.session reaches time",
    ),
    "wire imports chance in a function": (
        {"gcbpatch/wire/auth": "def f():\n    import random"},
        "pure gcbpatch.wire.auth reaches random",
    ),
    "a pure room imports a submodule of gevent": (
        {"dpfd/policy": "from gevent.lock import RLock"},
        "pure dpfd.policy reaches gevent",
    ),
    "a pure room reaches sockets through another room": (
        {
            "brokerd/arrange": "from gcbpatch.addresses import Address",
            "gcbpatch/addresses": "import socket as s",
        },
        "pure brokerd.arrange reaches socket: brokerd.arrange -> gcbpatch.addresses",
    ),
    "a pure room imports by name at run time": (
        {"dpfd/table": "import importlib\nimportlib.import_module('socket')"},
        "pure dpfd.table reaches socket",
    ),
    "the agent imports gevent": (
        {"gcbpatch/agent/door": "def f():\n    import gevent.monkey"},
        "gcbpatch.agent.door:2 imports gevent.monkey, never in gcbpatch.agent.*",
    ),
    "importing gcbpatch loads gevent": (
        {
            "gcbpatch//__init__": "from .patching import patch_all",
            "gcbpatch/patching": "import gevent",
        },
        "importing gcbpatch loads gevent: gcbpatch -> gcbpatch.patching",
    ),
    "a daemon takes more of gcbpatch than is shared": (
        {"brokerd/server": "from gcbpatch.agent import door", "gcbpatch/agent/door": ""},
        "brokerd.server:1 imports gcbpatch.agent.door",
    ),
    "a daemon imports the whole of gcbpatch": (
        {"dpfd/cli": "import gcbpatch"},
        "dpfd.cli:1 imports gcbpatch",
    ),
    "one daemon imports the other": (
        {"brokerd/daemon": "import dpfd.table", "dpfd/table": ""},
        "brokerd.daemon:1 imports dpfd.table",
    ),
    "gcbpatch imports a daemon": (
        {"gcbpatch/cli": "from brokerd.config import Config", "brokerd/config": ""},
        "gcbpatch.cli:1 imports brokerd.config",
    ),
    "an arrow of a daemon goes up": (
        {"dpfd/table": "from dpfd import mirror", "dpfd/mirror": ""},
        "dpfd.table:1 imports dpfd.mirror",
    ),
    "python-iptables is loaded by importing a daemon": (
        {
            "dpfd/cli": "from dpfd import daemon",
            "dpfd/daemon": "import dpfd.kernel.iptables",
            "dpfd/kernel/iptables": "import iptc",
        },
        "importing dpfd.cli loads iptc",
    ),
    "a module that nobody drew": ({"brokerd/helpers": ""}, "brokerd.helpers is in no room"),
}


@pytest.mark.parametrize("case", FORBIDDEN)
def test_forbidden(case: str, tmp_path: Path) -> None:
    files, sentence = FORBIDDEN[case]
    found = judge(tmp_path, files)
    assert any(sentence in line for line in found), found


ALLOWED: dict[str, dict[str, str]] = {
    "downwards": {
        "gcbpatch/cli": "from gcbpatch import patching",
        "gcbpatch/patching": "import gevent\nfrom gcbpatch.sockets import raw",
        "gcbpatch/sockets/raw": "import gevent\nfrom ..agent.door import Door",
        "gcbpatch/agent/door": "import socket\nfrom gcbpatch.wire import codec",
        "gcbpatch/wire/codec": "from ..errors import Malformed",
        "gcbpatch/errors": "import enum",
    },
    "gevent once patch_all is called": {
        "gcbpatch//__init__": "def patch_all():\n    from gcbpatch.patching import patch_all",
        "gcbpatch/patching": "import gevent",
    },
    "a daemon on what is shared": {
        "brokerd/dispatch": "from gcbpatch.wire import codec\nfrom brokerd import arrange, relay",
        "brokerd/arrange": "from gcbpatch.addresses import Address",
        "brokerd/relay": "import socket\nfrom brokerd.pump import pump",
        "brokerd/pump": "import gevent",
        "gcbpatch/wire/codec": "",
        "gcbpatch/addresses": "",
    },
    "python-iptables once a gateway is driven": {
        "dpfd/daemon": "def kernel():\n    from dpfd.kernel import iptables",
        "dpfd/kernel/iptables": "import iptc",
    },
    "names for the type checker alone": {
        "gcbpatch/__init__": "import typing\nif typing.TYPE_CHECKING:\n    import gevent",
    },
    "nothing yet": {},
}


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed(case: str, tmp_path: Path) -> None:
    assert judge(tmp_path, ALLOWED[case]) == []
