"""An agent's tools for a language model on the agent's machine, over stdio (MCP): `nautilus mcp` without the platform.

NAUTILUS_AGENT_KEY names the agent's key file, which never leaves the machine. NAUTILUS_DOOR_URL is the door's URL and
NAUTILUS_DOOR_KEY opens it; without a door, Temporal is called (TEMPORAL_ADDRESS). Standard output is the protocol's.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schema.extras import MCP, MissingExtra, needs
from starter.client import NautilusClient

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server

    from starter.keys import AgentKey


def main() -> None:
    """Serve until the client closes standard input; what is missing is one line on standard error."""
    try:
        asyncio.run(_serve())
    except (MissingExtra, OSError, ValueError) as error:
        sys.exit(str(error))


async def _serve() -> None:
    with needs(MCP):
        from starter import keys, mcp_stdio
    server = await _server(keys.read(Path(_variable("NAUTILUS_AGENT_KEY", "the agent's key file"))))
    # A thread waits for input, and an orderly stop would wait for it for ever. There is nothing to put in order.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    await mcp_stdio.serve(server)


async def _server(key: "AgentKey") -> "Server[Any]":
    from starter.mcp_stdio import direct_server, signing_server

    door = os.environ.get("NAUTILUS_DOOR_URL", "")
    if door:
        return signing_server(door, _variable("NAUTILUS_DOOR_KEY", "the key that opens the door"), key)
    return direct_server(await NautilusClient.connect(key), key.agent_id)


def _variable(name: str, what: str) -> str:
    value = os.environ.get(name, "").strip()
    if not value:
        raise ValueError(f"expected {what} in {name}, but it is not set")
    return value


if __name__ == "__main__":
    main()
