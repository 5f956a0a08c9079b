"""One way from a UDP port to another one past the relay: is it there, and is it to be kept?

Sans I/O: `now` in, places to ask and what came of it out. Both sides have each other's card
by their brokers, ask at every place that it names, and take the best at which the other
proves to have the card. While the way is in use it is asked again every second, so that one
that is gone is left within VALID seconds; one that is not in use is kept open in every NAT
for a while, and asked anew before it is used.

This room must never take a place for the other's before that has proved our card's secret.
"""

from __future__ import annotations

import hmac

from ..addresses import Address, is_private
from ..errors import RemoteProtocolError, Status
from ..wire import auth
from ..wire.messages import Card, Endpoint
from ..wire.messages import Way as Asked

VALID = 3.0
"""Seconds after a question that was answered for which the program uses the way."""
STEPS = (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0)
"""When all places are asked, in seconds after both cards are known."""
LAST_STEP = 4.0
ENOUGH = 2
"""So often all are asked though one has answered: a better one may be slower."""
IN_USE = 3.0
"""Seconds since the program's last datagram for which a way is taken to be in use."""
ASK_EVERY, KEEP_EVERY = 1.0, 15.0
"""Seconds between questions on a way that is in use, and on one that is only kept open."""
KEEP = 120.0
"""Seconds for which a way that nobody uses is kept open."""
DEAD = 8.0
"""Seconds of silence on a way in use after which it is looked for anew."""
CARD_EVERY = 5.0
"""Seconds after which a card may say something new."""
RETRY, MOST_RETRY = 10.0, 320.0
"""Seconds until it is tried again where nothing was found; doubled each time."""
MOST_LEARNED = 4
MOST_ASKED = 64


class Question:
    """One that was asked: at which place, with which challenge, and when."""

    __slots__ = ("challenge", "place", "sent")

    def __init__(self, place: Address, challenge: bytes, sent: float) -> None:
        self.place, self.challenge, self.sent = place, challenge, sent


