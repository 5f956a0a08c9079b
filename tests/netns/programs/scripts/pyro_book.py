"""Pyro5: an object that is found by its name, and calls back an object of whoever calls it.

pyro_book.py serve NAMESERVER-PORT HOST | pyro_book.py use HOST PORT. It knows nothing of NATs.
"""

import sys
import threading

import Pyro5.api


@Pyro5.api.expose
class Book:
    """The object: it keeps words and tells them to whoever wants to be told."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def write(self, word: str) -> int:
        """Keep a word; how many there are."""
        self.words.append(word)
        return len(self.words)

    def tell(self, reader: Pyro5.api.Proxy) -> str:
        """Call somebody else's object for each word; what it said at last."""
        reader._pyroClaimOwnership()
        return [reader.hear(word) for word in self.words][-1]


@Pyro5.api.expose
class Reader:
    """The object that is called back."""

    def hear(self, word: str) -> str:
        """Be told a word."""
        print("heard", word, flush=True)
        return word.upper()


def serve(host: str, port: int) -> None:
    """Register a book at the name server and serve it for ever."""
    daemon = Pyro5.api.Daemon(host="")
    uri = daemon.register(Book())
    Pyro5.api.locate_ns(host, port).register("book", uri)
    print("serving", uri, flush=True)
    daemon.requestLoop()


def use(host: str, port: int) -> None:
    """Find the book by its name, write in it and have it read out."""
    daemon = Pyro5.api.Daemon(host="")
    reader = Reader()
    daemon.register(reader)
    threading.Thread(target=daemon.requestLoop, daemon=True).start()
    name_server = Pyro5.api.locate_ns(host, port)
    with Pyro5.api.Proxy(name_server.lookup("book")) as book:
        for word in ("alpha", "beta"):
            print("wrote", book.write(word), flush=True)
        print("said", book.tell(reader), flush=True)


if __name__ == "__main__":
    {"serve": serve, "use": use}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
