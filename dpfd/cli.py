"""The command ``dpfd``: flags, log, exit codes.

Exit codes: 0 after SIGTERM or SIGINT; 1 if the kernel refuses; 2 for bad usage or settings,
with one line that says what would be right. It must never import python-iptables itself.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from gcbpatch.errors import ConfigError, GcbError

from . import config as settings


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "path", metavar="FILE", help="Settings in TOML; flags win over them.")
@click.option("--private", metavar="IFACE", help="Interface of the network inside.")
@click.option("--public", metavar="IFACE|IP[,IP]", help="Interface or addresses of the outside.")
@click.option("--port", type=int, help="Port for commands, on the private side.  [65431]")
@click.option("--ports", metavar="LO-HI", help="Public ports to give away.  [10000-32767]")
@click.option("--backend", metavar="auto|nftables|iptables", help="What sets the rules: auto takes \
what the gateway uses.  [auto]")
@click.option("--mirror", metavar="FILE", help=f"The mirror file.  [{settings.DEFAULT_MIRROR}]")
@click.option("--token-file", metavar="FILE", help="Tokens of clients, one 'name token' a line.")
@click.option("--wish", metavar="any|refuse", help="What a client gets that cannot have the \
public port that it wishes for: any other, or none.  [any]")
@click.option("--standard-clients", is_flag=True, default=None, help="Answer NAT-PMP and PCP.")
@click.option("--lifetime", type=int, metavar="SECONDS", help="The longest lease.  [30]")
@click.option("--reconcile-interval", type=float, metavar="SECONDS", help="How often what \
others did to the rules is put right.  [60]")
@click.option("--log", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.  [INFO]")
@click.option("--dry-run", is_flag=True, help="Print what would be done to the firewall, and end.")
@click.option("--flush", is_flag=True, help="Remove all rules and mappings of dpfd's, and end.")
def command(path: str | None, dry_run: bool, flush: bool, **flags: Any) -> None:
    """Forward ports of a NAT gateway to programs inside, as they ask for it.

    Rules stay when dpfd ends, since mappings live through a restart; --flush removes them.
    SIGHUP reads tokens and policy again and puts right what others changed in the firewall.
    """
    config = settings.load(path, flags)
    logging.basicConfig(
        level=config.log,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    from . import daemon

    if flush:
        daemon.flush(config)
        return
    for key in ("private", "public"):
        if not getattr(config, key):
            raise ConfigError(f"--{key} is missing; the {key} interface would be right")
    if dry_run:
        for line in daemon.plan(config):
            print(line)
        return
    daemon.run(config, lambda: settings.load(path, flags))


def main() -> None:
    """Run the command and exit."""
    try:
        command.main(prog_name="dpfd", standalone_mode=False)
    except click.ClickException as error:
        _exit(2, error.format_message())
    except click.Abort:
        _exit(130, "interrupted")
    except ConfigError as error:
        _exit(2, str(error))
    except GcbError as error:
        _exit(1, str(error))


def _exit(code: int, complaint: str) -> None:
    print(f"dpfd: {' '.join(complaint.split())}", file=sys.stderr)
    sys.exit(code)
