"""Who may say what: keys, MACs, address cookies, claims and proofs.

All functions are pure. Secrets are compared in constant time; they must never be logged,
and none is ever put into an error's text.
"""

from __future__ import annotations

import hashlib
import hmac

from ..addresses import Address
from ..errors import RemoteProtocolError, Status
from .codec import Frame, Kind, build
from .messages import Message

COOKIE_SECONDS = 60
"""A cookie is good for the period it was made in and the next."""


def _digest(secret: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 over parts that cannot run into each other."""
    joined = b"".join(len(p).to_bytes(4, "big") + p for p in parts)
    return hmac.digest(secret, joined, "sha256")


class Key:
    """One token: seals frames and opens them. ``name`` is what logs and limits call it."""

    def __init__(self, secret: bytes, name: str = "default") -> None:
        self.name = name
        self._secret = hashlib.sha256(b"gcbpatch token" + secret).digest()
        number = int.from_bytes(_digest(self._secret, b"key id")[:4], "big")
        self.key_id = number or 1

    def seal(self, frame: bytes) -> bytes:
        """Append the MAC to a frame that was built with this key's id."""
        return frame + hmac.digest(self._secret, frame, "sha256")

    def verify(self, frame: Frame) -> bool:
        """Return whether ``frame`` was sealed with this key."""
        return hmac.compare_digest(hmac.digest(self._secret, frame.signed, "sha256"), frame.mac)


class Keyring:
    """The tokens that a server accepts. Empty: nothing is authenticated."""

    def __init__(self, keys: list[Key] | None = None) -> None:
        self._keys = {key.key_id: key for key in keys or []}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def authenticate(self, frame: Frame) -> Key | None:
        """Return the key that sealed ``frame``; None if this keyring is empty.

        Raises RemoteProtocolError with NOT_AUTHORIZED otherwise.
        """
        if not self._keys:
            return None
        key = self._keys.get(frame.key_id)
        if key is None or not key.verify(frame):
            problem = "a wrong token" if frame.key_id else "no token where one is needed"
            raise RemoteProtocolError(Status.NOT_AUTHORIZED, problem)
        return key


def sealed(
    key: Key | None,
    kind: Kind,
    command: int,
    transaction: int,
    message: Message | None = None,
    status: int = Status.SUCCESS,
) -> bytes:
    """Build a frame, with a MAC if there is a key."""
    if key is None:
        return build(kind, command, transaction, message, status)
    return key.seal(build(kind, command, transaction, message, status, key.key_id))


def reply_to(
    frame: Frame, key: Key | None, status: Status, message: Message | None = None
) -> bytes:
    """Build the answer to a request."""
    return sealed(key, Kind.REPLY, frame.command, frame.transaction, message, status)


def check_reply(frame: Frame, key: Key | None) -> None:
    """Raise RemoteProtocolError unless a client with ``key`` may believe this reply.

    A refusal without a MAC is believed, since a server that does not know our key cannot
    seal; it is bound to our question by the transaction id, which is random.
    """
    if key is None or (frame.key_id == 0 and frame.status != Status.SUCCESS):
        return
    if frame.key_id != key.key_id or not key.verify(frame):
        raise RemoteProtocolError(Status.NOT_AUTHORIZED, "a reply with a wrong MAC")


def cookie(secret: bytes, address: Address, now: float) -> bytes:
    """Return the cookie for ``address``: stateless proof that answers reach it (RFC 9000, 8.1)."""
    return _cookie(secret, address, int(now // COOKIE_SECONDS))


def check_cookie(secret: bytes, address: Address, now: float, candidate: bytes) -> bool:
    """Return whether ``candidate`` was made for ``address`` in this period or the last."""
    period = int(now // COOKIE_SECONDS)
    expected = [_cookie(secret, address, p) for p in (period, period - 1)]
    return any([hmac.compare_digest(e, candidate) for e in expected])


def _cookie(secret: bytes, address: Address, period: int) -> bytes:
    where = f"{address[0]}|{address[1]}|{period}".encode()
    return _digest(secret, b"cookie", where)[:8]


def claim(secret: bytes, client: bytes, protocol: int, proxy: Address) -> bytes:
    """Return the claim with which ``client`` gets ``proxy`` back from a restarted broker."""
    where = f"{protocol}|{proxy[0]}|{proxy[1]}".encode()
    return _digest(secret, b"claim", client, where)[:16]


def proof(secret: bytes, label: str, name: bytes, *nonces: bytes) -> bytes:
    """Return proof of knowing ``secret``; ``label`` says by which side and for what.

    A proof over nonces of both sides is good for the one exchange in which they were drawn.
    Labels in use: ``join listener``, ``join connector``, ``open dialler``, ``open acceptor``,
    ``open confirmed``, ``punch connector``, ``punch listener``, ``management``,
    ``way``, ``way over``, ``way back``, ``card``.
    """
    return _digest(secret, label.encode(), name, *nonces)[:16]


def check_proof(
    secret: bytes, label: str, name: bytes, candidate: bytes, *nonces: bytes
) -> bool:
    """Compare a proof in constant time."""
    return hmac.compare_digest(proof(secret, label, name, *nonces), candidate)
