"""Memory on a real database: what a night reads, that it reads it once, and what agents make of it."""

import json
import random
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import func, select
from temporalio.client import Client

from activities import ledger
from activities.agents import register_agent
from activities.consolidation import ConsolidationActivities
from activities.database import Database
from activities.market import MarketActivities
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters
from activities.proposals import ProposalActivities
from activities.reading import everything_remembered as everything
from activities.recording import record_outcomes
from rules import consensus
from rules.design import experiment
from rules.verdict import read
from schema import wire
from schema.experience import posterior, weight
from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.cycle import CycleEnd, CycleOpening, CycleRequest, Ending, Phase
from schema.messages.diagnosis import DiagnosisRequest
from schema.messages.experiment import ArmCounts, ExperimentDesign, Reading, StratumCounts
from schema.messages.ledger import EntryKind
from schema.messages.market import AwardResult
from schema.messages.memory import Change, Claim, Pattern, Symptom
from schema.messages.observatory import Counts
from schema.messages.platform import Parameter, ParameterKind, Platform, Risk, TaskTypeDeclaration
from schema.messages.proposals import Choice, Evidence, Proposal
from schema.messages.schedules import JobReport, JobRequest
from schema.parameter_roles import Role, role_of
from schema.settings import Settings
from schema.tables.events import EventRow
from schema.tables.memory import ConsolidationRow, MemoryRow
from schema.tables.observatory import AnomalyRow, OutcomeRow
from schema.wire import EventType
from starter.agents.evidence import Case
from starter.agents.investigator import Investigator
from starter.agents.roster import ROSTER
from starter.cli import main
from tests import builders
from tests.builders import NOW
from worker import worker

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
TYPES = ("ask", "build", "check")
# Both limits are the same, and both would explain every failure; only the second one does anything.
DECOY, LIMIT = "idle_s", "timeout_s"
LIMIT_S = 1.0
MAX_TASKS = 2_000


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def platform(*more: Parameter) -> Platform:
    """Three task types, each with two limits of one second of which only one is real."""
    limits: dict[str, Any] = {"default": LIMIT_S, "minimum": 0.1, "maximum": 10.0, "largest_change": 2.0}
    parameters = [
        builders.parameter(key=f"{name}.{limit}", task_types=(name,), **limits)
        for name in TYPES
        for limit in (DECOY, LIMIT)
    ]
    return builders.platform(
        task_types=tuple(TaskTypeDeclaration(name=name) for name in TYPES),
        parameters=(*parameters, *more),
        cycle=builders.rules(max_tasks=MAX_TASKS),
    )


