"""Frames on a byte stream: how many bytes to read next, and the frame once they are there.

Used where exactly one frame must be taken off a connection whose next bytes belong to the
program (JOIN, OPEN, GO), and for dpfd's command sessions. It must never take a byte more
than the frame it is asked for: ``wants`` is the limit of every read.
"""

from __future__ import annotations

from .codec import HEADER_SIZE, Frame, frame_size, parse


class FrameReader:
    """Collects one frame after the other."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._size = HEADER_SIZE
        self._sized = False

    @property
    def wants(self) -> int:
        """Bytes missing until the header, or then the frame, is whole; at least 1."""
        return self._size - len(self._buffer)

    @property
    def empty(self) -> bool:
        """Whether the stream stands between two frames."""
        return not self._buffer

    def feed(self, data: bytes) -> Frame | None:
        """Take at most ``wants`` bytes; return a frame when it is whole.

        Raises RemoteProtocolError as soon as the header is wrong; the stream cannot be
        used after that. Raises ValueError when given more than ``wants``.
        """
        if len(data) > self.wants:
            raise ValueError(f"{len(data)} bytes where {self.wants} were wanted")
        self._buffer += data
        if self.wants:
            return None
        if not self._sized:
            self._size = frame_size(bytes(self._buffer))
            self._sized = True
            if self.wants:
                return None
        return self._finish()

    def _finish(self) -> Frame:
        frame = parse(bytes(self._buffer))
        self._buffer.clear()
        self._size, self._sized = HEADER_SIZE, False
        return frame
