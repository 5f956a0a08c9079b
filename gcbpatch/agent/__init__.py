"""The agent: the helper process of a program tree.

Registrations, heartbeats, control channels and all dialling live here, so that a program
that computes for a minute stays reachable. Nothing in this house but the door may be
imported by a program, and nothing in it imports gevent.
"""
