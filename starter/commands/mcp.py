"""`nautilus mcp`: the tools of an agent for a language model on the agent's own machine, where its key is."""

from pathlib import Path
from typing import Annotated

import typer

from starter.command import CommandError, log_beside

app = typer.Typer()


@app.command(epilog="Example: nautilus mcp --door https://door.example.org --door-key-file ada.door --key ada.pem")
def mcp(
    key: Annotated[
        Path, typer.Option(help="The agent's key file; it never leaves this machine.", envvar="NAUTILUS_AGENT_KEY")
    ],
    door: Annotated[
        str, typer.Option(help="The door's URL; without one, Temporal is called directly.", envvar="NAUTILUS_DOOR_URL")
    ] = "",
    door_key_file: Annotated[Path | None, typer.Option(help="The door key; or NAUTILUS_DOOR_KEY has it.")] = None,
) -> None:
    """Serve an agent's 8 tools over stdio (MCP), and sign what they send with the agent's own key.

    Standard output is the protocol's alone; logs go to standard error.
    """
    import asyncio
    import signal

    from starter import keys
    from starter.client import NautilusClient
    from starter.mcp_stdio import direct_server, serve, signing_server

    signer = keys.read(key)

    async def serve_tools() -> None:
        if door:
            server = signing_server(door, _door_key(door_key_file), signer)
        else:
            server = direct_server(await NautilusClient.connect(signer), signer.agent_id)
        # A thread waits for input, and an orderly stop would wait for it for ever. There is nothing to put in order.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        await serve(server)

    log_beside()
    asyncio.run(serve_tools())


def _door_key(file: Path | None) -> str:
    """The key that opens the door, from a file or the environment: not from an argument, which others can list."""
    import os

    key = file.read_text(encoding="utf-8") if file else os.environ.get("NAUTILUS_DOOR_KEY", "")
    if not key.strip():
        raise CommandError("expected a door key in --door-key-file or NAUTILUS_DOOR_KEY, but there is none")
    return key.strip()