class World:
    """A platform whose tasks need longer than their limit. Real store, market, memory and agents; no server."""

    def __init__(self, database: Database, seed: int = 1, *more: Parameter) -> None:
        self.database = database
        self.platform = platform(*more)
        declare_parameters(database, self.platform, NOW)
        self.market = MarketActivities(database, self.platform)
        self.observatory = ObservatoryActivities(database, self.platform)
        self.rng = random.Random(seed)
        self.now = NOW
        for agent in ROSTER:
            register_agent(database, agent.agent_id, agent.operator, NOW)

    def night(self) -> str:
        """Consolidate, and go on in the morning."""
        self.now += DAY
        return ConsolidationActivities(self.database, self.platform).consolidate(self.now).text

    def patterns(self) -> list[Pattern]:
        return [pattern for pattern, _ in everything(self.database, self.now)]

    def work(self, task_type: str, tasks: int, agent_id: str = "", limit_s: float = LIMIT_S) -> Counts:
        """Record tasks of the last ten minutes: log-normal durations around one second, cut off at the limit."""
        outcomes = []
        for number in range(tasks):
            needed_s = self.rng.lognormvariate(0, 0.45)
            outcomes.append(
                builders.outcome(
                    f"{task_type}-{self.now.isoformat()}-{agent_id}-{number}",
                    needed_s <= limit_s,
                    self.now - timedelta(seconds=600 * number / tasks + 1),
                    task_type=task_type,
                    agent_id=agent_id,
                    duration_s=min(needed_s, limit_s + 0.01),
                )
            )
        with self.database.transaction() as session:
            record_outcomes(session, outcomes, self.platform.observatory.interval_s)
        return Counts(tasks=tasks, successes=sum(o.failure is None for o in outcomes))

    def fall_ill(self, task_type: str, named: bool = True) -> tuple[CycleRequest, str]:
        """The symptom shows, an anomaly is raised (for the type, or for the platform), and a cycle opens."""
        self.now += DAY
        counts = self.work(task_type, 200)
        return self.alarm(task_type if named else "", counts)

    def alarm(self, task_type: str, counts: Counts, metric: str = "success_rate") -> tuple[CycleRequest, str]:
        """An anomaly of the last ten minutes is raised, and a cycle opens."""
        onset, anomaly_id = self.now - timedelta(seconds=600), f"{metric}:{task_type}@{self.now:%j.%H}"
        anomaly = builders.anomaly(onset, metric=metric, task_type=task_type, observed=counts, anomaly_id=anomaly_id)
        with self.database.transaction() as session:
            body = anomaly.model_dump(mode="json")
            session.merge(
                AnomalyRow(anomaly_id=anomaly.anomaly_id, subject=anomaly.subject, detected_at=self.now, body=body)
            )
        return CycleRequest(request_id=f"r{self.now:%j.%H%M}", anomaly=anomaly), anomaly.subject

    def record(self, task_type: str, ago: timedelta, tasks: int, **fields: Any) -> Counts:
        """Tasks that ended alike, one a second."""
        last, label = self.now - ago, fields.get("reason", "good")
        outcomes = [
            builders.outcome(
                f"{task_type}-{last.isoformat()}-{label}-{number}",
                at=last - timedelta(seconds=number),
                **{"task_type": task_type} | fields,
            )
            for number in range(tasks)
        ]
        with self.database.transaction() as session:
            record_outcomes(session, outcomes, self.platform.observatory.interval_s)
        return Counts(tasks=tasks, successes=sum(o.failure is None for o in outcomes))

    def case(self, request: CycleRequest, phase: Phase = Phase.PROPOSING, proposal: Proposal | None = None) -> Case:
        """What agents see of it."""
        assert request.anomaly is not None
        subject = request.anomaly.subject
        since_s = int((self.now - request.anomaly.onset).total_seconds())
        facts = self.observatory.diagnose(DiagnosisRequest(subject=subject, window_s=since_s), self.now)
        status = builders.status(request=request, phase=phase, proposal=proposal)
        return Case(status, facts)

    def attempt(self, request: CycleRequest, agent: Investigator) -> tuple[Proposal, Ending]:
        """One cycle: the agent proposes, the others vote, the experiment runs on this world, the ledger is written."""
        self.now += HOUR
        proposal = agent.proposal(self.case(request))
        assert proposal is not None
        voting = self.case(request, Phase.VOTING, proposal)
        ballots = {a.agent_id: a.ballot(voting) for a in ROSTER if a is not agent}
        tally = consensus.tally([builders.voter(a) for a in ballots], ballots, Risk.LOW, self.platform.cycle)
        assert tally.accepted, [ballot.reason for ballot in ballots.values()]
        opening = CycleOpening(
            request=request.model_copy(update={"request_id": f"r{self.now:%j.%H%M}"}),
            workflow_id="w",
            run_id=f"{self.now:%j.%H%M}",
            at=self.now,
        )
        briefing = self.market.open_meta_task(opening)
        ProposalActivities(self.database).open_vote(briefing.cycle_id, proposal, self.now)
        design = experiment(briefing, proposal, "success_rate")
        reading = self.measured(design)
        ending = Ending(reading.decision.replace("promote", "promoted"))
        end_cycle(self, design, proposal, reading, ending, request.subject)
        return proposal, ending

    def measured(self, design: ExperimentDesign) -> Reading:
        """Half the tasks get the treatment until there is a verdict; only the real limit changes anything."""
        real = design.parameter.endswith(LIMIT)
        limits = [LIMIT_S, float(design.treatment) if real else LIMIT_S]
        arms = [[0, 0], [0, 0]]
        # Durations are not measured here; and a threshold of 1 / alpha need not be calibrated for every design.
        design = design.model_copy(update={"guardrails": (), "max_tasks": None})
        while sum(tasks for tasks, _ in arms) < MAX_TASKS:
            for _ in range(50):
                arm = self.rng.randrange(2)
                arms[arm][0] += 1
                arms[arm][1] += self.rng.lognormvariate(0, 0.45) <= limits[arm]
            control, treatment = (ArmCounts(tasks=tasks, successes=successes) for tasks, successes in arms)
            strata = (StratumCounts(treatment_share=0.5, control=control, treatment=treatment),)
            reading = read(design, strata, (), opened_at=self.now, at=self.now, extended=False)
            if reading.decision != "continue":
                return reading
        return reading.model_copy(update={"decision": "inconclusive"})


