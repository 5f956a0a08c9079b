"""requests: fetch a URL twice over one connection, and stream it. web_get.py URL."""

import hashlib
import sys

import requests


def main(url: str) -> None:
    """Print the hash of what is there, by two ways of reading."""
    with requests.Session() as session:
        whole = session.get(url, timeout=30)
        print("status", whole.status_code, whole.headers["Server"].split("/")[0], flush=True)
        print("hash", hashlib.sha256(whole.content).hexdigest(), flush=True)
        stream = hashlib.sha256()
        with session.get(url, timeout=30, stream=True) as response:
            for chunk in response.iter_content(65536):
                stream.update(chunk)
        print("hash", stream.hexdigest(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
