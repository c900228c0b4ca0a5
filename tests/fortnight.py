"""A fortnight of a platform, seeded, through the real activities: what a report is about.

Four task types begin badly, agents mend them one by one; one fix turns bad and is rolled back, one proposal is voted
down, one experiment finds nothing, one anomaly nobody bids on, a person promotes one change, and one cycle runs at the
end. For some hours nothing is recorded. Which tasks succeed is drawn; all else follows from the rules.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlmodel import col, select
from temporalio.exceptions import ApplicationError

from activities.agents import register_agent
from activities.assignments import record_assignments
from activities.database import Database
from activities.experiment import ExperimentActivities
from activities.market import MarketActivities
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters
from activities.proposals import ProposalActivities
from activities.recording import record_outcomes
from rules import consensus, rewards
from rules import design as designs
from schema.messages.base import Value
from schema.messages.cycle import CycleEnd, CycleOpening, CycleRequest, Ending, RecordedAct, VoteRecord
from schema.messages.experiment import Assignment, EvaluationRequest, Promotion, Purpose, Reading
from schema.messages.market import Award
from schema.messages.observatory import Anomaly, TaskOutcome
from schema.messages.platform import (
    CycleRules,
    Mode,
    ObservatoryRules,
    Parameter,
    ParameterKind,
    Platform,
    TaskTypeDeclaration,
)
from schema.messages.proposals import Ballot, Choice, Evidence, Proposal
from schema.messages.story import Act
from schema.tables.events import EventRow
from schema.wire import EventType
from starter.platform.database_store import DatabaseStore
from starter.platform.resolver import ParameterResolver

BEGIN = datetime(2026, 11, 8, tzinfo=UTC)
HOURS = 14 * 24
# One look at everything every so many hours; an hour each would take three times as long to build.
TICK_H = 3
AGENTS = ("ada", "bob", "cyd", "dee", "eve", "fay")
RESEARCH, TRAINING, PRICING, PHYSICS = "research_synthesis", "ml_training", "monte_carlo", "physics_simulation"
# Nothing is recorded in these hours.
SILENT = range(204, 216)
# In this hour pricing gets harder, and in that research.
HARDER_PRICING, HARDER_RESEARCH = 180, 321


def declared(key: str, default: float) -> Parameter:
    return Parameter(
        key=key,
        kind=ParameterKind.FLOAT,
        default=default,
        minimum=0.0,
        maximum=10_000.0,
        task_types=(key.split(".")[0],),
    )


PLATFORM = Platform(
    mode=Mode.AUTONOMOUS,
    task_types=tuple(TaskTypeDeclaration(name=name) for name in (RESEARCH, TRAINING, PRICING, PHYSICS)),
    parameters=(
        declared(f"{RESEARCH}.timeout_s", 90.0),
        declared(f"{TRAINING}.epochs", 5.0),
        declared(f"{PRICING}.samples", 200.0),
        declared(f"{PHYSICS}.step_ms", 10.0),
    ),
    # Small horizons and large holdbacks, so that few tasks an hour tell the whole story in a fortnight.
    cycle=CycleRules(max_tasks=200, holdback_share=0.3),
    observatory=ObservatoryRules(interval_s=TICK_H * 3_600),
)


class Plan(NamedTuple):
    """What the agents make of one attempt on an anomaly of a task type."""

    agent: str
    key: str
    value: float
    predicted: float
    root_cause: str
    against: int = 1
    person: str = ""


PLANS: dict[str, tuple[Plan | None, ...]] = {
    RESEARCH: (
        Plan(
            "ada", "timeout_s", 180.0, 0.93, "a third of the tasks is cut off at 90 s; finished ones need up to 170 s"
        ),
        Plan("fay", "timeout_s", 260.0, 0.92, "questions grew longer: the slowest are cut off at 180 s"),
        Plan("bob", "timeout_s", 240.0, 0.92, "questions grew longer: the slowest are cut off at 180 s"),
    ),
    TRAINING: (
        Plan("bob", "epochs", 2.0, 0.90, "training stops late, so fewer epochs would do", against=4),
        Plan("cyd", "epochs", 80.0, 0.66, "the models are undertrained; many more epochs"),
        Plan("dee", "epochs", 20.0, 0.90, "the loss still falls at epoch 5 and is flat after 20"),
    ),
    PRICING: (
        None,
        Plan("eve", "samples", 2_000.0, 0.92, "the error bound needs ten times the samples", person="olga"),
    ),
    PHYSICS: (
        Plan("eve", "step_ms", 2.0, 0.90, "energy drifts at a step of 10 ms"),
        Plan("ada", "step_ms", 5.0, 0.90, "a step of 2 ms runs out of memory on long tasks; 5 ms does not"),
    ),
}


def chance(task_type: str, value: Value, hour: int, promoted_h: int) -> float:
    """How likely a task succeeds; `promoted_h` hours ago the value became production configuration."""
    match task_type, value:
        case "research_synthesis", v if hour >= HARDER_RESEARCH:
            return 0.94 if float(v) >= 240 else 0.72
        case "research_synthesis", v:
            return 0.94 if float(v) >= 180 else 0.60
        case "ml_training", v:
            return 0.93 if 10 <= float(v) <= 40 else 0.58
        case "monte_carlo", v:
            return 0.95 if hour < HARDER_PRICING or float(v) >= 2_000 else 0.62
        case "physics_simulation", 2.0:
            # The long tasks come some hours after the promotion.
            return 0.90 if promoted_h < 4 else 0.03
        case _, v:
            return 0.93 if float(v) <= 5 else 0.60


class Fortnight:
    """Lives through the hours; `now` is the clock of everything."""

    def __init__(self, database: Database, hours: int = HOURS, seed: int = 14, per_hour: float = 9.0) -> None:
        self._database = database
        self._random = random.Random(seed)
        self._per_hour = per_hour
        self._experiments = ExperimentActivities(database, PLATFORM)
        self._market = MarketActivities(database, PLATFORM)
        self._proposals = ProposalActivities(database)
        self._observatory = ObservatoryActivities(database, PLATFORM)
        self._seen = 0
        self._running: list[Iterator[None]] = []
        self._promoted: dict[str, datetime] = {}
        self.now = BEGIN
        declare_parameters(database, PLATFORM, BEGIN)
        for agent in AGENTS:
            register_agent(database, agent, f"op-{agent}", BEGIN)
        for hour in range(0, hours, TICK_H):
            self._tick(hour)

    def _tick(self, hour: int) -> None:
        if hour not in SILENT:
            self._tasks(hour)
        self.now = BEGIN + timedelta(hours=hour + TICK_H)
        self._observatory.take_snapshot(self.now)
        for anomaly, request_id in self._detected():
            self._running.append(self._cycle(anomaly, request_id))
        self._running = [cycle for cycle in self._running if next(cycle, self._running) is None]

    def _tasks(self, hour: int) -> None:
        draw = self._random
        busy = TICK_H * self._per_hour * (1 if 8 <= hour % 24 < 20 else 0.5)
        outcomes: list[TaskOutcome] = []
        assignments: list[Assignment] = []
        with ParameterResolver(DatabaseStore(self._database, PLATFORM)) as resolver:
            for name in (RESEARCH, TRAINING, PRICING, PHYSICS):
                for number in range(round(draw.gauss(busy, busy / 5))):
                    task_id, at = f"{name}-{hour}-{number}", self.now + timedelta(hours=draw.uniform(0, TICK_H - 0.25))
                    values, assigned = resolver.resolve_task(name, task_id, at)
                    since = self._promoted.get(name, at)
                    (value,) = values.values()
                    success = draw.random() < chance(name, value, hour, int((at - since).total_seconds() // 3_600))
                    took_s = draw.gauss(190, 30) if success else draw.gauss(620, 60)
                    assignments += assigned
                    outcomes.append(
                        TaskOutcome(
                            task_id=task_id,
                            task_type=name,
                            started_at=at,
                            finished_at=at + timedelta(minutes=14),
                            duration_s=took_s,
                            failure=None if success else draw.choice(("timeout", "timeout", "error")),
                            quality=min(1.0, draw.gauss(0.85, 0.05)) if success else None,
                            cost=0.02,
                        )
                    )
        with self._database.transaction() as session:
            record_assignments(session, assignments, PLATFORM.observatory.interval_s)
            record_outcomes(session, outcomes, PLATFORM.observatory.interval_s)

    def _detected(self) -> list[tuple[Anomaly, str]]:
        with self._database.reading() as session:
            rows = session.exec(select(EventRow).where(col(EventRow.sequence) > self._seen)).all()
        self._seen = max([self._seen, *(row.sequence or 0 for row in rows)])
        return [
            (Anomaly.model_validate(row.data["anomaly"]), row.key)
            for row in rows
            if row.type == EventType.ANOMALY_DETECTED.value
        ]

    def _cycle(self, anomaly: Anomaly, request_id: str) -> Iterator[None]:
        """One cycle, tick by tick, as the workflow tells it."""
        request = CycleRequest(request_id=request_id, anomaly=anomaly)
        opening = CycleOpening(request=request, workflow_id=f"cycle:{request.subject}", run_id=request_id, at=self.now)
        briefing = self._market.open_meta_task(opening)
        cycle_id = briefing.cycle_id
        plans = PLANS.get(anomaly.task_type, ())
        plan = plans[briefing.attempt - 1] if briefing.attempt <= len(plans) else None
        if briefing.failed_attempts >= PLATFORM.cycle.attempts_before_escalation:
            self._end(cycle_id, request.subject, Ending.ESCALATED, f"{briefing.failed_attempts} attempts in a row")
            return
        yield
        if plan is None or anomaly.metric != "success_rate":
            self._end(cycle_id, request.subject, Ending.NO_BIDS, "no agent bid on the meta-task")
            return
        award = Award(
            cycle_id=cycle_id,
            agent_id=plan.agent,
            price=self._random.randint(30, 90),
            score=0.8,
            reason="the best bid",
            deadline=self.now + timedelta(hours=TICK_H),
        )
        self._market.record_award(award, self.now)
        proposal = _proposal(plan, anomaly.task_type, {p.declaration.key: p.version for p in briefing.parameters})
        electorate = self._proposals.open_vote(cycle_id, proposal, self.now)
        ballots = tuple(
            Ballot(
                message_id=f"{cycle_id}-{voter.agent_id}",
                agent_id=voter.agent_id,
                proposal_id=proposal.proposal_id,
                choice=Choice.REJECT if number < plan.against else Choice.APPROVE,
            )
            for number, voter in enumerate(electorate.voters)
        )
        tally = consensus.tally(
            electorate.voters, {b.agent_id: b for b in ballots}, PLATFORM.parameters[0].risk, PLATFORM.cycle
        )
        vote = VoteRecord(
            cycle_id=cycle_id, proposal_id=proposal.proposal_id, ballots=ballots, tally=tally, at=self.now
        )
        self._proposals.record_vote(vote)
        made = {"agent_id": plan.agent, "proposal": proposal, "tally": tally}
        if not tally.accepted:
            self._end(cycle_id, request.subject, Ending.REJECTED, tally.reason, **made)
            return
        design = designs.experiment(briefing, proposal, anomaly.metric)
        while True:
            try:
                self._experiments.open_experiment(design, self.now)
                break
            except ApplicationError:
                yield
        yield
        while (reading := self._look(EvaluationRequest(design=design))).decision == "continue":
            yield
        self._experiments.conclude_experiment(design, reading)
        made["reading"] = reading
        if reading.decision != "promote":
            self._end(cycle_id, request.subject, Ending(reading.decision), reading.reason, **made)
            return
        if plan.person:
            act = Act(message_id="promote-1", who=plan.person, why="the evidence is clear")
            self._market.record_act(RecordedAct(cycle_id=cycle_id, kind="promote", act=act, at=self.now))
        watch = designs.watch(design, PLATFORM.cycle.holdback_share)
        promotion = Promotion(
            cycle_id=cycle_id,
            parameter=design.parameter,
            expected_version=design.base_version,
            value=design.treatment,
            reason=reading.reason,
        )
        promoted = self._experiments.promote(promotion, watch, self.now)
        self._promoted[anomaly.task_type] = self.now
        for _ in range(24 // TICK_H):
            yield
            watched = self._look(EvaluationRequest(design=watch, purpose=Purpose.WATCH))
            if designs.is_harmful(watch, watched):
                back = {"expected_version": promoted.version, "value": design.control, "reason": watched.reason}
                self._experiments.roll_back(promotion.model_copy(update=back), self.now)
                made |= {"watch": watched, "penalty": award.price}
                self._end(cycle_id, request.subject, Ending.ROLLED_BACK, watched.reason, **made)
                return
        made |= {"watch": watched, "reward": award.price}
        self._end(cycle_id, request.subject, Ending.PROMOTED, "promoted, and the watch found no harm", **made)

    def _look(self, look: EvaluationRequest) -> Reading:
        return self._experiments.read_experiment(look, self.now)

    def _end(self, cycle_id: str, subject: str, ending: Ending, reason: str, **made: object) -> None:
        result = rewards.result_of(ending) if made else None
        facts = {"cycle_id": cycle_id, "subject": subject, "ending": ending, "reason": reason, "at": self.now}
        self._market.end_cycle(CycleEnd.model_validate({**facts, "result": result, **made}))


def _proposal(plan: Plan, task_type: str, versions: dict[str, int]) -> Proposal:
    parameter = f"{task_type}.{plan.key}"
    return Proposal(
        message_id=f"{plan.agent}-{parameter}",
        agent_id=plan.agent,
        parameter=parameter,
        base_version=versions[parameter],
        value=plan.value,
        root_cause=plan.root_cause,
        evidence=(Evidence(claim="counted"),),
        predicted_rate=plan.predicted,
        rollback_plan="set it back",
    )
