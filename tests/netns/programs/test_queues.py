"""multiprocessing's managers and connections, unmodified, across two NATs."""

from __future__ import annotations

from tests.netns.programs.ground import Ground


def test_processes_behind_two_nats_share_the_queues_of_a_manager(ground: Ground) -> None:
    _, address = ground.served(ground.a, "manager_queues.py", "serve")
    assert address[0] == ground.public_address(ground.a)
    worker = ground.python(ground.a2, "manager_queues.py", "work", *address)
    worker.wait_line("^working")
    ask = ground.told(ground.b, "manager_queues.py", "ask", *address)
    assert ask["found"] == str([(number, number**2) for number in range(1, 6)])
    assert worker.wait() == 0


def test_a_multiprocessing_listener_and_its_clients(ground: Ground) -> None:
    server, address = ground.served(ground.a, "connection_pair.py", "serve")
    assert address[0] == ground.public_address(ground.a)
    for host in (ground.b, ground.other):
        use = ground.told(host, "connection_pair.py", "use", *address)
        assert use["early"] == "False"
        assert use["polled"] == "True [None, 'two', 1]"
        assert (use["waited"], use["big"]) == ("True", "True")
        assert server.wait_line(r"^peer (\S+)").group(1) == host.observed_address
