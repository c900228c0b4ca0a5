"""The MCP tools in the door: an adapter from tool calls to the agents' client, and to the record of standing.

It decides nothing and signs nothing: every message is of the agent whose door key the request came with, and carries
the signature that it came with. It never has an agent's secret. Whatever goes wrong is one line that a model can read.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send
from temporalio.client import (
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError

from schema import wire
from schema.connection import UNREACHABLE
from schema.display import one_line
from schema.messages.cycle import OPEN_PHASES, CycleStatus, Phase
from schema.messages.market import Agent
from schema.messages.market import Bid as BidMessage
from schema.messages.proposals import Ballot, Decline, Proposal
from schema.messages.story import Receipt
from schema.messages.tasks import Heartbeat, TaskPhase, TaskStatus, WorkResult
from schema.mistakes import LONGEST_LINE
from starter import agent_tools
from starter.agent_tools import FindWork, ReadCycle, ReadDiagnostics, ReadStanding, Writing, server_of, text_of
from starter.client import NautilusClient, Refused
from starter.door import summaries

# A call ends within this: proxies and clients give up after a minute. One workflow of many is waited for less.
PATIENCE_S, PATIENCE_FOR_ONE_S = 25.0, 5.0
# So many cycles and tasks are looked at, and so many that wait for the agent are listed.
MOST_LOOKED_AT, MOST_LISTED = 50, 20
# While a cycle opens, its workflow takes a second or so to say whether it has its proposal.
LOOK_AGAIN_S = 0.2
# What a message and its diagnosis are made of is far below this.
LARGEST_BODY_BYTES = 512_000
Status = CycleStatus | TaskStatus
NOT_JSON_RPC = "expected a message of JSON-RPC 2.0 (jsonrpc, id, method, params), but something else came"
HERE = ("127.0.0.1", "localhost", "[::1]")
ANYWHERE = "*"


class Account(NamedTuple):
    """An agent as the market knows it, and its credits."""

    agent: Agent
    balance: int


# Raises nothing that a model could mend: None is an agent that nobody has registered.
ReadAccount = Callable[[str], Awaitable[Account | None]]
# The agent that a request may speak for, by the key that it came with.
AgentOf = Callable[[Any], str]


@contextmanager
def one_line_errors(arguments: agent_tools.Arguments, patience_s: float) -> Iterator[None]:
    """Turn what Temporal raises into Refused, with the one line that a model reads."""
    away = "expected the platform to answer, but Temporal is away; try again later"
    try:
        yield
    except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
        again = "read_cycle shows whether it was taken" if isinstance(arguments, Writing) else "try again later"
        raise Refused(f"expected an answer within {patience_s:g} s, but none came; {again}") from None
    except (RPCError, RuntimeError) as error:
        # The SDK raises a bare RuntimeError where it cannot connect.
        if isinstance(error, RuntimeError) and UNREACHABLE not in str(error):
            raise
        if isinstance(error, RPCError) and error.status.name not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
            raise Refused(f"expected a call that Temporal takes, but {error.message}") from None
        raise Refused(away) from None
    except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
        raise Refused(f"expected a cycle or a task that answers, but {error}") from None
    except WorkflowFailureError as error:
        raise Refused(f"expected facts to read, but {error.cause}") from None


class Tools:
    """Answers the 8 tools. `client` must have no keys, except on an agent's own machine."""

    def __init__(
        self, client: NautilusClient, account: ReadAccount | None, agent_of: AgentOf, patience_s: float = PATIENCE_S
    ) -> None:
        self._client = client
        self._account = account
        self._agent_of = agent_of
        self._patience_s = patience_s

    async def answer(self, arguments: agent_tools.Arguments, request: Any) -> CallToolResult:
        """What a call comes to. Raises Refused."""
        agent_id = self._agent_of(request)
        with one_line_errors(arguments, self._patience_s):
            async with asyncio.timeout(self._patience_s):
                return text_of(await self._document(arguments, agent_id))

    async def _document(self, arguments: agent_tools.Arguments, agent_id: str) -> summaries.Document:
        match arguments:
            case FindWork():
                return await self._find_work(agent_id)
            case ReadCycle():
                return await self._read_cycle(arguments.workflow_id, agent_id)
            case ReadDiagnostics():
                return await self._read_diagnostics(arguments, agent_id)
            case ReadStanding():
                return await self._read_standing(arguments.agent_id or agent_id, agent_id)
            case Writing():
                return await self._send(arguments.numbered(), agent_id)
        raise ValueError(f"expected one of the tools, but {type(arguments).__name__} came")

    # ---- reading

    async def _find_work(self, agent_id: str) -> summaries.Document:
        """What waits for the agent; what does not answer soon is counted, and the rest does not wait for it."""
        cycles, tasks = await asyncio.gather(self._open_cycles(), self._open_tasks(agent_id))
        asked = [self._client.status(cycle) for cycle in cycles] + [self._client.task_status(task) for task in tasks]
        statuses = await asyncio.gather(*(self._if_it_answers(status) for status in asked))
        now = datetime.now(UTC)
        answered = [status for status in statuses if status is not None]
        lines = [summaries.listed(status, agent_id, now) for status in answered if summaries.awaits(status, agent_id)]
        found = {"you": agent_id, "work": summaries.most_urgent(lines)[:MOST_LISTED]}
        counts = {"more": len(lines) - MOST_LISTED, "unanswered": len(statuses) - len(answered)}
        return found | {name: count for name, count in counts.items() if count > 0}

    async def _open_cycles(self) -> Sequence[str]:
        by_phase = await asyncio.gather(*(self._client.meta_tasks(phase) for phase in OPEN_PHASES))
        # A cycle that moves on meanwhile may be listed in two phases.
        return list(dict.fromkeys(cycle.workflow_id for cycle in chain(*by_phase)))[:MOST_LOOKED_AT]

    async def _open_tasks(self, agent_id: str) -> Sequence[str]:
        """The tasks that the agent works on, and the newest of those that await bids."""
        awarded, bidding = await asyncio.gather(
            self._client.tasks(TaskPhase.EXECUTING, agent_id, most=MOST_LOOKED_AT, workflows=(wire.MARKET_TASK,)),
            self._client.tasks(TaskPhase.BIDDING, most=MOST_LOOKED_AT, workflows=(wire.MARKET_TASK,)),
        )
        return list(dict.fromkeys(task.workflow_id for task in (*awarded, *bidding)))

    async def _if_it_answers(self, status: Coroutine[Any, Any, Status]) -> Status | None:
        """The status, or None where the workflow has just ended or its worker is away."""
        try:
            async with asyncio.timeout(min(PATIENCE_FOR_ONE_S, self._patience_s / 2)):
                return await status
        except (Refused, TimeoutError, RPCError, WorkflowQueryFailedError):
            return None

    async def _read_cycle(self, workflow: str, agent_id: str) -> summaries.Document:
        status = await self._client.read(workflow)
        now = datetime.now(UTC)
        if isinstance(status, CycleStatus):
            return summaries.cycle(status, agent_id, now)
        return summaries.task(status, agent_id, now)

    async def _read_diagnostics(self, arguments: ReadDiagnostics, agent_id: str) -> summaries.Document:
        subject, since = arguments.subject, None
        if arguments.workflow_id:
            status = await self._client.read(arguments.workflow_id)
            if not isinstance(status, CycleStatus):
                raise Refused(f"expected a cycle, but {arguments.workflow_id} is a user task")
            subject = status.subject
            since = status.anomaly.onset if status.anomaly else None
        facts = await self._client.diagnose(subject, arguments.window_s, since)
        if not arguments.parameter:
            return summaries.diagnosis(facts, subject, agent_id)
        parameter = summaries.one_parameter(facts, arguments.parameter)
        if parameter is None:
            keys = ", ".join(state.declaration.key for state in facts.parameters)
            raise Refused(f"expected one of {keys or 'no parameters'}, but {arguments.parameter} came")
        return parameter

    async def _read_standing(self, agent_id: str, caller: str) -> summaries.Document:
        if self._account is None:
            raise Refused("expected a door, which has the record of standing, but this is a connection to Temporal")
        account = await self._account(agent_id)
        if account is None:
            raise Refused(f"expected a registered agent, but there is no {agent_id}")
        return summaries.standing(account.agent, account.balance, is_you=agent_id == caller)

    # ---- writing

    async def _send(self, arguments: Writing, agent_id: str) -> summaries.Document:
        """Send a message; accepted, it comes back with its id."""
        message = arguments.message(agent_id)
        if isinstance(arguments, agent_tools.Propose) and not arguments.workflow_id:
            assert isinstance(message, Proposal)
            return await self._open_cycle(message)
        receipt = await self._deliver(arguments.workflow_id, message)
        assert receipt is not None
        sent = {"accepted": True, "message_id": receipt.message_id, "workflow_id": arguments.workflow_id}
        return sent | ({"proposal_id": message.proposal_id} if isinstance(message, Proposal) else {})

    async def _deliver(self, workflow: str, message: Any) -> Receipt | None:
        match message:
            case BidMessage():
                return await self._client.place_bid(workflow, message)
            case Decline():
                return await self._client.decline(workflow, message)
            case Proposal():
                return await self._client.submit_proposal(workflow, message)
            case Ballot():
                return await self._client.cast_ballot(workflow, message)
            case Heartbeat():
                return await self._client.heartbeat(workflow, message)
            case WorkResult():
                return await self._client.submit_result(workflow, message)
        raise ValueError(f"expected a message of an agent, but {type(message).__name__} came")

    async def _open_cycle(self, proposal: Proposal) -> summaries.Document:
        """Open a cycle and wait until it has its proposal: one that is refused fails as it opens."""
        workflow = await self._client.open_cycle(proposal)
        while True:
            status = await self._client.read(workflow)
            if status.phase is not Phase.OPENING:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        accepted = {"accepted": True, "message_id": proposal.message_id, "workflow_id": workflow}
        return accepted | {"proposal_id": proposal.proposal_id}


