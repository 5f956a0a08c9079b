"""paramiko: a command, a file, and a connection through the SSH server to somewhere else.

ssh_use.py HOST PORT USER KEY-FILE DIRECTORY THERE-HOST THERE-PORT. It knows nothing of NATs.
"""

import os
import sys
from pathlib import Path

import paramiko


def main(host: str, port: str, user: str, key: str, directory: str, *there: str) -> None:
    """Use everything once."""
    with paramiko.SSHClient() as client:
        client.load_host_keys(f"{directory}/known_hosts")
        client.connect(host, int(port), user, key_filename=key, timeout=30, allow_agent=False)
        stdin, out, _ = client.exec_command("echo $((6 * 7)); cat", timeout=30)
        stdin.write(b"from afar")
        stdin.close()
        print("command", out.read().split(b"\n"), flush=True)
        data = os.urandom(500_000)
        with client.open_sftp() as sftp:
            sftp.open(f"{directory}/uploaded", "wb").write(data)
        print("uploaded", Path(f"{directory}/uploaded").read_bytes() == data, flush=True)
        transport = client.get_transport()
        assert transport is not None
        channel = transport.open_channel("direct-tcpip", (there[0], int(there[1])), ("", 0))
        channel.sendall(b"through the server\r\n")
        print("through", channel.recv(100), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
