"""Commands about agents: run the built-in ones, register them, their keys, and signing by hand."""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from schema import wire
from starter import completion
from starter.command import (
    AsJson,
    Columns,
    CommandError,
    Who,
    Why,
    answer_rows,
    ask,
    emit,
    err,
    open_database,
    out,
    run,
)

if TYPE_CHECKING:
    from schema.messages.base import AgentMessage, Message

app = typer.Typer(no_args_is_help=True, help="Agents and their keys.", epilog="Example: nautilus agent list")

PUBLIC_KEY = "The agent's public key, as `nautilus agent keygen` prints it."
MODEL = "A model of pydantic-ai, such as openai:gpt-5.2 or anthropic:claude-sonnet-5 (needs the extra language-model)."
Agent = Annotated[str, typer.Argument(metavar="AGENT_ID", autocompletion=completion.agents)]

# What agents sign.
KINDS = (
    wire.PLACE_BID,
    wire.SUBMIT_PROPOSAL,
    wire.CAST_BALLOT,
    wire.DECLINE,
    wire.HEARTBEAT,
    wire.SUBMIT_RESULT,
    wire.OPEN_CYCLE,
    wire.TYPE_REGISTRATION,
)


def _type_of(kind: str) -> "type[AgentMessage]":
    from schema.messages.market import Bid
    from schema.messages.proposals import Ballot, Decline, Proposal
    from schema.messages.tasks import Heartbeat, TypeRegistration, WorkResult

    types: tuple[type[AgentMessage], ...]
    types = (Bid, Proposal, Ballot, Decline, Heartbeat, WorkResult, Proposal, TypeRegistration)
    return types[KINDS.index(kind)]


@app.command("run", epilog="Example: nautilus agent run --model openai:gpt-5.2 --agent ada --key ada.pem")
def agent_run(
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between scans of the market.")] = 1.0,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    name: Annotated[str | None, typer.Option("--agent", help="The agent on the model; that of the key.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key file.", envvar="NAUTILUS_AGENT_KEY")] = None,
    budget: Annotated[int, typer.Option(min=1, help="The most tokens that it uses in this run.")] = 1_000_000,
    timeout_s: Annotated[float, typer.Option(min=1, help="The longest that one request to the model takes.")] = 90.0,
) -> None:
    """Run the six built-in agents until Ctrl-C; with --model, one agent on a language model instead.

    The model's provider gets what `nautilus diagnose` shows; its API key is read from the provider's own variable.
    """
    if model is not None:
        run(_on_model(model, name, key, budget, timeout_s, every_s), "agents")
        return
    if name is not None:
        raise CommandError("expected --model with --agent: the six built-in agents have names of their own")
    from schema.settings import Settings
    from starter import health, keys
    from starter.agents import run_agents
    from starter.agents.roster import roster
    from starter.client import NautilusClient

    settings = Settings()
    agents = roster(settings.playbook)

    async def serve() -> None:
        # A key made here would not be registered.
        paths = [keys.path_of(settings.home, agent.agent_id) for agent in agents]
        if missing := [path for path in paths if not path.exists()]:
            raise CommandError(
                f"expected the keys of the built-in agents, but there is no {missing[0]}; set NAUTILUS_HOME to "
                "where they are, or `nautilus apply` makes and registers them"
            )
        agent_keys = [keys.read(path) for path in paths]
        client = await NautilusClient.connect(*agent_keys)
        async with health.answering(settings.health_address):
            await run_agents(client, agents, every_s, task_queue=wire.AGENTS_QUEUE)

    run(serve(), "agents")


async def _on_model(
    model: str, name: str | None, key: Path | None, budget: int, timeout_s: float, every_s: float
) -> None:
    """Run one agent on a language model until it is stopped."""
    from schema.messages.market import PLATFORM_META
    from schema.settings import Settings
    from starter import keys
    from starter.agents import run_agents
    from starter.client import NautilusClient

    settings = Settings()
    if key is None and name is None:
        raise CommandError("expected --key FILE of the agent, or --agent NAME; `nautilus agent keygen` makes a key")
    signer = keys.read(key if key is not None else keys.path_of(settings.home, name or ""))
    if name not in (None, signer.agent_id):
        raise CommandError(f"expected the key of {name}, but {key} is that of {signer.agent_id}")
    try:
        from starter.agents.language_model import on_model
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith("pydantic_ai"):
            raise
        install = "`.venv/bin/pip install -e '.[language-model]'`"
        raise CommandError(f"expected the package pydantic-ai for --model; {install}") from None
    agent = on_model(model, signer.agent_id, own_playbook=settings.playbook, budget=budget, timeout_s=timeout_s)
    try:
        client = await NautilusClient.connect(signer)
        err.print(
            f"{signer.agent_id} works on {model}, with a budget of {budget:,} tokens; Ctrl-C ends it", soft_wrap=True
        )
        # A user's task is for agents that bring an executor; a model only works on the platform itself.
        await run_agents(client, [agent], every_s, may_visit=lambda listed: listed.task_type == PLATFORM_META)
    finally:
        agent.close()


@app.command("keygen", epilog="Example: nautilus agent keygen ada --out ada.pem")
def agent_keygen(
    agent_id: str, file: Annotated[Path | None, typer.Option("--out", help="Default: NAME.pem, here.")] = None
) -> None:
    """Make a key for an agent; prints the public half, which its operator registers. Nothing is overwritten."""
    from pydantic import TypeAdapter, ValidationError

    from schema.messages.base import Identifier
    from starter import keys

    try:
        name = TypeAdapter(Identifier).validate_python(agent_id)
    except ValidationError:
        raise CommandError(f"expected letters, digits and _.:@/#+- for the agent, but {agent_id!r} came") from None
    path = file or Path(f"{name.replace('/', '_')}.pem")
    try:
        out.print(keys.make(path, name).public)
    except FileExistsError:
        raise CommandError(f"expected a new file, but there is {path} already, and keys are not overwritten") from None


