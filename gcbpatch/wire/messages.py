"""What can be said: one struct for the request and one for the reply of every command.

Here is which struct goes with which command; the structs stand in fields, gcb and dpf, and all
are to be had from here. This room must never do anything: no I/O, no state, no clock.

Bodies are msgpack arrays in the order of the fields; fields that a later version appends
are ignored by an earlier one.
"""

from __future__ import annotations

import enum

from .dpf import (
    Forward,
    ForwardReply,
    Prove,
    ProveReply,
    Query,
    QueryReply,
    Renew,
    RenewReply,
    Session,
    SessionReply,
    Unforward,
)
from .fields import (
    TCP,
    UDP,
    Claim,
    Endpoint,
    Endpoints,
    Family,
    Free,
    Id,
    Lifetime,
    Message,
    Milliseconds,
    Network,
    Nonce,
    Nothing,
    Path,
    PathKind,
    Paths,
    Port,
    Proof,
    Protocol,
    Secret,
    Short,
    Wished,
)
from .gcb import (
    Ask,
    Call,
    Card,
    Confirm,
    Connect,
    ConnectReply,
    Flow,
    FlowReply,
    Go,
    Hello,
    HelloReply,
    Introduce,
    Join,
    JoinReply,
    Meet,
    Open,
    OpenReply,
    Park,
    ParkReply,
    Probe,
    ProbeReply,
    Punch,
    Refresh,
    RefreshReply,
    Register,
    RegisterReply,
    Unregister,
    Way,
    WayReply,
)

__all__ = [
    "REPLIES", "REQUESTS", "TCP", "UDP", "Ask", "Call", "Card", "Claim", "Command", "Confirm",
    "Connect", "ConnectReply", "Endpoint", "Endpoints", "Family", "Flow", "FlowReply",
    "Forward", "ForwardReply", "Free", "Go", "Hello", "HelloReply", "Id", "Introduce", "Join",
    "JoinReply", "Lifetime", "Meet", "Message", "Milliseconds", "Network", "Nonce", "Nothing",
    "Open", "OpenReply", "Park", "ParkReply", "Path", "PathKind", "Paths", "Port", "Probe",
    "ProbeReply", "Proof", "Protocol", "Prove", "ProveReply", "Punch", "Query", "QueryReply",
    "Refresh", "RefreshReply", "Register", "RegisterReply", "Renew", "RenewReply", "Secret",
    "Session", "SessionReply", "Short", "Unforward", "Unregister", "Way", "WayReply", "Wished",
]


class Command(enum.IntEnum):
    """Byte 4 of the header. 16-31 are DPF's, all others GCB's."""

    HELLO = 1
    REGISTER = 2
    REFRESH = 3
    UNREGISTER = 4
    CONNECT = 5
    CALL = 6
    JOIN = 7
    OPEN = 8
    GO = 9
    FLOW = 10
    SESSION = 16
    FORWARD = 17
    UNFORWARD = 18
    RENEW = 19
    QUERY = 20
    PROVE = 21
    CONFIRM = 45
    PUNCH = 46
    PARK = 47
    PROBE = 50
    ASK = 51
    INTRODUCE = 54
    MEET = 55
    WAY = 56


REQUESTS: dict[Command, type[Message]] = {
    Command.HELLO: Hello,
    Command.REGISTER: Register,
    Command.REFRESH: Refresh,
    Command.UNREGISTER: Unregister,
    Command.CONNECT: Connect,
    Command.CALL: Call,
    Command.JOIN: Join,
    Command.OPEN: Open,
    Command.GO: Go,
    Command.FLOW: Flow,
    Command.SESSION: Session,
    Command.FORWARD: Forward,
    Command.UNFORWARD: Unforward,
    Command.RENEW: Renew,
    Command.QUERY: Query,
    Command.PROVE: Prove,
    Command.CONFIRM: Confirm,
    Command.PUNCH: Punch,
    Command.PARK: Park,
    Command.PROBE: Probe,
    Command.ASK: Ask,
    Command.INTRODUCE: Introduce,
    Command.MEET: Meet,
    Command.WAY: Way,
}

REPLIES: dict[Command, type[Message]] = {
    Command.HELLO: HelloReply,
    Command.REGISTER: RegisterReply,
    Command.REFRESH: RefreshReply,
    Command.UNREGISTER: Nothing,
    Command.CONNECT: ConnectReply,
    Command.CALL: Nothing,
    Command.JOIN: JoinReply,
    Command.PARK: ParkReply,
    Command.OPEN: OpenReply,
    Command.FLOW: FlowReply,
    Command.SESSION: SessionReply,
    Command.FORWARD: ForwardReply,
    Command.UNFORWARD: Nothing,
    Command.RENEW: RenewReply,
    Command.QUERY: QueryReply,
    Command.PROVE: ProveReply,
    Command.PROBE: ProbeReply,
    Command.ASK: Nothing,
    Command.INTRODUCE: Nothing,
    Command.MEET: Nothing,
    Command.WAY: WayReply,
}
"""The body of a reply with status SUCCESS; a reply with any other status has none."""
