"""dpfd's commands on a kernel table in memory: no socket, no clock but the test's own."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpfd.dispatch import Dispatcher, Outcome, Peer
from dpfd.grants import Senses
from dpfd.kernel.fake import FakeKernel
from dpfd.kernel.port import Claim
from dpfd.liveness import Answer
from dpfd.mappings import Mappings
from dpfd.mirror import Mirror, MirrorError
from dpfd.policy import Allowance, Network, Policy
from dpfd.pool import Pool
from dpfd.reconcile import Rule
from dpfd.table import Mapping, Table
from gcbpatch.addresses import Address
from gcbpatch.errors import Status
from gcbpatch.wire.auth import Key, Keyring, sealed
from gcbpatch.wire.codec import Kind, message_of, parse
from gcbpatch.wire.messages import (
    TCP,
    UDP,
    Command,
    Endpoint,
    Forward,
    ForwardReply,
    Hello,
    Message,
    Query,
    QueryReply,
    Renew,
    RenewReply,
    Session,
    SessionReply,
    Unforward,
)

A, B = "198.51.100.1", "198.51.100.2"
HOST, NEIGHBOUR = "10.1.0.2", "10.1.0.3"
ME, OTHER = b"client me ......", b"client other ..."
FIRST, SECOND = b"listener first .", b"listener second "
EPOCH = b"epoch..1"


class World:
    """A dispatcher and everything it is handed, for a test to turn."""

    def __init__(self, path: Path, *, pool: Pool | None = None, policy: Policy | None = None):
        self.now = 1000.0
        self.in_use: set[Address] = set()
        self.answers: dict[bytes, Answer] = {}
        self.watched: list[Mapping] = []
        self.kernel = FakeKernel()
        self.mirror = Mirror(str(path), EPOCH)
        self.table = Table()
        pool = pool or Pool((A, B), 10000, 10009)
        self.mappings = Mappings(self.table, self.mirror, self.kernel, pool)
        senses = Senses(
            chance=lambda: 0,
            port_in_use=lambda _, address: address in self.in_use,
            probe=lambda mapping: self.answers.get(mapping.listener, Answer.PROVED),
            watch=self.watched.append,
            clock=lambda: self.now,
        )
        self.dispatcher = Dispatcher(self.mappings, policy or Policy(), senses, Keyring())
        self.mappings.reconcile()

    def send(self, command: int, message: Message, peer: Peer, key: Key | None = None) -> Outcome:
        frame = parse(sealed(key, Kind.REQUEST, command, 7, message))
        outcome = self.dispatcher.answer(frame, peer)
        reply = parse(outcome.reply)
        assert (reply.kind, reply.command, reply.transaction) == (Kind.REPLY, command, 7)
        assert reply.status == outcome.status
        return outcome

    def session(self, client: bytes = ME, host: str = HOST) -> Peer:
        peer = Peer(host)
        assert self.send(Command.SESSION, Session(client), peer).status is Status.SUCCESS
        return peer

    def forward(self, peer: Peer, listener: bytes = FIRST, **changes: object) -> Outcome:
        settings: dict[str, object] = {
            "client": peer.client,
            "listener": listener,
            "protocol": TCP,
            "inside": Endpoint(peer.host, 80),
            "wished": None,
            "management": Endpoint(peer.host, 40000),
            "nonce": b"n" * 16,
            "lifetime": 20,
        }
        return self.send(Command.FORWARD, Forward(**(settings | changes)), peer)  # type: ignore[arg-type]

    def mapped(self, peer: Peer, listener: bytes = FIRST, **changes: object) -> Address:
        outcome = self.forward(peer, listener, **changes)
        assert outcome.status is Status.SUCCESS, outcome.problem
        reply = message_of(parse(outcome.reply))
        assert isinstance(reply, ForwardReply)
        return reply.public.address

    def query(self, peer: Peer, public: Address, protocol: int = TCP) -> Address | Status:
        outcome = self.send(Command.QUERY, Query(Endpoint.of(public), protocol), peer)
        if outcome.status is not Status.SUCCESS:
            return outcome.status
        reply = message_of(parse(outcome.reply))
        assert isinstance(reply, QueryReply)
        return reply.inside.address

    def renew(self, peer: Peer, *listeners: bytes) -> RenewReply:
        assert peer.client is not None
        outcome = self.send(Command.RENEW, Renew(peer.client, list(listeners)), peer)
        reply = message_of(parse(outcome.reply))
        assert isinstance(reply, RenewReply)
        return reply

    def check_agreement(self) -> None:
        """The three representations say the same."""
        held = sorted(self.table, key=lambda mapping: mapping.owner)
        assert held == self.mirror.mappings()
        rules = sorted(Rule(m.protocol, m.public, m.inside) for m in held)
        assert rules == sorted(self.kernel.rules)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "mirror")
    yield made
    made.mirror.close()


def test_a_session_tells_epoch_and_public_hosts(world: World) -> None:
    outcome = world.send(Command.SESSION, Session(ME), Peer(HOST))
    assert message_of(parse(outcome.reply)) == SessionReply(EPOCH, [A, B])


def test_a_mapping_is_in_all_three_when_it_is_acknowledged(world: World) -> None:
    public = world.mapped(world.session())
    assert world.kernel.rules == [Rule(TCP, public, (HOST, 80))]
    assert len(world.table) == 1
    assert [mapping.public for mapping in world.watched] == [public]
    world.check_agreement()


def test_the_wished_for_address_is_given(world: World) -> None:
    assert world.mapped(world.session(), wished=Endpoint(B, 10007)) == (B, 10007)


def test_any_address_is_given_where_the_wish_cannot_be(world: World) -> None:
    peer = world.session()
    wish = Endpoint(A, 10003)
    assert world.mapped(peer, FIRST, wished=wish) == (A, 10003)
    assert world.mapped(peer, SECOND, wished=wish, inside=Endpoint(HOST, 81)) != (A, 10003)
    world.check_agreement()


def test_ports_of_the_gateway_and_of_others_rules_are_not_given(world: World) -> None:
    world.in_use.update((A, port) for port in range(10000, 10005))
    world.kernel.claims.append(Claim(TCP, 0xC6336401, 0xFFFFFFFF, 10005, 10008))
    world.mappings.reconcile()
    peer = world.session()
    assert world.mapped(peer, wished=Endpoint(A, 10006)) == (B, 10006)
    other = Endpoint(HOST, 81)
    assert world.mapped(peer, SECOND, inside=other, wished=None) == (A, 10009)


def test_a_wish_is_refused_where_it_must_be_fulfilled(tmp_path: Path) -> None:
    world = World(tmp_path / "mirror", policy=Policy(refuses=True))
    world.in_use.add((A, 10003))
    peer = world.session()
    refused = Status.CANNOT_PROVIDE_EXTERNAL
    assert world.forward(peer, wished=Endpoint(A, 10003)).status is refused
    assert world.forward(peer, wished=Endpoint(A, 22)).status is refused
    assert world.forward(peer, wished=Endpoint("203.0.113.9", 10001)).status is refused
    assert world.mapped(peer, wished=Endpoint("0.0.0.0", 10003)) == (B, 10003)
    automatic = Endpoint("0.0.0.0", 40000)  # nobody's choice but the kernel's
    assert world.mapped(peer, b"third listener .", wished=automatic, inside=Endpoint(HOST, 82))
    assert world.mapped(peer, SECOND, wished=Endpoint(A, 0), inside=Endpoint(HOST, 81))
    world.check_agreement()
    world.mirror.close()


def test_an_allowance_says_which_public_ports_are_given(tmp_path: Path) -> None:
    few = Allowance(ports=((10004, 10005),))
    world = World(tmp_path / "mirror", policy=Policy(allow=(few,)))
    peer = world.session()
    assert world.mapped(peer, wished=Endpoint(A, 10001))[1] in (10004, 10005)
    for number in range(3):
        world.mapped(peer, bytes([number]) * 16, inside=Endpoint(HOST, 81 + number))
    assert world.forward(peer, SECOND, inside=Endpoint(HOST, 90)).status is Status.NO_RESOURCES
    world.mirror.close()


def test_a_host_that_calls_itself_many_clients_has_one_quota(tmp_path: Path) -> None:
    world = World(tmp_path / "mirror", policy=Policy(per_host=3))
    for number in range(3):
        world.mapped(world.session(bytes([number]) * 16), inside=Endpoint(HOST, 81 + number))
    status = world.forward(world.session(), inside=Endpoint(HOST, 90)).status
    assert status is Status.QUOTA_EXCEEDED
    world.mapped(world.session(OTHER, NEIGHBOUR))
    world.mirror.close()


def test_a_client_that_asks_on_and_on_gets_its_share(tmp_path: Path) -> None:
    world = World(tmp_path / "mirror", pool=Pool((A,), 1024, 65535))
    peer = world.session()
    statuses = Counter(
        world.forward(peer, number.to_bytes(16, "big"), inside=Endpoint(HOST, 1 + number)).status
        for number in range(10_000)
    )
    assert statuses == {Status.SUCCESS: 1024, Status.QUOTA_EXCEEDED: 10_000 - 1024}
    world.check_agreement()
    world.mapped(world.session(OTHER, NEIGHBOUR), wished=Endpoint(A, 1024))
    world.mirror.close()


def test_who_maps_for_others_is_who_may_renew_and_remove(tmp_path: Path) -> None:
    agent = Allowance(inside=(Network("10.1.0.0/24"),))
    world = World(tmp_path / "mirror", policy=Policy(allow=(agent,)))
    peer = world.session()
    world.mapped(peer, inside=Endpoint(NEIGHBOUR, 80))
    theirs = world.session(ME, NEIGHBOUR)
    assert world.renew(theirs, FIRST).lost == [FIRST]
    assert world.renew(peer, FIRST).lost == []
    assert world.send(Command.UNFORWARD, Unforward(ME, FIRST), peer).status is Status.SUCCESS
    world.mirror.close()


def test_exhausted_ports_are_no_resources(tmp_path: Path) -> None:
    world = World(tmp_path / "mirror", pool=Pool((A,), 10000, 10001))
    peer = world.session()
    for number in range(2):
        world.mapped(peer, bytes([number]) * 16, inside=Endpoint(HOST, 80 + number))
    assert world.forward(peer, SECOND, inside=Endpoint(HOST, 90)).status is Status.NO_RESOURCES
    world.check_agreement()
    world.mirror.close()


def test_a_quota_is_kept(tmp_path: Path) -> None:
    world = World(tmp_path / "mirror", policy=Policy(per_client=1, in_all=2))
    peer, neighbour = world.session(), world.session(OTHER, NEIGHBOUR)
    world.mapped(peer)
    assert world.forward(peer, SECOND).status is Status.QUOTA_EXCEEDED
    world.mapped(neighbour)
    third = world.session(b"third client ...", "10.1.0.4")
    assert world.forward(third).status is Status.NO_RESOURCES
    world.mapped(peer)  # a refresh needs no room
    world.mirror.close()


def test_a_second_request_for_the_same_listener_refreshes(world: World) -> None:
    peer = world.session()
    public = world.mapped(peer)
    world.now += 15
    again = world.mapped(peer, management=Endpoint(HOST, 41000), nonce=b"m" * 16)
    assert again == public
    (held,) = world.table
    assert (held.management, held.nonce) == ((HOST, 41000), b"m" * 16)
    world.mappings.remove_expired(world.now + 19)
    assert len(world.table) == 1
    world.check_agreement()


def test_a_listener_that_moves_keeps_its_public_address(world: World) -> None:
    peer = world.session()
    public = world.mapped(peer)
    assert world.mapped(peer, inside=Endpoint(HOST, 81)) == public
    assert world.kernel.rules == [Rule(TCP, public, (HOST, 81))]
    world.check_agreement()


@pytest.mark.parametrize("answer", [Answer.REFUSED, Answer.WRONG])
def test_a_dead_listener_is_succeeded_with_its_public_address(world: World, answer: Answer) -> None:
    public = world.mapped(world.session())
    world.answers[FIRST] = answer
    assert world.mapped(world.session(OTHER), SECOND) == public
    assert [mapping.owner for mapping in world.table] == [(OTHER, SECOND)]
    world.check_agreement()


@pytest.mark.parametrize("answer", [Answer.PROVED, Answer.UNREACHABLE])
def test_a_listener_that_may_live_keeps_its_mapping(world: World, answer: Answer) -> None:
    public = world.mapped(world.session())
    world.answers[FIRST] = answer
    assert world.mapped(world.session(OTHER), SECOND) != public
    assert len(world.table) == 2
    world.check_agreement()


def test_unforward_removes_everywhere(world: World) -> None:
    peer = world.session()
    world.mapped(peer)
    assert world.send(Command.UNFORWARD, Unforward(ME, FIRST), peer).status is Status.SUCCESS
    assert (len(world.table), world.kernel.rules, world.mirror.mappings()) == (0, [], [])
    assert world.send(Command.UNFORWARD, Unforward(ME, FIRST), peer).status is Status.UNKNOWN


def test_a_lease_that_is_over_is_removed_everywhere(world: World) -> None:
    peer = world.session()
    world.mapped(peer, lifetime=5)
    world.mappings.remove_expired(world.now + 4.9)
    assert len(world.kernel.rules) == 1
    world.mappings.remove_expired(world.now + 5)
    assert world.kernel.rules == []
    world.check_agreement()


def test_renew_keeps_what_is_there_and_names_what_is_lost(world: World) -> None:
    peer = world.session()
    world.mapped(peer, lifetime=5)
    world.now += 4
    assert world.renew(peer, FIRST, SECOND) == RenewReply(EPOCH, 5, [SECOND])
    world.mappings.remove_expired(world.now + 4.9)
    assert len(world.table) == 1


def test_any_neighbour_may_query(world: World) -> None:
    public = world.mapped(world.session())
    neighbour = world.session(OTHER, NEIGHBOUR)
    assert world.query(neighbour, public) == (HOST, 80)
    assert world.query(neighbour, public, UDP) is Status.UNKNOWN
    assert world.query(neighbour, (public[0], 9)) is Status.UNKNOWN


def test_nobody_touches_another_hosts_mapping(world: World) -> None:
    world.mapped(world.session())
    thief = world.session(ME, NEIGHBOUR)  # knows the client's id, is not its host
    assert world.send(Command.UNFORWARD, Unforward(ME, FIRST), thief).status is Status.UNKNOWN
    assert world.renew(thief, FIRST).lost == [FIRST]
    assert len(world.kernel.rules) == 1


def test_a_session_speaks_for_one_client(world: World) -> None:
    peer = world.session()
    assert world.forward(peer, client=OTHER).status is Status.NOT_AUTHORIZED
    assert len(world.table) == 0


def test_a_policys_refusal_changes_nothing_and_the_session_goes_on(world: World) -> None:
    peer = world.session()
    outcome = world.forward(peer, inside=Endpoint(NEIGHBOUR, 80))
    assert (outcome.status, outcome.goes_on) == (Status.NOT_AUTHORIZED, True)
    assert NEIGHBOUR in outcome.problem
    assert world.forward(peer, protocol=7).status is Status.UNSUPPORTED
    assert (len(world.table), world.watched) == (0, [])


def test_a_session_begins_with_session(world: World) -> None:
    outcome = world.send(Command.QUERY, Query(Endpoint(A, 1), TCP), Peer(HOST))
    assert (outcome.status, outcome.goes_on) == (Status.MALFORMED, False)


@pytest.mark.parametrize("command", [Command.HELLO, 99])
def test_unknown_commands_are_unsupported_and_the_session_goes_on(
    world: World, command: int
) -> None:
    peer = world.session()
    outcome = world.send(command, Hello(ME), peer)
    assert (outcome.status, outcome.goes_on) == (Status.UNSUPPORTED, True)


def test_a_body_that_does_not_fit_ends_the_session(world: World) -> None:
    outcome = world.send(Command.FORWARD, Session(ME), world.session())
    assert (outcome.status, outcome.goes_on) == (Status.MALFORMED, False)


def test_a_wrong_token_ends_the_session_before_anything_is_read(world: World) -> None:
    right, wrong = Key(b"right token"), Key(b"wrong token")
    world.dispatcher.keyring = Keyring([right])
    assert world.send(Command.SESSION, Session(ME), Peer(HOST), right).status is Status.SUCCESS
    for key in (wrong, None):
        peer = Peer(HOST)
        outcome = world.send(Command.SESSION, Session(ME), peer, key)
        assert (outcome.status, outcome.goes_on) == (Status.NOT_AUTHORIZED, False)
        assert peer.client is None


def test_a_kernel_that_refuses_leaves_nothing_behind(world: World) -> None:
    peer = world.session()
    world.kernel.broken = "no"
    assert world.forward(peer).status is Status.CANNOT_PROVIDE_EXTERNAL
    world.kernel.broken = ""
    assert (len(world.table), world.watched) == (0, [])
    world.check_agreement()


def test_a_kernel_that_refuses_a_move_leaves_the_old_mapping(world: World) -> None:
    peer = world.session()
    public = world.mapped(peer)
    world.kernel.broken = "no"
    status = world.forward(peer, inside=Endpoint(HOST, 81)).status
    assert status is Status.CANNOT_PROVIDE_EXTERNAL
    world.kernel.broken = ""
    assert world.query(peer, public) == (HOST, 80)
    world.check_agreement()


def test_a_kernel_that_refuses_a_removal_is_asked_again(world: World) -> None:
    peer = world.session()
    world.mapped(peer)
    world.kernel.broken = "no"
    outcome = world.send(Command.UNFORWARD, Unforward(ME, FIRST), peer)
    assert outcome.status is Status.CANNOT_PROVIDE_EXTERNAL
    world.kernel.broken = ""
    world.check_agreement()
    assert len(world.table) == 1
    world.mappings.remove_expired(world.now + 20)
    assert world.kernel.rules == []


def test_a_mirror_that_cannot_be_written_leaves_nothing_behind(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MirrorError("the disk is full")

    peer = world.session()
    with monkeypatch.context() as patch:
        patch.setattr(world.mirror, "put", full)
        assert world.forward(peer).status is Status.NO_RESOURCES
    assert (len(world.table), world.kernel.rules) == (0, [])
    world.check_agreement()


def restarted(world: World, path: Path, pool: Pool) -> World:
    """Another dpfd on the same mirror, as after SIGKILL."""
    world.mirror.close()
    again = World(path, pool=pool)
    again.kernel.rules = world.kernel.rules
    again.mappings.load(again.now, again.dispatcher.policy)
    again.mappings.reconcile()
    return again


def test_a_restart_brings_kernel_and_table_back_to_the_mirror(tmp_path: Path) -> None:
    path, pool = tmp_path / "mirror", Pool((A,), 10000, 10009)
    world = World(path, pool=pool)
    peer = world.session()
    public = world.mapped(peer)
    world.mapped(peer, SECOND, inside=Endpoint(HOST, 81))
    world.kernel.rules.pop()  # flushed by somebody
    world.kernel.rules.append(Rule(TCP, (A, 10009), (HOST, 99)))  # left by a killed removal
    world = restarted(world, path, pool)
    world.check_agreement()
    assert len(world.table) == 2
    assert world.mapped(world.session()) == public
    world.mirror.close()


def test_a_restart_with_fewer_ports_gives_up_what_is_outside(tmp_path: Path) -> None:
    path = tmp_path / "mirror"
    world = World(path, pool=Pool((A,), 10000, 10009))
    world.mapped(world.session(), wished=Endpoint(A, 10009))
    world = restarted(world, path, Pool((A,), 10000, 10004))
    assert len(world.table) == 0
    world.check_agreement()
    world.mirror.close()


def test_listeners_of_one_client_share_a_port_without_being_asked(world: World) -> None:
    peer = world.session()
    publics = {world.mapped(peer, bytes([number]) * 16) for number in range(3)}
    world.answers = {bytes([number]) * 16: Answer.REFUSED for number in range(3)}
    publics.add(world.mapped(peer, SECOND))
    assert len(publics) == len(world.table) == 4
    world.check_agreement()


def test_a_mirror_that_could_not_be_put_back_is_settled_by_the_next_reconcile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MirrorError("the disk is full")

    peer = world.session()
    world.kernel.broken = "no"
    with monkeypatch.context() as patch:
        patch.setattr(world.mirror, "remove", full)
        assert world.forward(peer).status is Status.CANNOT_PROVIDE_EXTERNAL
    world.kernel.broken = ""
    assert len(world.mirror.mappings()) == 1
    world.mappings.reconcile()
    world.check_agreement()


def test_rules_of_another_dpfd_on_the_same_gateway_stay(world: World) -> None:
    theirs = Rule(TCP, (A, 20000), (NEIGHBOUR, 80))
    world.kernel.rules.append(theirs)
    world.mappings.reconcile()
    assert world.kernel.rules == [theirs]
