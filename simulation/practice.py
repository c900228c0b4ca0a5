"""Practice: one simulation from a scenario's file to its result."""

import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from activities.report import report
from schema.declaration import DeclarationError, Problem, read_platform
from schema.messages.platform import Platform
from schema.messages.report import Report
from simulation.field import Agent, agents_of
from simulation.result import Record, Result, result
from simulation.run import SimulatedPlatform, simulated
from simulation.world import World, instant


class Practice(NamedTuple):
    """The result of a simulation, and the report of the same time."""

    result: Result
    report: Report


def scenario_of(path: Path) -> Platform:
    """The declaration in `path`; raises DeclarationError, also where it declares no world."""
    platform = read_platform(path)
    if not platform.simulation.work:
        message = "expected [[simulation.work]]: the model of at least one task type's outcomes, but there is none"
        raise DeclarationError(path, [Problem(None, "simulation", message)])
    return platform


def agent_of(reference: str) -> Agent:
    """The agent that `module:Class` names; raises ValueError where there is none, or it is no agent."""
    module, _, name = reference.partition(":")
    expected = f"expected module:Class of an agent, but {reference}"
    try:
        kind = getattr(import_module(module), name)
        agent = kind()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{expected}: {error}") from None
    for attribute in ("agent_id", "operator", "message"):
        if not hasattr(agent, attribute):
            raise ValueError(f"{expected} has no {attribute}")
    found: Agent = agent
    return found


async def practise(
    scenario: Path,
    days: int | None = None,
    seed: int | None = None,
    own_agent: Agent | None = None,
    progress: Callable[[SimulatedPlatform, int], None] = lambda platform, hour: None,
) -> Practice:
    """Let a scenario's days pass, and judge what came of them. `progress` is called with the hours that have passed."""
    begun = monotonic()
    platform = scenario_of(scenario)
    world = World(platform, seed)
    agents: Sequence[Agent] = agents_of(platform.simulation, world.seed)
    if own_agent is not None:
        agents = (*agents, own_agent)
    hours = (days or platform.simulation.days) * 24
    with tempfile.TemporaryDirectory(prefix="nautilus-simulation-") as home:
        async with simulated(platform, world, agents, Path(home)) as lived:
            await lived.live(hours, lambda hour: progress(lived, hour))
            with lived.database.reading() as session:
                record = Record(session, platform)
            figures = {"active_agents": len(lived.active), "starts": lived.starts, "skipped": lived.skipped}
            judged = result(scenario.stem, world, lived.outcomes, record, hours, figures)
            facts = report(lived.database, platform, instant(0), instant(hours))
    return Practice(judged.model_copy(update={"wall_s": round(monotonic() - begun, 1)}), facts)
