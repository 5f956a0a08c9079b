"""The gcbpatch command: run a program patched, or enter the lab."""

from __future__ import annotations

import sys

import click

from . import __version__

PASS_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Connectivity for programs behind NATs and firewalls."""


@main.command(context_settings=PASS_ON)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED)
def run(arguments: tuple[str, ...]) -> None:
    """Run PROGRAM [ARG ...] patched, as python -m gcbpatch does."""
    from .__main__ import main as run_main

    sys.path.insert(0, "")  # the place that -m would have taken
    run_main(list(arguments))


@main.command(context_settings=PASS_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lab(arguments: tuple[str, ...]) -> None:
    """Build a lab of hosts and NAT gateways out of network namespaces (from a checkout)."""
    try:
        from tests.netns.lab import main as lab_main
    except ImportError as error:
        raise click.ClickException(
            f"the lab comes with the source tree: run this from a checkout ({error})"
        ) from error
    sys.exit(lab_main(list(arguments)))
