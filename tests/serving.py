"""A real server for an ASGI application, on a port of its own."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from tests.patience import PATIENCE_S
from tests.ports import free_port


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The URL at which the application answers, until the context ends."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive(), "expected a server that starts, but it stopped"
        assert time.monotonic() < deadline, f"expected a server within {PATIENCE_S:g} s"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
