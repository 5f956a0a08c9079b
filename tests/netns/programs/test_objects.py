"""Programs that call each other's objects, unmodified, across two NATs."""

from __future__ import annotations

import pytest

from tests.netns.pairs import ADDRESS
from tests.netns.programs.ground import Ground, need


@pytest.mark.parametrize("kind", ["thread", "multiplex"])
def test_pyro5_finds_an_object_by_name_and_is_called_back(ground: Ground, kind: str) -> None:
    need("Pyro5")
    # It advertises the port that it was told, so this must be one that gateways give.
    names = ground.python(ground.a, "-m", "Pyro5.nameserver", "-n", "", "-p", "19090", "-x")
    host, port = names.wait_line(r"^NS running on (\S+):(\d+)").groups()
    assert host == ground.public_address(ground.a)
    book = ground.python(ground.a2, "pyro_book.py", "serve", host, port, PYRO_SERVERTYPE=kind)
    uri = book.wait_line(r"^serving PYRO:\w+@(\S+):\d+").group(1)
    assert uri == ground.public_address(ground.a2)
    use = ground.told(ground.b, "pyro_book.py", "use", host, port)
    assert use["wrote"] == "2"
    assert (use["heard"], use["said"]) == ("beta", "BETA")


@pytest.mark.parametrize("kind", ["threaded", "forking"])
def test_rpyc_shares_objects_and_calls_functions_of_its_callers(ground: Ground, kind: str) -> None:
    need("rpyc")
    _, address = ground.served(ground.a, "rpyc_table.py", "serve", kind)
    assert address[0] == ground.public_address(ground.a)
    use = ground.told(ground.b, "rpyc_table.py", "use", *address)
    assert use["rows"] == "[0, 1, 2, 3, 4]"
    assert use["squares"] == "[0, 1, 4, 9, 16]"
    assert use["blob"] == "300000"


def test_one_line_does_what_the_command_does(ground: Ground) -> None:
    for role, host in (("serve", ground.a), ("use", ground.b)):
        ground.with_one_line(host, "xmlrpc_sum.py", f"{role}.py")
    program = ground.plain_python(ground.a, "serve.py", "serve")
    address = program.wait_line(ADDRESS).group(1).split(":")
    assert address[0] == ground.public_address(ground.a)
    use = ground.plain_python(ground.b, "use.py", "use", *address).result(check=True, hang_limit=60)
    assert f"sum {sum(range(1000))}\n" in use.stdout


def test_xmlrpc_answers_and_reports_faults(ground: Ground) -> None:
    _, address = ground.served(ground.a, "xmlrpc_sum.py", "serve")
    assert address[0] == ground.public_address(ground.a)
    for host in (ground.b, ground.a2, ground.other):
        use = ground.told(host, "xmlrpc_sum.py", "use", *address)
        assert use["sum"] == str(sum(range(1000)))
        assert use["greet"] == "{'hello': 'welt'}"
        assert "'greet', 'sum', 'system.listMethods'" in use["methods"]
        assert 'method "missing" is not supported' in use["fault"]


def test_execnet_runs_functions_in_a_socket_server(ground: Ground) -> None:
    need("execnet")
    server = ground.python(ground.a, "-m", "execnet.script.socketserver", ":8888")
    name = server.wait_line(r"Entering Accept loop \('(\S+)', (\d+)\)").groups()
    assert name[0] == ground.public_address(ground.a)
    use = ground.told(ground.b, "execnet_use.py", *name)
    assert use["computed"] == "42"
    assert use["squares"] == str([number**2 for number in range(10)])