def end_cycle(
    world: World, design: ExperimentDesign, proposal: Proposal, reading: Reading, ending: Ending, subject: str
) -> None:
    with world.database.transaction() as session:
        ledger.append(session, EntryKind.EXPERIMENT_DESIGNED, design.cycle_id, design.parameter, world.now, design)
    world.market.end_cycle(
        CycleEnd(
            cycle_id=design.cycle_id,
            subject=subject,
            ending=ending,
            reason="",
            at=world.now,
            agent_id=proposal.agent_id,
            result=AwardResult.PROMOTED if ending is Ending.PROMOTED else AwardResult.USELESS,
            proposal=proposal,
            reading=reading,
        )
    )


def try_out(world: World, request: CycleRequest, parameter: str, value: Value, ending: Ending) -> None:
    """A cycle whose experiment ends so."""
    assert request.anomaly is not None
    world.now += HOUR
    opening = CycleOpening(
        request=request.model_copy(update={"request_id": f"r{world.now:%j.%H%M}"}),
        workflow_id="w",
        run_id=f"{world.now:%j.%H%M}",
        at=world.now,
    )
    proposal = builders.proposal("argo", parameter=parameter, value=value, predicted_rate=0.99)
    design = experiment(world.market.open_meta_task(opening), proposal, request.anomaly.metric)
    reading = builders.reading(at=world.now)
    end_cycle(world, design, proposal, reading, ending, request.subject)


def lessons(database: Database) -> list[EventRow]:
    with database.reading() as session:
        return list(session.exec(select(EventRow).where(EventRow.type == EventType.MEMORY_CONSOLIDATED.value)).all())


def until_promoted(world: World, task_type: str, nights: bool = False) -> list[Proposal]:
    """Every attempt on a fresh anomaly of a task type, a different agent each time; a night after each, if wanted."""
    request, _ = world.fall_ill(task_type)
    proposals = []
    for agent in 3 * world.rng.sample(ROSTER, len(ROSTER)):
        if agent.proposal(world.case(request)) is None:
            continue
        proposal, ending = world.attempt(request, agent)
        proposals.append(proposal)
        if nights:
            world.night()
        if ending is Ending.PROMOTED:
            return proposals
    raise AssertionError(f"nothing was found by {len(proposals)} proposals")


# ---- a night


def test_a_night_learns_what_failed_and_what_mended_and_by_how_much(database: Database) -> None:
    world = World(database)
    until_promoted(world, "ask")

    text = world.night()

    by_name = {p.claim.change.name: p for p in world.patterns()}
    assert by_name[DECOY].state == "refuted"
    assert by_name[DECOY].claim.symptom.failure == FailureKind.TIMEOUT
    assert by_name[LIMIT].state == "supported"
    low, _ = by_name[LIMIT].effect_interval or (0.0, 0.0)
    assert low > 0
    assert "raising ask.timeout_s to about" in text
    assert [row.data["lesson"]["text"] for row in lessons(database)] == [text]


