"""Backends turn a checked `Graph` into an artifact. They do not import each other."""
