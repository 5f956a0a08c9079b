"""Cards that a broker passes on: to whom, with which places, and for whom not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from brokerd.arrange import Side, places
from brokerd.cards import Cards
from brokerd.hosts import Hosts
from brokerd.registry import Listener, Ports, Refusal, Registry, Sender
from gcbpatch.errors import Status
from gcbpatch.wire.messages import UDP, Card, Endpoint, Introduce, Meet, Register

HOST = "198.51.100.1"
A, B = Sender(("203.0.113.1", 4000), HOST, None), Sender(("203.0.113.2", 4000), HOST, None)


class Ground:
    """A broker with a port of A's and one of B's."""

    def __init__(self) -> None:
        self.registry = Registry(Hosts((HOST,)), Ports(20000, 20100), 30, bytes(32), 0.0)
        self.asked: list[tuple[Listener, Meet]] = []
        self.done: list[Callable[[Status], None]] = []
        self.stopped = 0
        self.cards = Cards(Hosts((HOST,)), self.registry, self._ask)
        self.a, self.b = self._register(b"a", A), self._register(b"b", B)

    def _register(self, name: bytes, sender: Sender) -> Listener:
        asked = Register(name * 16, bytes(8), name * 16, UDP, 0, name * 8, [], "", 30)
        return self.registry.register(asked, sender, 0.0, 0, lambda port: True)

    def _ask(
        self,
        listener: Listener,
        message: Meet,
        done: Callable[[Status], None],
        now: float,
        before: bytes,
    ) -> Callable[[], None]:
        self.before = before
        self.asked.append((listener, message))
        self.done.append(done)
        return self._stop

    def _stop(self) -> None:
        self.stopped += 1

    def introduce(self, **changed: Any) -> None:
        """Have A give its card to B."""
        given = {
            "client": b"a" * 16, "target": Endpoint.of(self.b.proxy),
            "peer": Endpoint.of(self.a.proxy), "places": [Endpoint("203.0.113.1", 4001)],
        } | changed
        card = Card(given["peer"], bytes(16), bytes(8), bytes(8), given["places"])
        self.cards.introduce(Introduce(given["client"], bytes(8), given["target"], card), A, 0.0)


def test_the_holder_of_the_proxy_address_gets_the_card() -> None:
    ground = Ground()
    ground.introduce()
    (listener, message), = ground.asked
    assert listener is ground.b
    assert (message.listener, message.nonce) == (b"b" * 16, b"b" * 8)
    assert message.card.peer.address == ground.a.proxy
    assert message.card.places == [Endpoint("203.0.113.1", 4001)]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"target": Endpoint(HOST, 9)}, Status.UNKNOWN),
        ({"client": b"x" * 16}, Status.NOT_AUTHORIZED),
        ({"peer": Endpoint(HOST, 9)}, Status.NOT_AUTHORIZED),
    ],
    ids=["nobody is there", "another client", "an address that nobody has"],
)
def test_no_card_is_passed_on_in_somebody_elses_name(
    changed: dict[str, Any], status: Status
) -> None:
    ground = Ground()
    with pytest.raises(Refusal) as caught:
        ground.introduce(**changed)
    assert caught.value.status is status
    assert not ground.asked


def test_another_brokers_proxy_address_is_proved_by_the_answer_going_there() -> None:
    ground = Ground()
    ground.introduce(peer=Endpoint("198.51.100.2", 20000))
    assert ground.asked[0][1].card.peer.host == "198.51.100.2"


def test_a_later_card_takes_the_place_of_an_earlier_one() -> None:
    ground = Ground()
    ground.introduce()
    ground.introduce()
    assert ground.stopped == 1
    ground.done[1](Status.SUCCESS)
    ground.introduce()
    assert ground.stopped == 1


SEEN, PRIVATE = Endpoint("203.0.113.1", 4001), Endpoint("10.0.0.5", 4001)


@pytest.mark.parametrize(
    ("told", "asker", "other", "kept"),
    [
        ([PRIVATE, SEEN], Side(A.address), Side(B.address), [SEEN]),
        ([PRIVATE, SEEN], Side(A.address), Side(A.address), [PRIVATE, SEEN]),
        ([PRIVATE], Side(A.address, network="x"), Side(A.address, network="y"), []),
        ([PRIVATE], Side(A.address, network="x"), Side(A.address, network="x"), [PRIVATE]),
        ([PRIVATE], Side(("10.0.0.5", 1)), Side(("10.0.0.6", 1)), [PRIVATE]),
        ([Endpoint("192.0.2.1", 53)], Side(A.address), Side(B.address), []),
        ([Endpoint("203.0.113.1", 0)], Side(A.address), Side(B.address), []),
        ([Endpoint("0.0.0.0", 5)], Side(A.address), Side(A.address), []),
        ([Endpoint("127.0.0.1", 5)], Side(A.address), Side(A.address), []),
    ],
)
def test_which_places_the_other_is_told_of(
    told: list[Endpoint], asker: Side, other: Side, kept: list[Endpoint]
) -> None:
    assert places(told, asker, other) == kept
