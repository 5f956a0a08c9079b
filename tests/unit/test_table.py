"""What is known of sockets is found again by the socket, and forgotten with it."""

from __future__ import annotations

import _socket
import os
import socket
from collections.abc import Iterator

import pytest

from gcbpatch.sockets.table import Table, cookie_of, is_same


class State:
    def __init__(self) -> None:
        self.released = 0

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def sock() -> Iterator[_socket.socket]:
    one = _socket.socket()
    yield one
    one.close()


def test_a_dup_is_the_same_socket_and_a_later_one_on_its_number_is_not(
    sock: _socket.socket,
) -> None:
    table, state = Table(), State()
    table.put(sock, state)
    number = sock.fileno()
    dup = _socket.socket(fileno=os.dup(number))
    sock.close()
    later = _socket.socket(fileno=number) if _reused(number) else _socket.socket()
    assert table.find(dup) is state
    assert table.find(later) is None
    table.drop(cookie_of(dup))
    assert table.find(dup) is None
    dup.close()
    later.close()


def _reused(number: int) -> bool:
    """Put a fresh socket on a number that was closed; whether that worked."""
    fresh = _socket.socket()
    if fresh.fileno() == number:
        return bool(fresh.detach())
    os.dup2(fresh.fileno(), number)
    fresh.close()
    return True


def test_pruning_keeps_what_this_process_has_and_releases_the_rest(sock: _socket.socket) -> None:
    table, kept, gone = Table(), State(), State()
    other = _socket.socketpair()[0]
    table.put(sock, kept)
    table.put(other, gone)
    other.close()
    table.prune()
    assert table.states() == [kept] and len(table) == 1
    assert (kept.released, gone.released) == (0, 1)


def test_looking_at_sockets_changes_nothing_of_theirs(sock: _socket.socket) -> None:
    others = [sock, *_socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)]
    before = [os.get_blocking(one.fileno()) for one in others]
    _socket.setdefaulttimeout(5)  # a new object of a descriptor makes that non-blocking then
    try:
        Table().prune()
    finally:
        _socket.setdefaulttimeout(None)
    assert [os.get_blocking(one.fileno()) for one in others] == before == [True] * 3
    assert [one.fileno() >= 0 for one in others] == [True] * 3


def test_a_number_that_is_another_file_is_not_the_same(sock: _socket.socket) -> None:
    cookie = cookie_of(sock)
    assert is_same(sock, cookie)
    with open(os.devnull) as file:
        os.dup2(file.fileno(), sock.fileno())
    assert not is_same(sock, cookie)
    os.close(sock.fileno())
    assert not is_same(sock, cookie)
    sock.detach()
