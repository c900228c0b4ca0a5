"""The platform and the agents that play cycles: what is declared, recorded before, and sent."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from activities.agents import register_agent
from activities.database import Database, migrate
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from rules.assignment import assigner
from schema.declaration import read_platform
from schema.failure_kinds import FailureKind
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleRequest
from schema.messages.experiment import Assignment, Variant
from schema.messages.market import Bid
from schema.messages.observatory import Anomaly, Counts, TaskOutcome
from schema.messages.platform import Platform
from schema.messages.proposals import Ballot, Choice, Evidence, Proposal
from starter import keys
from starter.platform.database_store import DatabaseStore

AGENTS = ("ada", "bob", "cyd", "dee", "eve", "fay")
TYPES = tuple(f"type_{number}" for number in range(8))
TASKS_BEFORE, SEED = 300, 20261130
# Every second cycle on a type sets its limit back.
VALUES = (90.0, 120.0)
# Nobody waits for more than it takes; a worker's queue of its own, of a worker that was killed, holds for 10 s.
RULES = {
    "bid_window_s": 3_600,
    "proposal_window_s": 3_600,
    "voting_window_s": 3_600,
    "late_quorum_extension_s": 1,
    "experiment_window_s": 3_600,
    "minimum_run_s": 0,
    "max_tasks": 400,
}


class Stage:
    """A platform in a folder, with its database and its agents' keys."""

    def __init__(self, home: Path, rules: Mapping[str, float], agents: Sequence[str] = AGENTS) -> None:
        home.mkdir(parents=True)
        self.home = home
        self.agents = agents
        self.file = home / "platform.toml"
        self.file.write_text(_declaration(RULES | dict(rules)), encoding="utf-8")
        self.platform: Platform = read_platform(self.file)
        self.database = Database(f"sqlite:///{home / 'nautilus.db'}")
        migrate(self.database)
        self.began = datetime.now(UTC) - timedelta(hours=2)
        declare_parameters(self.database, self.platform, self.began)
        self.keys = {agent: keys.own(home, agent) for agent in agents}
        for agent, key in self.keys.items():
            register_agent(self.database, agent, f"op-{agent}", self.began, key.public)
        random = Random(SEED)
        before = []
        for number in range(TASKS_BEFORE):
            task_type = TYPES[number % len(TYPES)]
            before.append(_outcome(f"past-{number}", task_type, random.random() < 0.6, self.began))
        with self.database.transaction() as session:
            record_outcomes(session, before, self.platform.observatory.interval_s)

    def environment(self, address: str) -> dict[str, str]:
        """What a worker of this platform is started with."""
        return {
            "TEMPORAL_ADDRESS": address,
            "TEMPORAL_NAMESPACE": "nautilus",
            "NAUTILUS_HOME": str(self.home),
            "NAUTILUS_PLATFORM": str(self.file),
        }

    def signed(self, message: AgentMessage, cycle: str, run_id: str, kind: str) -> AgentMessage:
        """A message with its agent's signature, for this run of a cycle."""
        return self.keys[message.agent_id].sign(message, cycle, run_id, kind)

    def request(self, number: int) -> CycleRequest:
        """The request to open the cycle of a number; each has a subject of its own."""
        task_type = TYPES[number % len(TYPES)]
        onset = self.began - timedelta(hours=1)
        anomaly = Anomaly(
            anomaly_id=f"anomaly-{number}",
            metric=f"success_rate_{number}",
            task_type=task_type,
            onset=onset,
            detected_at=self.began,
            observed=Counts(tasks=37, successes=22),
            baseline=None,
            reason=f"success_rate of {task_type} is 22 of 37 tasks, under the floor of 70%",
        )
        return CycleRequest(request_id=f"request-{number}", anomaly=anomaly)

    def feed(self, experiment_id: str, task_type: str, tasks: int) -> None:
        """Record tasks of an experiment in which the change is good: of the others, two in five succeed."""
        random, now = Random(SEED), datetime.now(UTC)
        assign = assigner(experiment_id, 1.0, 0.5)
        assignments, outcomes = [], []
        for number in range(tasks):
            task_id = f"{experiment_id}-{number}"
            arm = assign(task_id)
            assert arm is not None
            assignments.append(
                Assignment(
                    experiment_id=experiment_id, task_id=task_id, variant=arm, treatment_share=0.5, assigned_at=now
                )
            )
            outcomes.append(_outcome(task_id, task_type, arm is Variant.TREATMENT or random.random() < 0.4, now))
        DatabaseStore(self.database, self.platform).record(assignments, outcomes)


def bids(agents: Sequence[str]) -> list[Bid]:
    """A bid of each agent; the first one's is the lowest."""
    pitch = "the tasks are cut off at the limit"
    return [
        Bid(message_id=f"bid-{agent}", agent_id=agent, price=10 + number, eta_s=60, pitch=pitch)
        for number, agent in enumerate(agents)
    ]


def proposal(agent: str, task_type: str, version: int) -> Proposal:
    """The proposal that sets the limit of a type, whose version is `version`, to its other value."""
    return Proposal(
        message_id="proposal",
        agent_id=agent,
        parameter=f"{task_type}.timeout_s",
        base_version=version,
        value=VALUES[version % 2],
        root_cause="tasks are cut off at the limit",
        evidence=(Evidence(claim="failures", figures={"success_rate": 0.6, "timeouts": 15.0}),),
        predicted_rate=0.94,
        rollback_plan="set it back",
    )


def ballots(proposed: Proposal, agents: Sequence[str], choice: Choice) -> list[Ballot]:
    """A ballot of each agent but the proposer."""
    return [
        Ballot(message_id=f"ballot-{agent}", agent_id=agent, proposal_id=proposed.proposal_id, choice=choice)
        for agent in agents
        if agent != proposed.agent_id
    ]


def _outcome(task_id: str, task_type: str, success: bool, at: datetime) -> TaskOutcome:
    return TaskOutcome(
        task_id=task_id,
        task_type=task_type,
        started_at=at,
        finished_at=at,
        duration_s=8.0,
        failure=None if success else FailureKind.TIMEOUT,
        agent_id="ada",
    )


def _declaration(rules: Mapping[str, float]) -> str:
    lines = ['mode = "autonomous"', "[cycle]", *(f"{name} = {value}" for name, value in rules.items())]
    for name in TYPES:
        lines += ["[[task_types]]", f'name = "{name}"', f'timeout_parameter = "{name}.timeout_s"']
        lines += [
            "[[parameters]]",
            f'key = "{name}.timeout_s"',
            'kind = "float"',
            'unit = "s"',
            f"default = {VALUES[0]}",
        ]
        lines += ["minimum = 10.0", "maximum = 600.0", f'task_types = ["{name}"]']
    return "\n".join(lines) + "\n"
