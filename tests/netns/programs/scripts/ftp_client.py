"""ftplib: store a file, list the directory, fetch the file. It knows nothing of NATs.

ftp_client.py HOST PORT passive|active; prints the hashes of what was stored and fetched.
"""

import ftplib
import hashlib
import io
import os
import sys


def main(host: str, port: str, mode: str) -> None:
    """Use an FTP server in one of the two modes."""
    stored, fetched = os.urandom(1_000_000), io.BytesIO()
    with ftplib.FTP() as ftp:
        ftp.connect(host, int(port), timeout=30)
        ftp.login("user", "word")
        ftp.set_pasv(mode == "passive")
        ftp.storbinary("STOR file", io.BytesIO(stored))
        print("names", ftp.nlst(), flush=True)
        ftp.retrbinary("RETR file", fetched.write)
    print("same", fetched.getvalue() == stored, flush=True)
    print("stored", hashlib.sha256(stored).hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
