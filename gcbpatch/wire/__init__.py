"""The protocol as a sans-I/O library: bytes and ``now`` in, bytes and events out.

Shared by the program's agent, brokerd and dpfd. Nothing in here may open a socket, read a
clock, draw a random number or import gevent: whoever calls hands these in.
"""