def test_the_same_night_twice_changes_nothing(database: Database) -> None:
    world = World(database)
    until_promoted(world, "ask")
    world.night()
    before = everything(database, world.now)

    again = [ConsolidationActivities(database, world.platform).consolidate(world.now + n * HOUR) for n in (0, 1, 2)]

    assert everything(database, world.now) == before
    assert len(lessons(database)) == 1
    assert again[0].text.startswith("new, ")
    assert [lesson.text for lesson in again[1:]] == [f"nothing new since {world.now:%Y-%m-%d %H:%M} UTC"] * 2
    with database.reading() as session:
        assert session.exec(select(func.count()).select_from(ConsolidationRow)).one() == 1


def test_an_empty_platform_has_an_empty_night(database: Database) -> None:
    world = World(database)

    assert world.night() == "nothing new"
    assert everything(database, world.now) == []


def test_what_a_second_night_reads_was_not_read_in_the_first(database: Database) -> None:
    world = World(database)
    until_promoted(world, "ask")
    world.night()
    first = {p.pattern_id: p.tries for p in world.patterns()}
    until_promoted(world, "build")
    world.night()

    assert all(p.tries == first.get(p.pattern_id, 1) for p in world.patterns())
    assert {p.claim.symptom.task_type for p in world.patterns()} == {"ask", "build"}


def test_a_platform_without_memory_diagnoses_as_before(database: Database) -> None:
    world = World(database)
    request, _ = world.fall_ill("ask")

    case = world.case(request)

    assert case.recent.memory == ()
    proposal = ROSTER[0].proposal(case)
    assert proposal is not None
    assert len(proposal.evidence) == 3


# ---- roles and reasons

# The same role by other names, units and ranges: one is declared, the other is read from the name.
PAUSES = (
    builders.parameter(
        key="ask.gap", unit="", default=2.0, minimum=0.0, maximum=60.0, task_types=("ask",), role="backoff"
    ),
    builders.parameter(key="build.cooldown_ms", unit="ms", default=100.0, task_types=("build",)),
)


def rate_limited(world: World, task_type: str) -> CycleRequest:
    """Rate limits come on top of upstream errors that are as frequent as ever, and more frequent than they."""
    world.now += DAY
    counts = []
    for ago, limited in ((HOUR, 0), (timedelta(seconds=100), 20)):
        upstream = world.record(task_type, ago, 30, failure="error", reason="upstream_503")
        counts = [upstream, world.record(task_type, ago, limited, failure="error", reason="rate_limited")]
        counts.append(world.record(task_type, ago, 70 - limited))
    request, _ = world.alarm(task_type, Counts.total(counts))
    return request


def test_what_fixed_one_task_type_is_recalled_first_on_another_that_fails_for_the_same_reason(
    database: Database,
) -> None:
    world = World(database, 1, *PAUSES)
    request = rate_limited(world, "ask")
    try_out(world, request, "ask.gap", 8.0, Ending.PROMOTED)
    learned_at = world.now
    # What is only of the same kind may be as weighty as it likes.
    for _ in range(2):
        world.now += DAY
        counts = world.record("check", timedelta(seconds=100), 50, failure="error", reason="upstream_503")
        request, _ = world.alarm("check", counts)
        try_out(world, request, "check.timeout_s", 2.0, Ending.PROMOTED)
    world.night()

    recalled = world.case(rate_limited(world, "build")).recent.memory

    symptom = Symptom(metric="success_rate", task_type="build", failure="error", reason="rate_limited")
    assert recalled[0].claim.change == Change.of("ask.gap", 2.0, 8.0, Role.BACKOFF)
    assert recalled[0].claim.symptom == symptom.model_copy(update={"task_type": "ask"})
    assert "raising ask.gap to about 4 times fixed success_rate of ask failing by rate_limited" in recalled[0].text
    assert recalled[1].claim.symptom.reason == "upstream_503"
    found = posterior(recalled, symptom, Role.BACKOFF, "raise", world.now)
    assert found == pytest.approx((0.7 * weight(learned_at, world.now), 0.0))
    assert role_of(PAUSES[1]) is Role.BACKOFF
    assert recalled[0].claim.change.goes_like(Change.of("build.cooldown_ms", 100.0, 300.0, role_of(PAUSES[1])))


