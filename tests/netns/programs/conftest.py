"""The fixture of the tests of real software: everything once by GCB and once by DPF."""

from pathlib import Path

import pytest

from tests.netns.lab import Lab
from tests.netns.programs.ground import Ground


@pytest.fixture(params=["gcb", "dpf"])
def ground(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Ground:
    """Two NATs with patched hosts behind them, by one system or the other."""
    return Ground(lab, tmp_path, request.param)
