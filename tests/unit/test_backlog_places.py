"""The places of a backlog: given in turn, and never lost to somebody who went away."""

from __future__ import annotations

import asyncio

from gcbpatch.agent.places import Room

HANG_SECONDS = 10.0


async def waiting(room: Room) -> asyncio.Task[None]:
    """Return a task that has asked for a place and got none yet."""
    task = asyncio.ensure_future(room.take())
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def there(*tasks: asyncio.Task[None]) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        await asyncio.gather(*tasks)


async def in_turn() -> None:
    room = Room(0)
    await room.take()
    first, second = await waiting(room), await waiting(room)
    room.give()
    await there(first)
    assert not second.done()
    room.allow(1)
    await there(second)


def test_who_waits_gets_a_place_in_turn() -> None:
    asyncio.run(in_turn())


async def cancelled_while_waiting() -> None:
    room = Room(0)
    await room.take()
    gone = await waiting(room)
    gone.cancel()
    room.give()  # before the task has had a chance to leave the row
    await there(asyncio.ensure_future(room.take()))


def test_a_free_place_is_not_kept_for_somebody_who_went_away() -> None:
    asyncio.run(cancelled_while_waiting())


async def cancelled_in_the_same_moment() -> None:
    room = Room(0)
    await room.take()
    gone = await waiting(room)
    room.give()
    gone.cancel()  # its place is taken already, but it never comes
    await asyncio.wait([gone])
    assert gone.cancelled()
    await there(asyncio.ensure_future(room.take()))


def test_a_place_given_to_somebody_who_goes_away_is_free_again() -> None:
    asyncio.run(cancelled_in_the_same_moment())
