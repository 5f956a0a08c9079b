"""What an ordinary connect costs: how much of the layer runs for it, counted in calls."""

from __future__ import annotations

import pytest

from .test_patched import run

COUNTED = """
    import gcbpatch; gcbpatch.patch_all({given})
    import socket, sys

    def connect(port):
        sock = socket.socket()
        try:
            {prepare}
            return sock.connect_ex(("127.0.0.1", port))
        finally:
            sock.close()

    calls = []
    def note(frame, event, _):
        if event == "call" and "gcbpatch" in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connect(port)
        sys.setprofile(note)
        connect(port)
        sys.setprofile(None)
    print(*calls)
    """

BLOCKING = ["__init__", "connect_ex", "holds", "connect_ex", "holds", "close"]
"""gevent asks the socket twice: to begin, and whether it is done."""


@pytest.mark.parametrize(
    ("prepare", "calls"),
    [("pass", BLOCKING), ("sock.setblocking(False)", ["__init__", "connect", "holds", "close"])],
)
def test_a_connect_where_one_has_been_is_a_look_into_a_dict(
    prepare: str, calls: list[str]
) -> None:
    done = run(COUNTED.format(prepare=prepare, given="broker='198.51.100.9'"))
    assert done.stdout.split() == calls, done.stderr


def test_the_same_without_a_broker() -> None:
    done = run(COUNTED.format(prepare="pass", given=""))
    assert done.stdout.split() == [c.replace("holds", "_everything") for c in BLOCKING], done.stderr


@pytest.mark.parametrize("given", ["", ", broker='198.51.100.9'"])
def test_a_table_of_routes_that_denies_is_asked_once_for_an_address(given: str) -> None:
    routes = "routes=['192.0.2.0/24 deny']"
    done = run(COUNTED.format(prepare="pass", given=routes + given))
    assert done.stdout.split() == BLOCKING, done.stderr