def test_a_parameter_that_is_declared_no_more_has_no_role(usual_database: Database) -> None:
    world = World(usual_database, 1, *PAUSES)
    try_out(world, rate_limited(world, "ask"), "ask.gap", 8.0, Ending.PROMOTED)
    world.platform = platform()
    world.night()

    (pattern,) = world.patterns()
    assert (pattern.claim.change.parameter, pattern.claim.change.role) == ("ask.gap", "")


def test_outcomes_that_have_expired_leave_the_kind_and_no_reason(usual_database: Database) -> None:
    world = World(usual_database, 1, *PAUSES)
    try_out(world, rate_limited(world, "ask"), "ask.gap", 8.0, Ending.PROMOTED)
    with usual_database.transaction() as session:
        session.execute(delete(OutcomeRow))
    world.night()

    (pattern,) = world.patterns()
    assert (pattern.claim.symptom.failure, pattern.claim.symptom.reason) == ("error", "")


def test_a_cycle_on_a_proposal_recalls_what_is_known_of_the_tasks_it_touches(usual_database: Database) -> None:
    world = World(usual_database, 1, *PAUSES)
    try_out(world, rate_limited(world, "ask"), "ask.gap", 8.0, Ending.PROMOTED)
    world.night()
    rate_limited(world, "build")

    def reasons(subject: str) -> list[tuple[str, str]]:
        facts = world.observatory.diagnose(DiagnosisRequest(subject=subject, window_s=600), world.now)
        return [(p.claim.symptom.task_type, p.claim.symptom.reason) for p in facts.memory]

    assert reasons("proposal:build.cooldown_ms") == [("ask", "rate_limited")]
    assert reasons("success_rate:platform") == [("ask", "rate_limited")]
    assert reasons("success_rate:of_an_agent_s_own") == [("ask", "rate_limited")]


@pytest.mark.parametrize("named", [True, False])
def test_what_made_tasks_faster_is_learned_as_what_fixed_success_is(usual_database: Database, named: bool) -> None:
    both = builders.parameter(key="all.workers", unit="", default=8.0, minimum=1.0, task_types=("ask", "build"))
    world = World(usual_database, 1, both)
    for task_type in ("ask", "build"):
        world.record(task_type, 2 * DAY, 100, duration_s=1.0)
    counts = world.record("ask", timedelta(seconds=100), 100, duration_s=30.0)  # slow, and nothing fails
    world.record("build", timedelta(seconds=100), 10, failure="error", reason="oom")
    request, _ = world.alarm("ask" if named else "", counts, "slow_share")
    try_out(world, request, "all.workers", 4.0, Ending.PROMOTED)
    world.night()

    (pattern,) = world.patterns()
    assert pattern.claim.symptom == Symptom(metric="slow_share", task_type="ask")
    assert pattern.claim.change == Change.of("all.workers", 8.0, 4.0, Role.CONCURRENCY)
    # The share of good tasks went up, so that better is positive although the metric went down.
    assert pattern.state == "supported"
    assert pattern.effect == pytest.approx(0.27)
    assert [p.pattern_id for p in world.case(request).recent.memory] == [pattern.pattern_id]


def test_what_an_earlier_release_remembered_goes_on_and_what_it_learned_for_nothing_is_skipped(
    database: Database,
) -> None:
    world = World(database)
    old = {"metric": "success_rate", "task_type": "ask", "failure": "timeout"}
    change = {"parameter": "ask.timeout_s", "verb": "raise", "size": 2, "value": None}
    seen = [{"source": "success_rate:ask#1", "at": NOW.isoformat(), "support": 1, "against": 0, "ending": "promoted"}]
    claims: dict[str, dict[str, Any]] = {
        "remedy": {"symptom": old, "change": change, "hour": None, "agent_id": ""},
        "weekly_low": {"symptom": old, "change": None, "hour": 38, "agent_id": ""},
        "skill": {"symptom": old, "change": None, "hour": None, "agent_id": "ada"},
    }
    old_id = Claim.model_validate({"kind": "remedy"} | claims["remedy"]).pattern_id
    with database.transaction() as session:
        for kind, claim in claims.items():
            body = {"claim": {"kind": kind} | claim, "observations": seen}
            session.add(MemoryRow(pattern_id=old_id if kind == "remedy" else kind, kind=kind, body=body))
    until_promoted(world, "ask")
    world.night()

    assert world.patterns()[0].claim.change.name == "timeout_s"
    assert {p.pattern_id: p.tries for p in world.patterns()}[old_id] == 1
    request, _ = world.fall_ill("ask")
    case = world.case(request)
    assert old_id in {p.pattern_id for p in case.recent.memory}
    recalled = case.recalled("ask.timeout_s", 2.0)
    assert recalled is not None
    assert recalled.claim.change.goes_like(Change.model_validate(change))


