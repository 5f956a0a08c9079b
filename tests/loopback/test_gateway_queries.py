"""What an agent asks a gateway about neighbours, and how long it believes the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from dpfd import dispatch
from gcbpatch.agent import gateway as rooms
from gcbpatch.agent.registrants import Registrants
from gcbpatch.config import ClientConfig
from gcbpatch.wire.messages import Command

from .gateway_client import Management, random_id
from .test_dpfd import INSIDE, LOCALHOST, PUBLIC, RunningGateway, gateway, kernel, mirror

__all__ = ["gateway", "kernel", "mirror"]

UNMAPPED = (PUBLIC, 10000)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The queries that dpfd has answered."""
    seen: list[Any] = []
    real: Callable[..., Any] = dispatch.query

    def noted(dispatcher: Any, peer: Any, request: Any) -> Any:
        seen.append(request.public.address)
        return real(dispatcher, peer, request)

    monkeypatch.setitem(dispatch._HANDLERS, Command.QUERY, noted)
    return seen


async def answers(running: RunningGateway, *publics: tuple[str, int]) -> list[Any]:
    """What one agent is told of these, one after the other."""
    one = rooms.Gateway(running.address, random_id(), ClientConfig(), Registrants(()))
    try:
        return [await one.query(public) for public in publics]
    finally:
        one.close()


def mapped(running: RunningGateway) -> tuple[str, int]:
    with running.session() as session:
        wish = ("0.0.0.0", 20000)
        reply = session.forward(random_id(), INSIDE, Management(LOCALHOST), wished=wish)
        return reply.public.address


def test_dpfd_is_asked_once_about_each_address(gateway: RunningGateway, asked: list[Any]) -> None:
    public = mapped(gateway)
    told = asyncio.run(answers(gateway, public, UNMAPPED, public, UNMAPPED))
    assert told == [INSIDE, None, INSIDE, None]
    assert asked == [public, UNMAPPED]


def test_what_was_told_is_believed_for_a_while_only(
    gateway: RunningGateway, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "NEIGHBOUR_SECONDS", 0.0)
    public = mapped(gateway)
    assert asyncio.run(answers(gateway, public, public)) == [INSIDE, INSIDE]
    assert asked == [public, public]


def test_a_dpfd_that_does_not_answer_is_not_remembered_as_a_no(
    gateway: RunningGateway, asked: list[Any]
) -> None:
    public = mapped(gateway)

    async def late() -> list[Any]:
        nobody = (LOCALHOST, 1)
        one = rooms.Gateway(nobody, random_id(), ClientConfig(), Registrants(()))
        first = await one.query(public)
        one.address = gateway.address
        second = await one.query(public)
        one.close()
        return [first, second]

    assert asyncio.run(late()) == [None, INSIDE]
