"""One rendezvous as one side of it knows it: its name, its secret, and the proofs of that.

Pure. It must never hand the secret out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..wire import auth
from ..wire.codec import Kind, build
from ..wire.messages import Call, Command, ConnectReply, Go, JoinReply, Path, PathKind

NONCE_BYTES = 16


@dataclass(frozen=True)
class Meeting:
    """One rendezvous as one side of it knows it; ``listening`` tells which side."""

    name: bytes
    secret: bytes
    listening: bool
    paths: tuple[Path, ...]
    challenge: bytes = b""
    """The connector's nonce, over which the listener proves itself; empty for older ones."""
    early: JoinReply | None = None
    """What the relay is expected to tell of the other side."""
    half: bytes = b""
    """If that is said on the listener's waiting connection of this nonce."""

    @classmethod
    def of(cls, arranged: Call | ConnectReply) -> Meeting:
        """Make it of what the broker said."""
        listening = isinstance(arranged, Call)
        more = (arranged.challenge, arranged.half) if isinstance(arranged, Call) else (b"", b"")
        paths = tuple(arranged.paths)
        return cls(
            arranged.rendezvous, arranged.secret, listening, paths,
            challenge=more[0], early=arranged.early, half=more[1],
        )

    def challenging(self, nonce: bytes) -> Meeting:
        """The same, in which the other side was sent this nonce."""
        return replace(self, challenge=nonce)

    @property
    def punches(self) -> bool:
        """Whether the two may try to punch."""
        return any(path.kind is PathKind.PUNCHED for path in self.paths)

    def without(self, hopeless: list[Path]) -> Meeting:
        """The same, where these paths are known to come to nothing."""
        return replace(self, paths=tuple(path for path in self.paths if path not in hopeless))

    @property
    def go(self) -> bytes:
        """The frame after which the program's bytes follow."""
        return build(Kind.REQUEST, Command.GO, 0, Go(self.name))

    def proof(self, label: str, *nonces: bytes) -> bytes:
        """Prove the secret."""
        return auth.proof(self.secret, label, self.name, *nonces)

    def proves(self, label: str, candidate: bytes, *nonces: bytes) -> bool:
        """Return whether the other side proves the secret."""
        return auth.check_proof(self.secret, label, self.name, candidate, *nonces)
