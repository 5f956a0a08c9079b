"""A WAN line: carries frames between two interfaces, late and not all of them.

Started by path with `python -I -S line.py DELAY_MS LOSS SEED` in a namespace of its own that has
the interfaces `near` and `far`. Every IP packet leaves at the other end DELAY_MS after it was read,
never earlier, and is lost with probability LOSS; each direction draws from its own generator, so
the same seed loses the same packets of a direction. Order is kept. ARP passes at once and always,
since no real long line carries it. Prints `ready` when it carries.

Packet sockets on veth ends, not a TUN device: /dev/net/tun is closed to ordinary users on many
machines, and a packet socket leaves the node its ordinary Ethernet interface. PACKET_VNET_HDR
(packet(7)) carries checksum and segmentation offload state along with each frame, so nothing has
to be recomputed here. Frames that come faster than they are carried overflow the socket's buffer
and are lost, as in a router. It must never forward a frame before its time.
"""

import contextlib
import random
import select
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
SO_RCVBUFFORCE = 33
VNET_HEADER = 10  # bytes before each frame
ETHER_TYPE = slice(VNET_HEADER + 12, VNET_HEADER + 14)
IP_TYPES = (b"\x08\x00", b"\x86\xdd")
FRAME_LIMIT = VNET_HEADER + 65536 + 14
BATCH = 64  # frames read from one side before the other side and the queue have their turn
BUFFER = 4 << 20  # bytes


def open_port(interface: str) -> socket.socket:
    """A packet socket that sees every frame arriving on the interface, and only those."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    try:
        port.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    except PermissionError:  # in a user namespace: as much as net.core.rmem_max gives
        port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    port.bind((interface, ETH_P_ALL))
    port.setblocking(False)
    return port


class Direction:
    """One way of the line: what came in at one end and is due at the other."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, delay: float, loss: float, seed: str
    ) -> None:
        self.source, self.sink, self.delay, self.loss = source, sink, delay, loss
        self.random = random.Random(seed)
        self.queue: deque[tuple[float, bytes]] = deque()

    def read(self) -> None:
        """Take in up to a batch of frames."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH):
                self.take(self.source.recv(FRAME_LIMIT))

    def take(self, frame: bytes) -> None:
        if frame[ETHER_TYPE] not in IP_TYPES:
            self.write(frame)
        elif self.random.random() >= self.loss:
            self.queue.append((time.monotonic() + self.delay, frame))

    def release(self, now: float) -> None:
        """Let out every frame that is due."""
        while self.queue and self.queue[0][0] <= now:
            self.write(self.queue.popleft()[1])

    def write(self, frame: bytes) -> None:
        # A full device queue loses the frame, as a line does.
        with contextlib.suppress(BlockingIOError):
            self.sink.send(frame)


def carry(directions: list[Direction]) -> None:
    """Carry frames for ever."""
    by_source = {direction.source: direction for direction in directions}
    while True:
        dues = [direction.queue[0][0] for direction in directions if direction.queue]
        wait = max(0.0, min(dues) - time.monotonic()) if dues else None
        readable, _, _ = select.select(list(by_source), [], [], wait)
        for source in readable:
            by_source[source].read()
        now = time.monotonic()
        for direction in directions:
            direction.release(now)


def main() -> None:
    delay, loss, seed = float(sys.argv[1]) / 1000, float(sys.argv[2]), sys.argv[3]
    near, far = open_port("near"), open_port("far")
    out, back = (
        Direction(near, far, delay, loss, seed + ">"),
        Direction(far, near, delay, loss, seed + "<"),
    )
    print("ready", flush=True)
    carry([out, back])


if __name__ == "__main__":
    main()
