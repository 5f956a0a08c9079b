"""A seeded world with a virtual clock around the real logic of a broker.

Real are the registry, dispatch, rendezvous, limits, the reliable exchange and all frames; made
up are time, chance, the network with its NATs, the kernel's ports and the programs.
"""
