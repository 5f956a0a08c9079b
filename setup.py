"""Which packages are installed; everything else about the project stands in pyproject.toml."""

from setuptools import find_packages, setup

HOUSES = ("gcbpatch", "brokerd", "dpfd")

setup(
    packages=find_packages(include=[name for house in HOUSES for name in (house, f"{house}.*")]),
    package_data={house: ["py.typed"] for house in HOUSES},
)