# ---- agents who remember


@pytest.mark.parametrize("seed", [1, 2])
def test_with_memory_a_good_change_is_found_in_fewer_attempts(usual_database: Database, seed: int) -> None:
    world = World(usual_database, seed)

    attempts = [[p.parameter for p in until_promoted(world, name, nights=True)] for name in TYPES]

    # What failed once is not tried again in another size, and the other task types do not try it at all.
    assert attempts == [["ask.idle_s", "ask.timeout_s"], ["build.timeout_s"], ["check.timeout_s"]]


def test_without_memory_every_task_type_costs_the_same_detour(usual_database: Database) -> None:
    world = World(usual_database)

    attempts = [len(until_promoted(world, name)) for name in TYPES[:2]]

    assert min(attempts) >= 2


@pytest.mark.parametrize("remembers", [False, True])
def test_a_refuted_change_is_not_proposed_again_under_another_subject(
    usual_database: Database, remembers: bool
) -> None:
    world = World(usual_database)
    until_promoted(world, "ask")
    if remembers:
        world.night()

    request, _ = world.fall_ill("ask", named=False)  # the endings of the other subject are not known here
    proposed = {p.parameter for agent in ROSTER if (p := agent.proposal(world.case(request))) is not None}

    assert (f"ask.{DECOY}" in proposed) is not remembers
    assert proposed == {f"ask.{LIMIT}"} or not remembers


def remembering_world(usual_database: Database) -> tuple[World, CycleRequest, Proposal]:
    """A change was learned on one task type, and is proposed for another."""
    world = World(usual_database)
    until_promoted(world, "ask")
    world.night()
    request, _ = world.fall_ill("build")
    proposal = ROSTER[0].proposal(world.case(request))
    assert proposal is not None
    return world, request, proposal


def test_a_proposal_cites_what_mended_the_like_and_voters_say_that_they_remember(usual_database: Database) -> None:
    world, request, proposal = remembering_world(usual_database)

    voting = world.case(request, Phase.VOTING, proposal)
    ballots = [agent.ballot(voting) for agent in ROSTER[1:]]

    assert proposal.parameter == f"build.{LIMIT}"
    assert "raising ask.timeout_s" in proposal.root_cause
    assert "fixed success_rate of ask failing by timeout 1 of 1 times" in proposal.root_cause
    assert proposal.evidence[-1].figures == {"times_mended": 1.0, "times_tried": 1.0}
    approved = [ballot for ballot in ballots if ballot.choice is Choice.APPROVE]
    assert len(approved) >= 3
    assert all("I remember that raising ask.timeout_s" in ballot.reason for ballot in approved)


def test_what_the_memory_does_not_hold_cannot_be_cited(usual_database: Database) -> None:
    world, request, proposal = remembering_world(usual_database)
    boast = Evidence(claim="it always helps", figures={"times_mended": 7})
    forged = proposal.model_copy(update={"evidence": (*proposal.evidence[:-1], boast)})

    ballots = [agent.ballot(world.case(request, Phase.VOTING, forged)) for agent in ROSTER[1:]]

    assert {ballot.choice for ballot in ballots} == {Choice.REJECT}


