"""What the program sees: sockets with their ordinary meaning.

Only connect, listen, accept and the names of a socket are ours. Data never passes through
here: after set-up a TCP socket is gevent's own on a kernel descriptor.
"""
