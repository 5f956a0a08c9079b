"""pyftpdlib: an FTP server, as in its tutorial. It knows nothing of NATs.

ftp_server.py DIRECTORY [strict|foreign] [loop|threads]: "foreign" lets data go to another host
than commands come from.
"""

import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer, ThreadedFTPServer


def main(directory: str, foreign: str = "strict", kind: str = "loop") -> None:
    """Serve a directory for ever."""
    authorizer = DummyAuthorizer()
    authorizer.add_user("user", "word", directory, perm="elradfmw")
    FTPHandler.authorizer = authorizer
    FTPHandler.permit_foreign_addresses = foreign == "foreign"
    server_class = {"loop": FTPServer, "threads": ThreadedFTPServer}[kind]
    server = server_class(("", 0), FTPHandler)
    print("listening on {}:{}".format(*server.address), flush=True)
    server.serve_forever(handle_exit=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