class McpApp:
    """The tools as an ASGI application, without sessions: any of several doors may answer any request.

    It answers wherever it is mounted, and only while `run` is entered, once, in the lifespan of the application around
    it, which has checked the key before: `agent_of` gets the request.
    """

    def __init__(self, tools: Tools, security: TransportSecuritySettings) -> None:
        self._security = security
        self._sessions = StreamableHTTPSessionManager(
            app=server_of(tools.answer),
            json_response=True,
            stateless=True,
            security_settings=security,
            max_request_body_size=LARGEST_BODY_BYTES,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "POST":
            # The SDK would hold a GET open as a stream on which nothing is ever sent.
            refusal = PlainTextResponse("expected POST, because the door has no sessions", 405, {"allow": "POST"})
            await refusal(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if scope["type"] == "http" and not self._is_our_name(host):
            line = f"expected a name of this door, but {host} came; `hosts` under [door] in platform.toml adds one"
            await PlainTextResponse(line, 421)(scope, receive, send)
            return
        await self._sessions.handle_request(scope, receive, _refusing_in_one_line(send))

    def _is_our_name(self, host: str) -> bool:
        """As the SDK decides it, which refuses in words that name neither the host nor what to do."""
        named = self._security.allowed_hosts
        is_checked = self._security.enable_dns_rebinding_protection
        return not is_checked or host in named or f"{host.rpartition(':')[0]}:*" in named

    def run(self) -> AbstractAsyncContextManager[None]:
        """Must be entered before the first request; leaving it ends what is under way."""
        return self._sessions.run()


def _refusing_in_one_line(send: Send) -> Send:
    """Sends what the SDK answers, but of its refusals one line: it quotes pydantic's report, which has many."""
    started: Message | None = None

    async def sent(message: Message) -> None:
        nonlocal started
        if message["type"] == "http.response.start" and message["status"] >= 400:
            started = message  # its length is that of the line
            return
        if started is not None:
            message = dict(message) | {"body": _one_line_of(message.get("body", b""))}
            MutableHeaders(raw=started["headers"])["content-length"] = str(len(message["body"]))
            await send(started)
            started = None
        await send(message)

    return sent


def _one_line_of(body: bytes) -> bytes:
    """An error of JSON-RPC with a message of one line; anything else as it is."""
    try:
        document = json.loads(body)
        said = str(document["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return body
    line = NOT_JSON_RPC if said.startswith("Validation error") else one_line(said, LONGEST_LINE)
    document["error"]["message"] = line
    return json.dumps(document).encode()


def mcp_app(
    client: NautilusClient,
    account: ReadAccount,
    agent_of: AgentOf,
    allowed_hosts: Sequence[str] = (),
    patience_s: float = PATIENCE_S,
) -> McpApp:
    """The application to mount at /mcp, behind a check of keys.

    `allowed_hosts` are the names, without a port, under which browsers and agents reach the door besides this machine's
    own; `*` is for a proxy that checks them. Raises ValueError for a client that has agents' keys.
    """
    if client.signs:
        raise ValueError("expected a client without keys in the door, but it has some; unset NAUTILUS_AGENT_KEY")
    return McpApp(Tools(client, account, agent_of, patience_s), _security(allowed_hosts))


def _security(allowed_hosts: Sequence[str]) -> TransportSecuritySettings:
    """Refuse requests under other names: a page in a browser could reach a door on the same machine (DNS rebinding)."""
    if ANYWHERE in allowed_hosts:
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    names = (*HERE, *allowed_hosts)
    hosts = [pattern for name in names for pattern in (name, f"{name}:*")]
    origins = [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)
