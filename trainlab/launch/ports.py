"""A port for processes to meet at."""

import random
import socket

__all__ = ["free_port"]


def free_port() -> int:
    """Find a port of this host that nobody listens at.

    Returns:
        One below those that systems hand out to clients; another process may still take it first.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 30000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
