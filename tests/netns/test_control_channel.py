"""The control channel where networks are strict or change: TCP only, new addresses, loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab, Node
from tests.netns.pairs import ADDRESS, Dialogue, World, exchanged

LIFETIME = {"GCB_LIFETIME": "3", "GCB_PATIENCE": "2"}
COMMAND_PORT = 65432


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NAT gateways that drop what is unsolicited."""
    return World(lab, tmp_path, mapping="random")


def rule(node: Node, hook: str, text: str) -> None:
    """Add a rule of a firewall in front of everything else."""
    node.space.nft(
        "add table inet strict",
        f"add chain inet strict {hook} {{ type filter hook {hook} priority -300; }}",
        f"add rule inet strict {hook} {text}",
    )


def block_udp(gateway: Node) -> None:
    """Let no datagram through, without a word."""
    rule(gateway, "forward", "meta l4proto udp drop")


def only_the_command_port(gateway: Node) -> None:
    """Let those inside dial nothing but the brokers' command port, by TCP."""
    block_udp(gateway)
    rule(gateway, "forward", f"iifname lan tcp dport != {COMMAND_PORT} ct state new drop")


def use(world: World, *hosts: Host) -> None:
    for host in hosts:
        world.use_broker(host, world.public.address, **LIFETIME)


@pytest.mark.parametrize("limit", [block_udp, only_the_command_port])
@pytest.mark.parametrize("strict", ["listener", "connector", "both"])
def test_everything_works_over_one_tcp_port(world: World, limit: object, strict: str) -> None:
    world.broker(world.public, lifetime=3)
    use(world, world.a, world.b)
    for gateway, side in ((world.gateway_a, "listener"), (world.gateway_b, "connector")):
        if strict in (side, "both"):
            limit(gateway)  # type: ignore[operator]
    listening = world.listen(world.a)
    assert listening.address.startswith(f"{world.public.address}:")
    exchanged(world, world.b, listening)
    assert world.path_to(world.b, listening.address) == "relayed"
    if strict == "listener":
        exchanged(world, world.other, listening)


def test_a_line_is_made_anew_when_the_broker_is_killed(world: World) -> None:
    broker = world.broker(world.public, lifetime=3)
    use(world, world.a)
    block_udp(world.gateway_a)
    address = world.start(world.a, "echo").wait_line(ADDRESS).group(1)
    outside = Dialogue(world, world.other)
    assert outside(f"connect {address}") == "connected 0"
    broker.kill()
    again = world.broker(world.public, lifetime=3, log="INFO")
    again.wait_line(f"registered {address}", stream="stderr")
    assert outside(f"connect {address}") == "connected 1"
    assert outside("say 1 back") == "heard back"


def test_udp_that_is_blocked_later_gives_way_to_tcp(world: World) -> None:
    broker = world.broker(world.public, lifetime=6, log="INFO")
    world.use_broker(world.a, world.public.address, GCB_LIFETIME="6", GCB_PATIENCE="1")
    address = world.start(world.a, "echo").wait_line(ADDRESS).group(1)
    block_udp(world.gateway_a)
    broker.wait_line("calls for .* by TCP", stream="stderr")
    outside = Dialogue(world, world.other)
    assert outside(f"connect {address}") == "connected 0"
    assert outside("say 0 over") == "heard over"


def moved_by_nat(world: World) -> None:
    """The NAT forgets all it knew and gives the next flows other ports."""
    world.gateway_a.space.nft(
        "add table ip moved",
        "add chain ip moved post { type nat hook postrouting priority 90; }",
        "add rule ip moved post oifname wan udp dport 65432 masquerade to :50000-50009",
    )
    world.gateway_a.run(["conntrack", "-D", "-p", "udp"], privileged=True)


def moved_by_host(world: World) -> None:
    """The host gets another address, and its old one is gone."""
    host = world.a
    old, new = host.address, host.add_address()
    # With the first address the kernel takes away the second, and the routes.
    host.space.ip(
        f"address del {host.network.with_prefix(old)} dev eth0",
        f"address add {host.network.with_prefix(new)} dev eth0",
        f"route add default via {host.network.router}",
    )


@pytest.mark.parametrize("move", [moved_by_nat, moved_by_host])
def test_a_client_that_moves_keeps_its_address(world: World, move: object) -> None:
    broker = world.broker(world.public, lifetime=3, log="INFO")
    use(world, world.a)
    program = world.start(world.a, "echo")
    address = program.wait_line(ADDRESS).group(1)
    before = broker.wait_line(f"registered {address} for (.*)", stream="stderr").group(1)
    outside = Dialogue(world, world.other)
    assert outside(f"connect {address}") == "connected 0"
    move(world)  # type: ignore[operator]
    after = broker.wait_line("(?:calls|registered) .* (?:to|for) (.*)", stream="stderr").group(1)
    assert after != before
    assert outside(f"connect {address}") == "connected 1"
    assert outside("say 1 there") == "heard there"
    if move is moved_by_nat:
        assert outside("say 0 still") == "heard still"


def test_with_a_third_lost_each_way_everything_works_only_later(world: World) -> None:
    world.broker(world.public)
    for host in (world.a, world.b):
        world.use_broker(host, world.public.address, GCB_PATIENCE="20")
    for hook in ("input", "output"):
        for field in ("sport", "dport"):
            rule(world.public, hook, f"udp {field} 65432 numgen random mod 100 < 30 drop")
    for _ in range(5):
        listening = world.listen(world.a)
        assert listening.address.startswith(f"{world.public.address}:")
        exchanged(world, world.b, listening)
        assert world.path_to(world.b, listening.address) == "relayed"
        exchanged(world, world.other, listening)
