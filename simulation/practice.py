"""Practice: one simulation from a scenario's file to its result."""

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from activities.report import report
from activities.track_record import track_record
from schema.declaration import DeclarationError, Problem, read_platform
from schema.messages.platform import Platform
from schema.messages.report import Report
from simulation.field import agents_of
from simulation.result import AgentResult, Course, FaultResult, Judge, Result, result
from simulation.run import TimeLapse, simulated
from simulation.world import World, instant
from starter.agents.agent import Participant
from starter.report_page import Episode


class Practice(NamedTuple):
    """What came of a simulation: its result, the report of the same time, and how an author's agent did."""

    result: Result
    report: Report
    episodes: tuple[Episode, ...]
    agent: AgentResult | None = None

    @property
    def document(self) -> dict[str, Any]:
        """What `--json` prints: the result, and the agent's where there is one."""
        document = self.result.model_dump(mode="json")
        return document if self.agent is None else document | {"agent": self.agent.model_dump(mode="json")}


def scenario_of(path: Path) -> Platform:
    """The declaration in `path`; raises DeclarationError, also where it declares no world."""
    platform = read_platform(path)
    if not platform.simulation.work:
        message = "expected [[simulation.work]]: the model of at least one task type's outcomes, but there is none"
        raise DeclarationError(path, [Problem(None, "simulation", message)])
    return platform


def agent_of(reference: str) -> Participant:
    """The agent that `module:Class` names; raises ValueError where there is none, or it is no agent."""
    # The author's module is where the command is called, and not where it is installed.
    sys.path.insert(0, str(Path.cwd()))
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
    found: Participant = agent
    return found


async def practise(
    scenario: Path,
    days: int | None = None,
    seed: int | None = None,
    own_agent: Participant | None = None,
    progress: Callable[[TimeLapse, int], None] = lambda platform, hour: None,
) -> Practice:
    """Let a scenario's days pass, and judge what came of them. `progress` is called with the hours that have passed."""
    begun = monotonic()
    platform = scenario_of(scenario)
    world = World(platform, seed)
    agents: Sequence[Participant] = agents_of(platform.simulation, world.seed)
    if own_agent is not None:
        agents = (*agents, own_agent)
    hours = (days or platform.simulation.days) * 24
    with tempfile.TemporaryDirectory(prefix="nautilus-simulation-", dir=_memory()) as home:
        async with simulated(platform, world, agents, Path(home)) as lived:
            await lived.live(hours, lambda hour: progress(lived, hour))
            judge = _judge(platform, world, lived, hours)
            facts = report(lived.database, platform, instant(0), instant(hours))

    figures = {"active_agents": len(lived.active), "starts": lived.starts, "skipped": lived.skipped}
    judged = result(scenario.stem, judge, figures)
    judged = judged.model_copy(update={"wall_s": round(monotonic() - begun, 1)})
    own = None if own_agent is None else judge.agent(own_agent.agent_id)
    return Practice(judged, facts, tuple(_episodes(world, judged)), own)


def _memory() -> Path | None:
    """A folder in memory, where there is one: nothing is kept, and every transaction would wait for a disk."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else None


def _judge(platform: Platform, world: World, lived: TimeLapse, hours: int) -> Judge:
    """The judge of what has been recorded in these hours."""
    defaults = {parameter.key: parameter.default for parameter in platform.parameters}
    return Judge(world, Course(lived.outcomes, hours), track_record(lived.database), defaults)


def _episodes(world: World, judged: Result) -> Iterator[Episode]:
    """The faults as the report's page draws them."""
    struck = [fault for fault in world.faults if fault.at_hour < judged.hours]
    for fault, seen in zip(struck, judged.faults, strict=True):
        end = min(judged.hours, fault.until_hour or math.inf)
        yield Episode(
            fault.name, instant(fault.at_hour), instant(end), fault.task_type or "", seen.verdict, _story(seen)
        )


def _story(seen: FaultResult) -> str:
    """What became of a fault, and after how many hours."""
    steps = [
        ("found", seen.detected_hour),
        (f"mended by {seen.remedied_by}", seen.restored_hour),
        ("a person was called", seen.escalated_hour),
    ]
    told = [f"{what} after {hour - seen.at_hour:.1f} h" for what, hour in steps if hour is not None]
    return ", ".join(told) or "nothing noticed it"
