"""The agent's side of the door: an MCP server over stdio that signs what it sends with the agent's own key.

The key never leaves this machine: what goes to the door is a message and its signature, good for one run of one
workflow. Nothing here reaches the database, so that it ships in the agents' small wheel. Standard output is the
protocol's alone.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent
from pydantic import ValidationError

from schema import wire
from schema.display import one_line
from schema.messages.base import AgentMessage
from schema.messages.market import Bid
from schema.messages.proposals import Ballot, Decline, Proposal
from schema.messages.tasks import Heartbeat, WorkResult
from starter.agent_tools import OF_THE_SIGNER, Arguments, Propose, ReadCycle, Writing, server_of
from starter.client import NautilusClient, Refused, opening
from starter.keys import AgentKey

# The door answers within half of this, or says that it could not.
PATIENCE_S = 60.0
LONGEST_ANSWER = 300
KINDS: dict[type[AgentMessage], str] = {
    Bid: wire.PLACE_BID,
    Decline: wire.DECLINE,
    Proposal: wire.SUBMIT_PROPOSAL,
    Ballot: wire.CAST_BALLOT,
    Heartbeat: wire.HEARTBEAT,
    WorkResult: wire.SUBMIT_RESULT,
}


class Door:
    """The tools of a door, over HTTP. Each call is a connection of its own: a door that was restarted is no mistake."""

    def __init__(self, url: str, door_key: str) -> None:
        self.url = url.rstrip("/")
        self._key = door_key

    async def call(self, arguments: Arguments) -> CallToolResult:
        """The door's answer, an error too. Raises Refused where the door does not answer, or does not let us in."""
        try:
            return await self._call(arguments)
        except* (httpx2.HTTPError, httpx2.InvalidURL, OSError) as group:
            reason = next(_leaves(group))
            raise Refused(f"expected a door at {self.url}, but {reason or type(reason).__name__}") from None
        except* MCPError as group:
            raise Refused(f"expected the tools of a door at {self.url}, but {next(_leaves(group))}") from None
        except* Refused as group:
            raise next(_leaves(group)) from None

    async def _call(self, arguments: Arguments) -> CallToolResult:
        headers = {"authorization": f"Bearer {self._key}"}
        content = arguments.model_dump(mode="json", exclude_unset=True)
        hooks = {"response": [self._check]}
        async with httpx2.AsyncClient(headers=headers, timeout=PATIENCE_S, event_hooks=hooks) as http:
            transport = streamable_http_client(f"{self.url}/mcp", http_client=http)
            async with Client(transport, read_timeout_seconds=PATIENCE_S) as client:
                return await client.call_tool(arguments.tool, content)

    async def _check(self, response: httpx2.Response) -> None:
        """Raise Refused where the door, or what stands before it, refuses: the SDK would lose the reason."""
        media_type = response.headers.get("content-type", "").partition(";")[0]
        if response.status_code < 400 or media_type == "application/json":
            return
        await response.aread()
        said = one_line(response.text, LONGEST_ANSWER)
        if media_type == "application/problem+json":
            said = json.loads(response.text).get("detail", said)
        raise Refused(
            f"expected the door at {self.url} to take the call, but it answered {response.status_code}: {said}"
        )


def _leaves(group: BaseException) -> Iterator[Any]:
    """The exceptions of a group, however deep: the SDK's tasks raise groups of groups."""
    if not isinstance(group, BaseExceptionGroup):
        yield group
        return
    for one in group.exceptions:
        yield from _leaves(one)


class SigningSide:
    """Answers the tools by calling the door's, with every message signed by this agent."""

    def __init__(self, door: Door, key: AgentKey) -> None:
        self._door = door
        self._key = key

    async def answer(self, arguments: Arguments, _: Any = None) -> CallToolResult:
        """The door's answer. Raises Refused."""
        if isinstance(arguments, Writing):
            arguments = await self.signed(arguments)
        return await self._door.call(arguments)

    async def signed(self, arguments: Writing) -> Writing:
        """The same arguments with the message's id and signature. Raises Refused, and ValidationError."""
        numbered = arguments.numbered()
        message = numbered.message(self._key.agent_id)
        try:
            if isinstance(message, Proposal) and isinstance(arguments, Propose) and not arguments.workflow_id:
                signed: AgentMessage | None = opening(message, self._key).proposal
            else:
                workflow = arguments.workflow_id
                signed = self._key.sign(message, workflow, await self._run_id(workflow), KINDS[type(message)])
        except ValidationError:
            raise
        except ValueError as error:
            raise Refused(f"expected a message that can be signed, but {error}") from None
        assert signed is not None
        return numbered.model_copy(update={"signature": signed.signature})

    async def _run_id(self, workflow: str) -> str:
        """The first run's id, which the signature is good for alone. Raises Refused."""
        answer = await self._door.call(ReadCycle(workflow_id=workflow))
        (content,) = answer.content
        assert isinstance(content, TextContent)
        if answer.is_error:
            raise Refused(content.text)
        status = json.loads(content.text)
        if status["you"] != self._key.agent_id:
            raise Refused(f"expected the door key of {self._key.agent_id}, but it is the key of {status['you']}")
        return str(status["run_id"])


def signing_server(url: str, door_key: str, key: AgentKey) -> Server[Any]:
    """An MCP server that signs, and forwards to a door. A model does not see what signing needs."""
    return server_of(SigningSide(Door(url, door_key), key).answer, hidden=OF_THE_SIGNER)


def direct_server(client: NautilusClient, agent_id: str) -> Server[Any]:
    """An MCP server that signs, over Temporal itself: the client has the agent's key."""
    from starter.door.tools import Tools

    return server_of(Tools(client, None, lambda _: agent_id).answer, hidden=OF_THE_SIGNER)


async def serve(server: Server[Any]) -> None:
    """Serve the process's standard input and output until the client closes them."""
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())
