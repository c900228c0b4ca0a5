"""Commands about agents: run the built-in ones, register one, see how they stand."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from activities import market
from schema.messages.base import Identifier
from starter.client import NautilusClient
from starter.command import AsJson, CommandError, emit, new_table, open_database, out, run

app = typer.Typer(no_args_is_help=True, help="Agents.")


@app.command("run")
def agent_run(
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the market.")] = 1.0,
) -> None:
    """Run the six built-in agents until Ctrl-C."""
    import signal

    from starter.agents import run_agents
    from starter.agents.roster import ROSTER

    async def serve() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_agents(await NautilusClient.connect(), ROSTER, stop, every_s)

    run(serve())


@app.command("register")
def agent_register(agent_id: str, operator: Annotated[str, typer.Option(help="Who answers for the agent.")]) -> None:
    """Let an agent bid and vote."""
    for name, value in (("agent", agent_id), ("operator", operator)):
        try:
            TypeAdapter(Identifier).validate_python(value)
        except ValidationError:
            # A name that messages cannot carry would stop every cycle that reads it.
            raise CommandError(f"expected letters, digits and _.:@/#+- for the {name}, but {value!r} came") from None
    if not market.register_agent(open_database(), agent_id, operator, datetime.now(UTC)):
        raise CommandError(f"expected a new agent, but {agent_id} is registered already")
    out.print(f"{agent_id} of {operator} may bid and vote")


@app.command("list")
def agent_list(as_json: AsJson = False) -> None:
    """Every agent: standing, record, balance."""
    with open_database().reading() as session:
        rows = [(agent, market.balance(session, agent.agent_id)) for agent in market.roster(session)]
    if as_json:
        emit([agent.model_dump(mode="json") | {"balance": balance} for agent, balance in rows])
        return
    table = new_table("agent", "operator", "standing", "promoted", "attempts", "balance")
    for a, balance in rows:
        table.add_row(a.agent_id, a.operator, f"{a.standing:.2f}", str(a.successes), str(a.attempts), str(balance))
    out.print(table)