def test_voters_reject_what_was_refuted_for_the_same_symptom(usual_database: Database) -> None:
    world = World(usual_database)
    decoy = until_promoted(world, "ask")[0]
    world.night()
    request, _ = world.fall_ill("ask", named=False)
    rate = world.case(request).baseline.rate
    assert rate is not None
    evidence = (Evidence(claim="some fail", figures={"success_rate": rate}),)
    again = decoy.model_copy(update={"evidence": evidence})

    ballots = [agent.ballot(world.case(request, Phase.VOTING, again)) for agent in ROSTER[1:]]

    assert {ballot.choice for ballot in ballots} == {Choice.REJECT}
    assert all("I remember that raising ask.idle_s" in ballot.reason for ballot in ballots)


def test_a_change_that_no_record_explains_is_judged_by_what_it_did_before(usual_database: Database) -> None:
    passages = builders.parameter(
        key="ask.passages", kind=ParameterKind.INTEGER, unit="", default=32, minimum=8, maximum=200, task_types=("ask",)
    )
    world = World(usual_database, 1, passages)
    request, _ = world.fall_ill("ask")
    rate = world.case(request).baseline.rate
    assert rate is not None
    proposal = builders.proposal(
        "mallory",
        parameter="ask.passages",
        value=16,
        predicted_rate=rate + 0.25,
        evidence=(Evidence(claim="some fail", figures={"success_rate": rate}),),
    )
    opening = CycleOpening(request=request, workflow_id="w", run_id="r", at=world.now)
    design = experiment(world.market.open_meta_task(opening), proposal, "success_rate")
    reading = world.measured(design.model_copy(update={"parameter": f"ask.{LIMIT}", "treatment": 2.0}))

    def choices(about: Proposal) -> set[Choice]:
        voting = world.case(request, Phase.VOTING, about)
        return {agent.ballot(voting).choice for agent in ROSTER}

    assert choices(proposal) == {Choice.REJECT}  # nothing speaks for such a trial
    world.now += HOUR
    end_cycle(world, design, proposal.model_copy(update={"agent_id": "argo"}), reading, Ending.PROMOTED, "s")
    ConsolidationActivities(usual_database, world.platform).consolidate(world.now)
    assert choices(proposal) == {Choice.APPROVE}


# ---- the workflow


async def test_a_night_is_a_workflow_that_reports_what_it_did(
    temporal: Client, usual_database: Database, task_queue: str
) -> None:
    world = World(usual_database)
    world.work("ask", 60, "hand-1", 5.0)
    async with worker(temporal, usual_database, world.platform, Settings(), task_queue):
        report: JobReport = await temporal.execute_workflow(
            wire.CONSOLIDATION,
            JobRequest(job_id="consolidation", budget_s=120),
            id=f"consolidation:{task_queue}",
            task_queue=task_queue,
            result_type=JobReport,
        )
    with usual_database.reading() as session:
        kept = session.exec(select(func.count()).select_from(OutcomeRow)).one()

    assert (report.done, report.left) == (("learn", "report", "expire"), ())
    assert report.notes[2] == f"{60 - kept} raw outcomes dropped"


def test_a_person_reads_what_the_night_taught_and_what_it_rests_on(
    usual_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(usual_database)
    until_promoted(world, "ask")
    monkeypatch.setenv("NAUTILUS_HOME", str(tmp_path))

    def nautilus(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr("sys.argv", ["nautilus", "memory", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code or 0, *capsys.readouterr()

    empty = nautilus("list")
    world.night()
    listed = json.loads(nautilus("list", "--json")[1])
    remedy = next(p for p in listed if p["claim"]["kind"] == "remedy" and p["state"] == "supported")
    shown, unknown = nautilus("show", remedy["pattern_id"]), nautilus("show", "nothing")

    assert empty[0] == 0
    assert "nothing is remembered yet" in empty[1]
    assert "ask.timeout_s" in nautilus("list")[1]
    assert (remedy["claim"]["change"]["role"], remedy["claim"]["symptom"]["reason"]) == ("limit", "")
    assert "role limit; reason -" in shown[1]
    assert re.search(r"state +role +reason", nautilus("list")[1])
    assert shown[0] == 0
    assert "success_rate:ask#" in shown[1]  # the cycle that it was learned from
    assert unknown[0] == 1
    assert unknown[2].startswith("nautilus: expected a pattern, but nothing is not one")
