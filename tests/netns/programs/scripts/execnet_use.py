"""execnet: run functions in an execnet socket server elsewhere. execnet_use.py HOST PORT."""

import sys

import execnet


def squares(channel) -> None:  # type: ignore[no-untyped-def]
    """Runs over there: answers until it is told to end."""
    import socket

    channel.send(socket.gethostname.__module__)
    for number in channel:
        channel.send(number**2)


def main(host: str, port: str) -> None:
    """Use two channels of one gateway."""
    gateway = execnet.makegateway(f"socket={host}:{port}")
    print("computed", gateway.remote_exec("channel.send(6 * 7)").receive(30), flush=True)
    channel = gateway.remote_exec(squares)
    print("module", channel.receive(30), flush=True)
    found = []
    for number in range(10):
        channel.send(number)
        found.append(channel.receive(30))
    print("squares", found, flush=True)
    gateway.exit()


if __name__ == "__main__":
    main(*sys.argv[1:])