class Way:
    """What one port knows of its way to one peer; ``place`` is where that was found."""

    def __init__(self, peer: Address, secret: bytes, now: float) -> None:
        """``secret`` is random; who proves to know it has our card."""
        self.peer = peer
        self.secret = secret
        self.card: Card | None = None
        self.place: Address | None = None
        self.used = self.heard = now
        self._learned: list[Address] = []
        self._questions: dict[int, Question] = {}
        self._step = len(STEPS)
        self._began = 0.0
        self._next = 0.0
        self._confirmed = 0.0
        self._told = float("-inf")
        self._silent: float | None = None
        self._failures = 0
        self._retry = 0.0

    # --- cards

    @property
    def knows(self) -> bytes:
        """What tells the peer that its card is here."""
        return _known(self.card.secret) if self.card else b""

    def told(self, now: float) -> None:
        """Our card is on its way."""
        self._told = now

    def wanted(self, now: float) -> bool:
        """The program sends by the relay; return whether the peer is to have our card."""
        if now - self.used > IN_USE:
            self._silent = None  # what was asked meanwhile was only to keep it open
        self.used = now
        if self.place is not None:
            self._next = min(self._next, max(now, self._confirmed + ASK_EVERY / 2))
            return False
        return not self._is_looking and now >= max(self._retry, self._told + CARD_EVERY)

    def meet(self, card: Card, now: float) -> bool:
        """Take the peer's card and begin to look; return whether it needs ours."""
        fresh = self.card is None or self.card.secret != card.secret
        self.card, self.heard = card, now
        if fresh:
            self.place = self._silent = None
            self._questions.clear()
        if fresh or self.place is None or now - self._confirmed > VALID:
            self._began, self._step, self._learned = now, 0, []
        knows = card.knows == _known(self.secret)
        return (fresh and not knows) or now - self._told > CARD_EVERY

    # --- looking, and keeping

    @property
    def _is_looking(self) -> bool:
        return self._step < len(STEPS)

    @property
    def places(self) -> list[Address]:
        """Where the peer may be, the best first."""
        told = [place.address for place in self.card.places] if self.card else []
        return sorted(dict.fromkeys([*told, *self._learned]), key=_rank)

    def due(self) -> float | None:
        """When something is to be done next; None if nothing is, unless something happens."""
        if self._is_looking:
            return self._began + STEPS[self._step]
        if self.place is not None:
            return self._next
        return self._began + LAST_STEP if self._began else None

    def is_idle(self, now: float) -> bool:
        """Whether nobody has used it, nor asked, for so long that it need not be kept."""
        return now - max(self.used, self.heard) > KEEP

    def turn(self, now: float, used: bool) -> list[Address]:
        """Return where to ask now; ``used`` tells that the program has used the way."""
        if used:
            self.used = now
        if self._is_looking and now >= self._began + STEPS[self._step]:
            self._step += 1
            if self.place is not None and self._step > ENOUGH:
                self._step = len(STEPS)
            return self.places
        if self.place is None:
            self._give_up(now)
            return []
        if now < self._next:
            return []
        in_use = now - self.used < IN_USE
        every = ASK_EVERY if in_use else KEEP_EVERY
        if self._silent is not None and now - self._silent > max(DEAD, 2 * every):
            self.place, self._began, self._silent = None, 0.0, None
            return []
        self._silent = now if self._silent is None else self._silent
        self._next = now + every
        return [self.place]

    def _give_up(self, now: float) -> None:
        """Nothing was found: the next time is later."""
        if self._began and now >= self._began + LAST_STEP and not self._is_looking:
            self._began = 0.0
            self._retry = now + min(RETRY * 2**self._failures, MOST_RETRY)
            self._failures += 1

    # --- questions and answers

    def ask(self, transaction: int, place: Address, challenge: bytes, now: float) -> bytes:
        """Note a question; return what proves both cards in it."""
        self._questions[transaction] = Question(place, challenge, now)
        while len(self._questions) > MOST_ASKED:
            del self._questions[next(iter(self._questions))]
        return self._proof("way", challenge, mine=False)

    def farewell(self, challenge: bytes) -> bytes:
        """Return the proof that it is we who use no way any more."""
        return self._proof("way over", challenge, mine=False)

    def answer(self, asked: Asked, source: Address, now: float) -> tuple[bytes, bool]:
        """Return the proof for the peer, and whether to ask where its question came from.

        Raises RemoteProtocolError if it has not got our card.
        """
        right = self._proof("way over" if asked.over else "way", asked.challenge, mine=True)
        if not hmac.compare_digest(right, asked.proof):
            raise RemoteProtocolError(Status.NOT_AUTHORIZED, "a question without proof")
        proof = self._proof("way back", asked.challenge, mine=True)
        self.heard = now
        if asked.over:
            self.card = self.place = None
            self._step, self._began = len(STEPS), 0.0
        unknown = not asked.over and source not in self.places
        if unknown and len(self._learned) < MOST_LEARNED:
            self._learned.append(source)
        return proof, unknown and source in self._learned

    def answered(self, transaction: int, proof: bytes, source: Address, now: float) -> float | None:
        """The peer has answered; return until when its place is good, None if it is not used.

        Raises RemoteProtocolError for an answer without proof.
        """
        question = self._questions.get(transaction)
        if question is None or question.place != source or self.card is None:
            return None
        right = self._proof("way back", question.challenge, mine=False)
        if not hmac.compare_digest(right, proof):
            raise RemoteProtocolError(Status.NOT_AUTHORIZED, "an answer without proof")
        del self._questions[transaction]
        self.heard = now
        gone = self.place is None or now - self._confirmed > VALID
        if self.place != source and not gone and _rank(source) >= _rank(self.place or source):
            return None
        if self.place != source:
            self.place, self._next = source, now + ASK_EVERY
        self._failures, self._retry, self._silent = 0, 0.0, None
        self._confirmed = max(self._confirmed, question.sent)
        return self._confirmed + VALID

    def _proof(self, label: str, challenge: bytes, mine: bool) -> bytes:
        """The proof in a question to us, or the answer to it; not ``mine``, the same of theirs."""
        if self.card is None:
            raise RemoteProtocolError(Status.UNKNOWN, "no card of this peer's is here")
        secrets = (self.secret, self.card.secret) if mine else (self.card.secret, self.secret)
        return auth.proof(secrets[0], label, challenge, secrets[1])

    @property
    def kind(self) -> str:
        """The name of the path: how the place is the peer's."""
        assert self.card is not None and self.place is not None
        if is_private(self.place[0]):
            return "LOCAL"
        return "PUNCHED" if self.card.translated else "DIRECT"


def is_translated(places: list[Endpoint]) -> bool:
    """Return whether a port is seen elsewhere than where it is, its own place first."""
    return len(places) > 1


def _known(secret: bytes) -> bytes:
    return auth.proof(secret, "card", b"")


def _rank(place: Address) -> bool:
    """Places inside come first."""
    return not is_private(place[0])
