"""The command ``brokerd``: flags in, a running broker or one line of complaint out."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from gcbpatch.errors import ConfigError

from .config import BrokerConfig, broker_config
from .daemon import Daemon


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", metavar="FILE", help="TOML file with the flags below as keys.")
@click.option("--address", metavar="IP", multiple=True,
              help="Host of the proxy addresses, as others dial it; one IPv4, one IPv6, or both.")
@click.option("--port", type=int, help="Command port, UDP and TCP [65432]; 0 for any.")
@click.option("--proxy-ports", metavar="LOW-HIGH", help="Automatic proxy ports [10000-32767].")
@click.option("--token-file", metavar="FILE", help="Tokens, one 'name token' a line.")
@click.option("--key-file", metavar="FILE", help="Key of the claims to proxy addresses.")
@click.option("--lifetime", type=int, metavar="SECONDS", help="Longest without heartbeat [30].")
@click.option("--workers", type=int, metavar="N", help="Processes that relay [1].")
@click.option("--log", metavar="LEVEL", help="DEBUG, INFO, WARNING [WARNING] or ERROR.")
def brokerd(config: str | None, **flags: Any) -> None:
    """Broker TCP connections for programs behind NATs and firewalls.

    Prints "brokerd ready on IP:PORT" when it serves, with an IP:PORT for each address. SIGTERM
    ends it, SIGHUP makes it read tokens and limits again. SIGUSR1 drains it: it takes no new
    listeners, sends those it has to other brokers, and ends when its relays have.
    """

    def read() -> BrokerConfig:
        return broker_config(flags, config)

    settings = read()
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log,
        format="%(asctime)s brokerd %(levelname)s %(message)s",
    )
    Daemon(settings, read).run()


def main() -> int:
    """Run the command; return its exit code: 2 for bad usage or settings, said in one line."""
    try:
        brokerd(standalone_mode=False)
    except click.ClickException as error:
        print(f"brokerd: {error.format_message()}", file=sys.stderr)
        return 2
    except ConfigError as error:
        print(f"brokerd: {error}", file=sys.stderr)
        return 2
    return 0
