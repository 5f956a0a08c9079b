"""Fixtures of the tests that need real NAT: a lab for each test.

Where no network namespaces can be had, these tests are skipped with the reason on the terminal;
with CI=true in the environment they fail instead. They must never be skipped silently.
"""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.netns.gateway_ground import BACK_ENDS, BackEnd
from tests.netns.lab import Host, Lab, LabError, why_not


def _say(config: pytest.Config, line: str) -> None:
    """Print one line on the terminal, past pytest's capture and out of an xdist worker."""
    capture = config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{line}", file=sys.stderr, flush=True)


@pytest.fixture(scope="session")
def no_lab_because() -> str | None:
    """Why there can be no lab here; None if there can. Tried once."""
    return why_not()


@pytest.fixture(scope="session", autouse=True)
def namespaces(request: pytest.FixtureRequest, no_lab_because: str | None) -> None:
    """Every test below this directory needs namespaces that can really be had."""
    if no_lab_because is None:
        return
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"CI must run the NAT tests, but: {no_lab_because}", pytrace=False)
    _say(request.config, f"NAT tests skipped: {no_lab_because}")
    pytest.skip(no_lab_because)


@pytest.fixture
def lab() -> Iterator[Lab]:
    """An empty lab: a public segment and nothing on it."""
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="session")
def no_user_namespace_because() -> str | None:
    """Why there can be no lab in a user namespace here; None if there can. Tried once."""
    try:
        with Lab(rootless=True):
            return None
    except LabError as error:
        return f"no user namespaces to be had: {error}"


@pytest.fixture(params=["own rights", "user namespace"])
def any_lab(request: pytest.FixtureRequest, no_user_namespace_because: str | None) -> Iterator[Lab]:
    """An empty lab, once with the rights of this process and once in a user namespace."""
    rootless = request.param == "user namespace"
    if rootless and no_user_namespace_because:
        pytest.skip(no_user_namespace_because)
    with Lab(rootless=rootless or None) as lab:
        yield lab


@pytest.fixture
def pub(lab: Lab) -> Host:
    """An ordinary host in public."""
    return lab.host("pub")


@pytest.fixture(params=BACK_ENDS, ids=lambda back_end: back_end.name)
def back_end(request: pytest.FixtureRequest) -> BackEnd:
    """Each of dpfd's back ends."""
    chosen: BackEnd = request.param
    return chosen
