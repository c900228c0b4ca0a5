"""Ports for what a test starts: given once, by whichever process of pytest, and by no command that a test runs."""

import os

from starter import server

# Below those that commands choose from, and of these each process its own: `gw1` is the second of so many.
PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
PORTS = range(10_000 + PROCESS, 20_000, PROCESSES)


def free_port() -> int:
    return server.free_port(PORTS)