@app.command("register", epilog="Example: nautilus agent register ada --operator my-team --public-key 6m2Zp0Qw=")
def agent_register(
    agent_id: str,
    operator: Annotated[str, typer.Option(help="Who answers for the agent.")],
    public_key: Annotated[str | None, typer.Option(help=PUBLIC_KEY)] = None,
) -> None:
    """Let an agent bid and vote, with the key that it signs with (needless where `unsigned_agents` is declared)."""
    from activities import agents
    from schema.declaration import declared_platform

    if not agents.register_agent(open_database(), agent_id, operator, datetime.now(UTC), public_key):
        raise CommandError(f"expected a new agent, but {agent_id} is registered already; `agent rotate` gives it a key")
    if public_key or declared_platform().unsigned_agents:
        out.print(f"{agent_id} of {operator} may bid and vote")
    else:
        keyless = "its messages are refused without a key, unless unsigned_agents is declared"
        out.print(
            f"{agent_id} of {operator} is registered, but {keyless}; `nautilus agent rotate` gives it one",
            soft_wrap=True,
        )


@app.command("rotate", epilog="Example: nautilus agent rotate ada --public-key 6m2Zp0Qw= --why lost")
def agent_rotate(
    agent_id: Agent, who: Who, why: Why, public_key: Annotated[str, typer.Option(help=PUBLIC_KEY)]
) -> None:
    """Give an agent a new key in place of the one it has (or its first one, or one again after a revocation)."""
    from activities import identity

    identity.rotate(open_database(), agent_id, public_key, who, why, datetime.now(UTC))
    out.print(f"{agent_id} signs with {public_key} from now on; running cycles are notified within seconds")


@app.command("revoke", epilog="Example: nautilus agent revoke ada --why stolen")
def agent_revoke(agent_id: Agent, who: Who, why: Why) -> None:
    """Revoke an agent's key, also in running cycles: it cannot send until `agent rotate` gives it another."""
    from activities import identity

    identity.revoke(open_database(), agent_id, who, why, datetime.now(UTC))
    out.print(f"the key of {agent_id} is revoked; running cycles are notified within seconds")


@app.command(
    "sign",
    epilog="Example: nautilus agent sign place_bid --key ada.pem --workflow-id cycle:success_rate:research_synthesis",
)
def agent_sign(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    key: Annotated[Path, typer.Option(help="The agent's key file.", envvar="NAUTILUS_AGENT_KEY")],
    workflow_id: Annotated[str, typer.Option(help="The workflow that it is for; needless where it starts one.")] = "",
    run_id: Annotated[str, typer.Option(help="Its first run's id; asked of Temporal where it is not given.")] = "",
) -> None:
    """Sign a message (JSON on stdin) and print it, for `temporal workflow update`, `signal` or (last two) `start`."""
    from schema.messages.proposals import Proposal
    from schema.messages.tasks import TypeRegistration
    from starter import keys
    from starter.client import opening, registration

    if kind not in KINDS:
        raise CommandError(f"expected one of {', '.join(KINDS)}, but {kind!r} came")
    signer = keys.read(key)
    fields: dict[str, Any] = {"agent_id": signer.agent_id}
    fields.update(_message_fields(sys.stdin.read()))
    message = _type_of(kind).model_validate(fields)
    signed: Message
    if kind == wire.OPEN_CYCLE and isinstance(message, Proposal):
        signed = opening(message, signer)
    elif isinstance(message, TypeRegistration):
        signed = registration(message, signer)
    elif workflow_id:
        context = run_id or ask(lambda client: client.first_run(workflow_id))
        signed = signer.sign(message, workflow_id, context, kind)
    else:
        raise CommandError(f"expected --workflow-id, because a {kind} is good for one workflow only")
    emit(signed.model_dump(mode="json", exclude_none=True))


@app.command("list", epilog="Example: nautilus agent list --json")
def agent_list(as_json: AsJson = False) -> None:
    """Every agent: standing, record, balance, key."""
    from activities import accounts, agents

    with open_database().reading() as session:
        rows = [
            agent.model_dump(mode="json") | {"balance": accounts.balance(session, agent.agent_id)}
            for agent in agents.roster(session)
        ]
    columns: Columns[dict[str, Any]] = {
        "agent": lambda row: row["agent_id"],
        "operator": lambda row: row["operator"],
        "standing": lambda row: f"{row['standing']:.2f}",
        "promoted": lambda row: row["successes"],
        "attempts": lambda row: row["attempts"],
        "balance": lambda row: row["balance"],
        "key": lambda row: _key_in_short(row["public_key"]),
    }
    answer_rows(as_json, rows, columns, "no agent is registered")


def _key_in_short(public_key: str | None) -> str:
    """The beginning of a key, or why there is none in force."""
    from rules.identity import REVOKED

    if public_key is None:
        return "none"
    return "revoked" if public_key == REVOKED else public_key[:12]


def _message_fields(text: str) -> dict[str, Any]:
    """The object on stdin. A name may come only once: readers disagree on repeated names, and a signature must not."""
    import json

    def unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            names = [name for name, _ in pairs]
            raise CommandError(f"expected every name once, but {max(names, key=names.count)!r} comes twice")
        return fields

    try:
        fields = json.loads(text, object_pairs_hook=unique_names)
    except ValueError as error:
        raise CommandError(f"expected a message as JSON on stdin, but {error}") from None
    if not isinstance(fields, dict):
        raise CommandError(f"expected a message as a JSON object on stdin, but {text.strip()[:40]!r} came")
    return fields
