"""Who reaches whom over real NAT: every placement, by GCB and by DPF, bytes compared by hash."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.lab import Host, Lab
from tests.netns.pairs import World, exchanged

PLACEMENTS = [
    pytest.param("other", "a", id="public to private"),
    pytest.param("a", "other", id="private to public"),
    pytest.param("b", "a", id="private to other private"),
    pytest.param("a2", "a", id="private to same private"),
]


@pytest.fixture
def world(lab: Lab, tmp_path: Path) -> World:
    """Two NAT gateways that drop what is unsolicited."""
    return World(lab, tmp_path)


def host(world: World, name: str) -> Host:
    """A host by its name."""
    return getattr(world, name)


def test_without_us_nobody_reaches_a_listener_behind_a_nat(world: World) -> None:
    listening = world.listen(world.a)
    for connector in (world.other, world.b):
        assert "error" in world.connect(connector, listening.address, timeout=1.0)
    exchanged(world, world.a2, listening)


PATHS_BY_A_BROKER_OUTSIDE = {
    ("other", "a"): "reverse",
    ("a", "other"): "direct",
    ("b", "a"): "punched",
    ("a2", "a"): "local",
}


@pytest.mark.parametrize(("connector", "listener"), PLACEMENTS)
def test_a_patched_connector_reaches_a_gcb_listener(
    world: World, connector: str, listener: str
) -> None:
    world.broker(world.public)
    for name in (connector, listener):
        world.use_broker(host(world, name), world.public.address, GCB_REGISTER="always")
    listening = world.listen(host(world, listener))
    assert listening.address.startswith(f"{world.public.address}:")
    mine, theirs = exchanged(world, host(world, connector), listening)
    address = listening.address
    path = PATHS_BY_A_BROKER_OUTSIDE[connector, listener]
    assert world.path_to(host(world, connector), address) == path
    assert ":".join(map(str, mine["getpeername"])) == address
    assert ":".join(map(str, theirs["name"])) == address
    assert theirs["peer"] == theirs["getpeername"]
    assert theirs["peer"][0] == host(world, connector).observed_address


@pytest.mark.parametrize(("connector", "listener"), PLACEMENTS)
def test_an_ordinary_connector_reaches_a_gcb_listener(
    world: World, connector: str, listener: str
) -> None:
    world.broker(world.public)
    world.use_broker(host(world, listener), world.public.address)
    listening = world.listen(host(world, listener))
    _, theirs = exchanged(world, host(world, connector), listening)
    assert theirs["peer"][0] == host(world, connector).observed_address


@pytest.mark.parametrize(("connector", "listener"), PLACEMENTS)
@pytest.mark.parametrize("patched", [True, False], ids=["patched", "ordinary"])
def test_a_connector_reaches_a_dpf_listener(
    world: World, connector: str, listener: str, patched: bool
) -> None:
    for gateway in (world.gateway_a, world.gateway_b):
        world.gateway_daemon(gateway)
    world.use_gateway(host(world, listener))
    if patched:
        world.use_gateway(host(world, connector))
    listening = world.listen(host(world, listener))
    behind = world.gateway_of(host(world, listener))
    if behind is not None:
        assert listening.address.startswith(f"{behind.address}:")
    _, theirs = exchanged(world, host(world, connector), listening)
    neighbours = patched and (connector, listener) == ("a2", "a")
    if neighbours:
        assert world.path_to(world.a2, listening.address) == "neighbour"
        assert theirs["peer"][0] == world.a2.address
    elif connector != "a2":
        assert theirs["peer"][0] == host(world, connector).observed_address


def test_with_both_configured_dpf_comes_first(world: World) -> None:
    world.broker(world.public)
    world.gateway_daemon(world.gateway_a)
    for one in (world.a, world.b):
        world.use_broker(one, world.public.address)
    world.use_gateway(world.a)
    listening = world.listen(world.a)
    assert listening.address.startswith(f"{world.gateway_a.address}:")
    exchanged(world, world.other, listening)
    exchanged(world, world.b, listening)


@pytest.mark.parametrize("system", ["gcb", "dpf"])
def test_a_patched_connector_reaches_an_ordinary_public_listener(
    world: World, system: str
) -> None:
    if system == "gcb":
        world.broker(world.public)
        world.use_broker(world.a, world.public.address)
    else:
        world.gateway_daemon(world.gateway_a)
        world.use_gateway(world.a)
    exchanged(world, world.a, world.listen(world.other))


@pytest.mark.parametrize(
    ("connector", "listener"),
    [pytest.param("b", "a", id="across"), pytest.param("a2", "a", id="neighbours")],
)
@pytest.mark.parametrize("inside", [True, False], ids=["inside address", "public address"])
def test_brokers_on_the_gateways_with_different_tokens(
    world: World, connector: str, listener: str, inside: bool
) -> None:
    for gateway, token in ((world.gateway_a, "token-of-a"), (world.gateway_b, "token-of-b")):
        gateway.open(65432, "10000-65535")
        world.broker(gateway, token=token)
    for name in (connector, listener):
        gateway = world.gateway_of(host(world, name))
        assert gateway is not None
        token = "token-of-a" if gateway is world.gateway_a else "token-of-b"
        address = gateway.inside_address if inside else gateway.address
        world.use_broker(host(world, name), address, token=token)
    listening = world.listen(host(world, listener))
    assert listening.address.startswith(f"{world.gateway_a.address}:")
    exchanged(world, host(world, connector), listening)
    path = world.path_to(host(world, connector), listening.address)
    assert path == ("local" if connector == "a2" else "kernel")


def test_brokers_on_the_gateways_serve_ordinary_connectors(world: World) -> None:
    world.gateway_a.open(65432, "10000-65535")
    world.broker(world.gateway_a)
    world.use_broker(world.a, world.gateway_a.inside_address)
    exchanged(world, world.other, world.listen(world.a))


@pytest.mark.parametrize("system", ["gcb", "dpf"])
def test_both_work_where_gateways_answer_rst_and_randomise_ports(
    lab: Lab, tmp_path: Path, system: str
) -> None:
    world = World(lab, tmp_path, unsolicited="rst", mapping="random")
    if system == "gcb":
        world.broker(world.public)
        for one in (world.a, world.b):
            world.use_broker(one, world.public.address)
    else:
        world.gateway_daemon(world.gateway_a)
        world.use_gateway(world.a)
    exchanged(world, world.b, world.listen(world.a))
