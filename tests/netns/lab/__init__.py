"""The lab: hosts, NAT gateways and a public segment made of network namespaces.

    with Lab() as lab:
        pub = lab.host("pub")
        gateway = lab.gateway("ga", inside="10.1.0.0/24", unsolicited="drop", mapping="random")
        inner = gateway.host("a", delay_ms=25, loss=0.1, seed=7)
        daemon = pub.popen([sys.executable, "-m", "brokerd", "--address", pub.address])
        daemon.wait_line("^brokerd ready")
        print(inner.run(["ip", "address"]).stdout)

Everything is real: Linux forwarding, conntrack and nftables NAT. The lab works as root and,
through a user namespace, as an ordinary user. Namespaces have no names, so labs never collide;
they are held by one warden process, which kills whatever runs in them when the lab is closed
and also when the process that made the lab is gone, however that one died.
It must never touch the network, the rules or the files of the machine it runs on.
"""

from tests.netns.lab.console import TOPOLOGIES, main
from tests.netns.lab.errors import LabError, ProgramError
from tests.netns.lab.ipv6 import give_ipv6, ipv6_of, take_ipv4
from tests.netns.lab.laboratory import Lab, why_not
from tests.netns.lab.network import Network
from tests.netns.lab.nodes import Gateway, Host, Node
from tests.netns.lab.program import Program

__all__ = [
    "TOPOLOGIES",
    "Gateway",
    "Host",
    "Lab",
    "LabError",
    "Network",
    "Node",
    "Program",
    "ProgramError",
    "give_ipv6",
    "ipv6_of",
    "main",
    "take_ipv4",
    "why_not",
]
