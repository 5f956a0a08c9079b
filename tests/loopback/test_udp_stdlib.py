"""CPython's own tests of UDP sockets, with every port of theirs behind the relay.

Bound to 127.0.0.1, routed to the broker, and known by proxy addresses at the same host: all
that the tests send goes through the relay, and they must not notice.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from .udp_ground import brokering

if importlib.util.find_spec("test.test_socket") is None:
    pytest.skip("this Python comes without its tests", allow_module_level=True)

SUITE = """
import json, unittest
import test.test_socket as tests
names = [name for name in vars(tests) if "UDP" in name and "6" not in name and "LITE" not in name]
classes = [getattr(tests, name) for name in names if name.endswith("Test")]
load = unittest.defaultTestLoader.loadTestsFromTestCase
result = unittest.TestResult()
unittest.TestSuite(map(load, classes)).run(result)
wrong = {str(test): text for test, text in result.failures + result.errors}
print(json.dumps([result.testsRun, wrong]))
"""


def test_cpythons_udp_tests_pass_with_every_datagram_relayed(tmp_path: Path) -> None:
    routes = tmp_path / "routes"
    routes.write_text("127.0.0.0/8 gcb\n")
    with brokering(tmp_path, host="127.0.0.1") as relay:
        done = relay.run(SUITE, GCB_ROUTES=str(routes))
    assert done.returncode == 0, done.stderr
    run, wrong = json.loads(done.stdout.splitlines()[-1])
    assert wrong == {}, "\n".join(wrong.values())
    assert run >= 40
    assert relay.log.read_text().count("by gcb") >= run, "each had a proxy address"
