"""What setup.py and pyproject.toml install is what stands in the tree."""

import importlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSES = ("gcbpatch", "brokerd", "dpfd")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Runs setup.py as far as its own words go, and prints the packages that it names.
PACKAGES = """
import json, setuptools, distutils.core
print(json.dumps(distutils.core.run_setup("setup.py", stop_after="init").packages))
"""


def test_every_folder_of_modules_is_installed() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PACKAGES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = {path.parent for house in HOUSES for path in (ROOT / house).rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(json.loads(found.stdout)) == names


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_a_command_is_a_function(command: str) -> None:
    module, _, function = PROJECT["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
