"""When a link carries: the kernel says so later than it lets itself be configured.

A veth pair has its carrier as soon as both ends are up, but its queue and its place in a bridge
are given to it by the kernel's link watcher, in a work queue of its own. Until then packets
vanish, and on a busy machine that takes long enough for a first datagram to be among them.
This room must never sleep: it waits for the kernel's news of links.
"""

import select
import socket
import subprocess

from tests.netns.lab import program
from tests.netns.lab.errors import LabError
from tests.netns.lab.space import Space, tool

_RTMGRP_LINK = 1
NEWS_SIZE = 65536  # bytes


def wait_until_carrying(space: Space, *interfaces: str) -> None:
    """Return when all of these are up, and forward if they are ports of a bridge."""
    with space.socket(socket.AF_NETLINK, socket.SOCK_RAW) as news:
        news.bind((0, _RTMGRP_LINK))
        # Asked after the news was ordered, so that none falls between.
        for interface in interfaces:
            while not _carries(space, interface):
                _await_news(news, interface)


def _carries(space: Space, interface: str) -> bool:
    argv = [*space.entry(), tool("ip"), "-o", "-d", "link", "show", "dev", interface]
    words = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    up = words[words.index("state") + 1] == "UP"
    return up and ("bridge_slave" not in words or "forwarding" in words)


def _await_news(news: socket.socket, interface: str) -> None:
    if not select.select([news], [], [], program.HANG_LIMIT)[0]:
        raise LabError(f"{interface} does not carry after {program.HANG_LIMIT} s")
    news.recv(NEWS_SIZE)
