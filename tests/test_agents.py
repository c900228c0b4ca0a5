"""Built-in agents: estimates hold, proposals are legal, votes follow the evidence, and the six get a fix promoted."""

import asyncio
import math
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sqlmodel import select
from temporalio.client import Client
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from activities.agents import register_agent
from activities.database import Database
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters, parameter_states
from activities.recording import record_outcomes
from rules import bounds, consensus
from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.base import Value
from schema.messages.cycle import CycleRequest, CycleResult, Ending, Phase, workflow_id
from schema.messages.diagnosis import Diagnosis, DurationSample, PastEnding, TaskTypeDiagnosis
from schema.messages.market import Bid
from schema.messages.observatory import Anomaly, Counts, GuardrailKind, TaskOutcome
from schema.messages.platform import (
    ObservatoryRules,
    ParameterKind,
    ParameterState,
    Platform,
    Risk,
    TaskTypeDeclaration,
)
from schema.messages.proposals import Ballot, Choice, Evidence, Proposal, Tally
from schema.settings import Settings
from schema.tables.events import EventRow
from schema.wire import EventType
from starter import keys
from starter.agents import agent as watching
from starter.agents import run_agents
from starter.agents.estimators import (
    LOG_LOGISTIC,
    LOG_NORMAL,
    Durations,
    Family,
    fit,
    fitted,
    kaplan_meier,
    observed_tail,
)
from starter.agents.evidence import Case
from starter.agents.investigator import Investigator, contradiction
from starter.agents.legal import legal_value
from starter.agents.roster import ROSTER
from starter.client import NautilusClient
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from starter.stack import register_own
from tests import builders
from tests.conftest import stop
from tests.patience import PATIENCE_S
from worker import worker

RESEARCH, BREADTH = "research_synthesis", "research_synthesis.breadth"
AGENTS = {agent.agent_id: agent for agent in ROSTER}
Draw = Callable[[random.Random], DurationSample]


def cut(duration_s: float, limit_s: float = 1.0) -> DurationSample:
    """A task that is killed at its limit, some milliseconds late."""
    if duration_s <= limit_s:
        return DurationSample(duration_s=duration_s)
    return DurationSample(duration_s=limit_s + 0.01, failure=FailureKind.TIMEOUT)


def too_short(rng: random.Random) -> Draw:
    """The demo's fault: log-normal work, and a limit of 1 s near its median."""
    sigma, median_s = rng.uniform(0.35, 0.6), 1 / rng.uniform(0.8, 1.2)
    return lambda rng: cut(median_s * rng.lognormvariate(0, sigma))


def half_of(failing: Draw) -> Draw:
    """Half the tasks are quick and succeed; the limit has nothing to do with how the others fail."""
    return lambda rng: cut(rng.lognormvariate(-1.4, 0.45)) if rng.random() < 0.5 else failing(rng)


def case(
    samples: Sequence[DurationSample],
    parameters: tuple[ParameterState, ...] = (),
    endings: tuple[PastEnding, ...] = (),
    proposal: Proposal | None = None,
) -> Case:
    """What an agent sees of a cycle about research tasks, beside another type that always succeeds."""
    counts = Counts(tasks=len(samples), successes=sum(s.failure is None for s in samples))
    failures = {kind: n for kind in FailureKind if (n := sum(s.failure is kind for s in samples))}
    other = (DurationSample(duration_s=0.1),) * 50
    diagnosis = Diagnosis(
        at=builders.NOW,
        window_start=builders.NOW - timedelta(hours=1),
        task_types=(
            TaskTypeDiagnosis(task_type=RESEARCH, counts=counts, failures=failures, samples=tuple(samples)),
            TaskTypeDiagnosis(
                task_type="monte_carlo", counts=Counts(tasks=50, successes=50), failures={}, samples=other
            ),
        ),
        parameters=parameters or (limit_of(1.0),),
        endings=endings,
    )
    status = builders.status(phase=Phase.VOTING if proposal else Phase.BIDDING, proposal=proposal)
    return Case(status, diagnosis)


def limit_of(value: float, **changes: Any) -> ParameterState:
    fields: dict[str, Any] = {
        "default": value,
        "minimum": value / 4,
        "maximum": 10 * value,
        "largest_change": 1.5 * value,
    }
    return builders.state(value, **(fields | changes))


def proposed(value: float, predicted_rate: float, **changes: object) -> Proposal:
    return builders.proposal("mallory", value=value, predicted_rate=predicted_rate, **changes)


def vote(about: Case, proposal: Proposal) -> Tally:
    """How the others vote on a proposal, each looking for itself."""
    voting = case(about.samples, about.recent.parameters, about.recent.endings, proposal)
    ballots = {a.agent_id: a.ballot(voting) for a in ROSTER if a.agent_id != proposal.agent_id}
    voters = [builders.voter(agent_id) for agent_id in ballots]
    return consensus.tally(voters, ballots, Risk.LOW, builders.rules())


# ---- estimators


@pytest.mark.parametrize(
    ("family", "oracle"),
    [
        (LOG_NORMAL, stats.norm),
        (LOG_LOGISTIC, stats.logistic),
    ],
)
def test_a_fit_is_near_to_the_maximum_likelihood_that_scipy_finds(family: Family, oracle: stats.rv_continuous) -> None:
    logs = 0.45 * oracle.rvs(size=400, random_state=1)
    durations = Durations.of([cut(math.exp(log)) for log in logs])

    curve = fit(family, durations)

    location, scale = oracle.fit(
        stats.CensoredData([math.log(d) for d in durations.exact], right=[math.log(d) for d in durations.censored])
    )
    assert curve is not None
    for limit in (0.7, 1.0, 1.5, 2.0, 3.0):
        assert curve(limit) == pytest.approx(oracle.cdf(math.log(limit), location, scale), abs=0.04)


@pytest.mark.parametrize("family", [LOG_NORMAL, LOG_LOGISTIC])
def test_on_its_own_quantiles_a_fit_is_exact(family: Family) -> None:
    durations = [math.exp(1 + 0.4 * family.quantile((n + 0.5) / 100)) for n in range(100)]

    curve = fit(family, Durations(durations, [], 1.0))

    assert curve is not None
    assert [curve(d) for d in durations] == pytest.approx([(n + 0.5) / 100 for n in range(100)])


def test_the_standard_error_covers_the_truth() -> None:
    rng, truth = random.Random(2), stats.norm.cdf(math.log(2) / 0.45)
    models = [fitted(LOG_NORMAL)([cut(rng.lognormvariate(0, 0.45)) for _ in range(120)]) for _ in range(200)]
    told = [model(2.0) for model in models if model is not None]

    covered = sum(estimate.lower(1.96) <= truth <= estimate.upper(1.96) for estimate in told)
    assert covered >= 0.86 * 200  # some 5% of the draws give no estimate, by design


def test_kaplan_meier_is_the_textbook_one() -> None:
    exact, censored = [1.0, 2.0, 4.0], [2.0, 3.0]

    steps = kaplan_meier(exact, censored)

    oracle = stats.ecdf(stats.CensoredData(exact, right=censored)).sf
    assert [survival for _, survival in steps] == pytest.approx(
        list(oracle.probabilities[oracle.quantiles < 5][[0, 1, 3]])
    )


def test_without_censoring_the_tail_estimate_is_the_observed_share() -> None:
    model = observed_tail([DurationSample(duration_s=n / 10) for n in range(1, 21)])

    assert model is not None
    assert model(1.0).rate == pytest.approx(0.5)


def test_tasks_that_hang_are_not_taken_for_slow_ones() -> None:
    rng = random.Random(3)
    samples = [cut(rng.lognormvariate(-1.4, 0.45) if rng.random() < 0.5 else 1e9) for _ in range(120)]

    assert fitted(LOG_NORMAL)(samples) is None
    tail = observed_tail(samples)
    assert tail is not None
    assert tail(2.0).rate == pytest.approx(sum(s.failure is None for s in samples) / 120, abs=0.01)


def test_other_failures_stay_failures_under_a_longer_limit() -> None:
    rng = random.Random(4)
    samples = [cut(rng.lognormvariate(0, 0.45)) for _ in range(200)]
    broken = [s.model_copy(update={"failure": FailureKind.INVALID_RESULT}) for s in samples[:40] if not s.failure]
    model = fitted(LOG_NORMAL)(broken + samples[40:])

    assert model is not None
    assert model(100.0).rate == pytest.approx(1 - len(broken) / sum(s.failure is None for s in samples), abs=0.08)


# ---- values


@st.composite
def states(draw: st.DrawFn) -> ParameterState:
    """Any numeric parameter that can be declared, at any value that it can have."""
    kind = draw(st.sampled_from((ParameterKind.FLOAT, ParameterKind.INTEGER)))
    minimum = draw(st.integers(1, 50)) * draw(st.sampled_from((0.1, 0.5, 1)))
    maximum = minimum + draw(st.integers(2, 500)) * draw(st.sampled_from((0.1, 1, 7.3)))
    largest = draw(st.sampled_from((None, 0.07, 0.9, 3, 100)))
    room = maximum - minimum if largest is None else min(largest, maximum - minimum)
    steps = [step for step in (0.05, 0.1, 0.3, 0.5, 1, 2.5, 7) if step <= room]
    step = draw(st.sampled_from((None, *steps)))
    if kind is ParameterKind.INTEGER:
        maximum = max(maximum, math.ceil(minimum) + 1)
        value: float = draw(st.integers(math.ceil(minimum), math.floor(maximum)))
    else:
        value = draw(st.floats(minimum, maximum))
    fields: dict[str, Any] = {"kind": kind, "default": value, "minimum": minimum, "maximum": maximum, "step": step}
    return builders.state(value, **fields, largest_change=largest)


@settings(max_examples=150, deadline=None)
@given(states(), st.floats(0.0, 1e6) | st.just(math.inf))
def test_a_snapped_value_is_never_refused(state: ParameterState, wanted: float) -> None:
    value = legal_value(state, wanted)

    if value is not None:
        proposal = proposed(value, 0.9)
        assert bounds.refusal(proposal, {state.declaration.key: state}, RESEARCH, 0.5, 0.05) is None


@settings(max_examples=25, deadline=None)
@given(states(), st.integers(0, 5))
def test_what_an_agent_proposes_is_never_refused(state: ParameterState, seed: int) -> None:
    rng, limit_s = random.Random(seed), float(state.value)
    about = case([cut(limit_s * rng.lognormvariate(0, 0.4), limit_s) for _ in range(80)], (state,))
    rate = (about.baseline.successes + 0.5) / (about.baseline.tasks + 1)
    for agent in (AGENTS["argo"], AGENTS["fram"]):
        proposal = agent.proposal(about)
        if proposal is not None:
            assert bounds.refusal(proposal, {state.declaration.key: state}, RESEARCH, rate, 0.05) is None


# ---- conclusions


def test_the_limit_that_tasks_were_cut_off_at_is_told_from_others() -> None:
    rng = random.Random(5)
    others = (limit_of(1.1, key="research_synthesis.idle_s"), limit_of(3.0, key="research_synthesis.grace_s"))
    about = case([cut(rng.lognormvariate(0, 0.45)) for _ in range(100)], (*others, limit_of(1.0)))

    proposals = [agent.proposal(about) for agent in ROSTER]

    assert {p.parameter for p in proposals if p} == {builders.TIMEOUT}
    assert sum(p is not None for p in proposals) >= 5
    assert len({p.value for p in proposals if p}) >= 4  # temperaments differ


@pytest.mark.parametrize(
    ("ending", "excluded"),
    [
        ("futile", lambda value: value <= 2.0),  # what did not help all the way does not help half the way
        ("rejected", lambda value: abs(value - 2.0) <= 0.05),  # a vote says nothing about other values
        ("promoted", lambda value: False),
    ],
)
def test_what_failed_before_is_not_proposed_again(ending: str, excluded: Callable[[float], bool]) -> None:
    rng = random.Random(6)
    past = PastEnding(cycle_id="c#0", ending=ending, parameter=builders.TIMEOUT, value=2.0)
    about = case([cut(rng.lognormvariate(0, 0.45)) for _ in range(100)], endings=(past,))

    values = [float(p.value) for agent in ROSTER if (p := agent.proposal(about)) is not None]

    assert values
    assert not any(excluded(value) for value in values)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: DurationSample(duration_s=0.5, failure=FailureKind.ERROR if rng.random() < 0.4 else None),
        lambda rng: (
            cut(0.3) if rng.random() < 0.6 else DurationSample(duration_s=0.3, failure=FailureKind.INVALID_RESULT)
        ),
        lambda rng: cut(rng.uniform(0.1, 0.9)),  # nothing fails
    ],
)
def test_who_has_no_explanation_does_not_bid(draw: Draw) -> None:
    rng = random.Random(7)
    about = case([draw(rng) for _ in range(200)])

    assert [agent.bid(about) for agent in ROSTER] == [None] * 6


def test_nobody_judges_by_a_handful_of_tasks() -> None:
    about = case([cut(0.5 + n / 10) for n in range(9)])

    assert [agent.bid(about) for agent in ROSTER] == [None] * 6
    assert vote(about, proposed(2.0, 0.9)).abstain == 6


def test_who_has_too_few_tasks_for_an_estimate_judges_a_longer_limit_as_a_trial() -> None:
    at_the_limit = case([cut(0.5 + n / 10) for n in range(12)])
    elsewhere = [DurationSample(duration_s=0.5, failure=FailureKind.TIMEOUT if n % 2 else None) for n in range(12)]

    assert vote(at_the_limit, proposed(2.0, 0.9)).approve == 6
    assert vote(case(elsewhere), proposed(2.0, 0.9)).reject == 6


def test_figures_that_the_records_do_not_bear_out_are_rejected() -> None:
    rng = random.Random(8)
    about = case([cut(rng.lognormvariate(0, 0.45)) for _ in range(200)])
    forged = (Evidence(claim="it is worse than it is", figures={"success_rate": 0.1}),)

    assert vote(about, proposed(2.0, 0.93)).accepted
    assert vote(about, proposed(2.0, 0.93, evidence=forged)).reject == 6


def test_a_trial_that_nothing_speaks_for_is_rejected() -> None:
    rng = random.Random(9)
    passages = builders.state(32, key="research_synthesis.passages", kind=ParameterKind.INTEGER, unit="", default=32)
    about = case([cut(rng.lognormvariate(0, 0.45)) for _ in range(200)], (limit_of(1.0), passages))

    tally = vote(about, proposed(24, 0.9, parameter="research_synthesis.passages"))

    assert (tally.approve, tally.accepted) == (0, False)
    assert tally.reject >= 3


def test_a_message_has_the_same_id_after_a_restart() -> None:
    rng = random.Random(10)
    about = case([cut(rng.lognormvariate(0, 0.45)) for _ in range(100)])

    bids = [AGENTS["fram"].bid(about) for _ in range(2)]

    assert bids[0] == bids[1]
    assert bids[0] is not None
    assert bids[0].message_id == "bid:success_rate:research_synthesis#1:fram"


def test_every_agent_has_an_operator_of_its_own() -> None:
    assert len(ROSTER) == len(AGENTS) == len({agent.operator for agent in ROSTER}) == 6


# ---- votes, simulated


def test_the_vote_on_a_limit_that_is_too_short_passes_in_99_of_100_draws() -> None:
    passed, choices = 0, set()
    for seed in range(100):
        rng = random.Random(seed)
        draw = too_short(rng)
        about = case([draw(rng) for _ in range(rng.choice((40, 60, 100, 200)))])
        bidders: list[Investigator] = [agent for agent in ROSTER if agent.bid(about) is not None]
        proposal = rng.choice(bidders).proposal(about)
        assert proposal is not None
        tally = vote(about, proposal)
        passed += tally.accepted
        choices.add((tally.approve, tally.reject, tally.abstain))

    assert passed >= 99
    assert len(choices) >= 2  # ballots differ, and not always alike


@pytest.mark.parametrize(
    ("value", "draw"),
    [
        # timeouts at no limit in particular
        (2.0, lambda rng: DurationSample(duration_s=rng.uniform(0.1, 0.9), failure=FailureKind.TIMEOUT)),
        # timeouts of something slower than the limit
        (2.0, lambda rng: DurationSample(duration_s=rng.uniform(1.3, 4.0), failure=FailureKind.TIMEOUT)),
        # errors
        (2.0, lambda rng: DurationSample(duration_s=rng.uniform(0.1, 0.9), failure=FailureKind.ERROR)),
        # tasks that hang: no limit is long enough
        (2.0, lambda rng: DurationSample(duration_s=1.01, failure=FailureKind.TIMEOUT)),
        # the right parameter, and a value that changes next to nothing
        (1.03, None),
        # the wrong direction
        (0.7, None),
    ],
)
def test_the_vote_on_what_would_not_help_fails_in_97_of_100_draws(value: float, draw: Draw | None) -> None:
    passed = 0
    for seed in range(100):
        rng = random.Random(seed)
        work = too_short(rng) if draw is None else half_of(draw)
        about = case([work(rng) for _ in range(rng.choice((40, 60, 100, 200)))])
        rate = about.baseline.rate
        assert rate is not None
        passed += vote(about, proposed(value, min(0.97, rate + 0.4))).accepted

    assert passed <= 3


# ---- the real thing


async def improved(
    client: NautilusClient,
    database: Database,
    task_queue: str,
    platform: Platform,
    agents: Sequence[watching.Participant],
    anomaly: Anomaly,
    outcome: Callable[[str, Mapping[str, Value], datetime], TaskOutcome],
) -> CycleResult:
    """The cycle about an anomaly, with agents at work, and tasks for its experiment, recorded as a platform does.

    They begin with the experiment: otherwise it would be chance which of a fixed series of tasks take part in it.
    """
    begun, done = threading.Event(), threading.Event()

    def traffic() -> None:
        begun.wait()
        with (
            ParameterResolver(DatabaseStore(database, platform), refresh_s=0.05) as resolver,
            Recorder(DatabaseStore(database, platform), linger_s=0.01) as recorder,
        ):
            for number in range(100_000):
                if done.is_set():
                    return
                at = datetime.now(UTC)
                resolution = resolver.resolve_task(RESEARCH, f"task-{number}", at)
                recorder.assigned(resolution.assignments)
                recorder.record(outcome(f"task-{number}", resolution.values, at)).result()

    cycle = f"{workflow_id(anomaly.subject)}:{task_queue}"
    async with worker(client.temporal, database, platform, Settings(), task_queue):
        request = CycleRequest(request_id=f"test:{task_queue}", anomaly=anomaly)
        await client.temporal.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=task_queue)

        async def begin() -> None:
            async for status in client.follow(cycle, every_s=0.05):
                if status.phase is Phase.EXPERIMENT:
                    begun.set()

        running = [
            asyncio.create_task(
                run_agents(client, agents, every_s=0.2, may_visit=lambda task: task.workflow_id == cycle)
            ),
            asyncio.create_task(begin()),
        ]
        platform_runs = asyncio.create_task(asyncio.to_thread(traffic))
        try:
            return await asyncio.wait_for(client.result(cycle), PATIENCE_S)
        finally:
            done.set()
            begun.set()
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            await platform_runs


async def test_a_cycle_whose_worker_is_away_holds_up_no_other(
    temporal: Client, database: Database, task_queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SCAN_WAIT_S", 0.5)
    stalled, healthy = (f"cycle:{name}:{task_queue}" for name in ("stalled", "healthy"))
    platform = builders.platform(parameters=(limit_of(1.0).declaration,), cycle=builders.rules(bid_window_s=20))
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    for investigator in ROSTER:
        register_agent(database, investigator.agent_id, f"op-{investigator.agent_id}", now)
    with database.transaction() as session:
        failing = [builders.outcome(f"t-{n}", n % 2 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, failing, 1)
    client = NautilusClient(temporal, task_queue)
    watcher = watching.Watcher(client, ROSTER, may_visit=lambda listed: listed.workflow_id in (stalled, healthy))

    async def bids() -> int:
        while not {stalled, healthy} <= {listed.workflow_id for listed in await client.meta_tasks(Phase.BIDDING)}:
            await asyncio.sleep(0.05)
        while (await client.status(healthy)).phase is not Phase.BIDDING:
            await asyncio.sleep(0.05)
        while not (placed := (await client.status(healthy)).bids):
            await watcher.step()
        return len(placed)

    async with worker(temporal, database, platform, Settings(), task_queue):
        # Listed as one that awaits bids, as a worker left it that has gone.
        phase = SearchAttributePair(SearchAttributeKey.for_keyword(wire.PHASE), Phase.BIDDING.value)
        for cycle, queue in ((stalled, f"{task_queue}:away"), (healthy, task_queue)):
            request = CycleRequest(request_id=cycle, anomaly=builders.anomaly(now - timedelta(seconds=10)))
            await temporal.start_workflow(
                wire.IMPROVEMENT_CYCLE,
                request,
                id=cycle,
                task_queue=queue,
                search_attributes=TypedSearchAttributes([phase]),
            )
        try:
            # Less than the agents themselves wait for a worker that is away, and then go on.
            assert await asyncio.wait_for(bids(), 25) >= 1
            async with asyncio.timeout(PATIENCE_S):
                while (await watcher.step()).cycles < 2:  # one that goes on to its next phase is listed in none
                    await asyncio.sleep(0.05)
        finally:
            await watcher.close()
            await stop(temporal, stalled, healthy)


async def test_six_agents_find_the_fault_and_get_the_fix_promoted(
    temporal: Client, database: Database, task_queue: str, tmp_path: Path
) -> None:
    platform = builders.platform(
        parameters=(limit_of(1.0).declaration,),
        cycle=builders.rules(bake_window_s=0.2),
        unsigned_agents=False,
    )
    now, rng = datetime.now(UTC), random.Random(11)
    declare_parameters(database, platform, now)
    register_own(database, tmp_path, now)

    def outcome(task_id: str, values: Mapping[str, Value], at: datetime) -> TaskOutcome:
        sample = cut(rng.lognormvariate(0, 0.45), float(values[builders.TIMEOUT]))
        return builders.outcome(task_id, sample.failure is None, at, duration_s=sample.duration_s)

    with database.transaction() as session:
        earlier, limit = now - timedelta(seconds=5), {builders.TIMEOUT: 1.0}
        record_outcomes(session, [outcome(f"old-{n}", limit, earlier) for n in range(90)], 1)
    anomaly = builders.anomaly(now - timedelta(seconds=10))
    client = NautilusClient(temporal, task_queue, *(keys.own(tmp_path, agent.agent_id) for agent in ROSTER))
    result = await improved(client, database, task_queue, platform, ROSTER, anomaly, outcome)

    assert result.end is not None
    assert result.end.ending is Ending.PROMOTED, result.end.reason
    assert len(result.status.bids) == 6
    assert len({ballot.reason for ballot in result.status.ballots.values()}) == len(result.status.ballots) >= 3
    assert result.end.proposal is not None
    assert result.end.proposal.parameter == builders.TIMEOUT
    assert any(ballot.choice is Choice.APPROVE for ballot in result.status.ballots.values())


@dataclass(frozen=True, kw_only=True)
class Reader(Investigator):
    """An agent that knows what ours do not: who reads half as much is done in half the time."""

    def bid(self, case: Case) -> Bid:
        return Bid(message_id=f"bid:{self.agent_id}", agent_id=self.agent_id, price=self.price, eta_s=self.eta_s)

    def proposal(self, case: Case) -> Proposal:
        state = case.state(BREADTH)
        assert state is not None
        shares = {"good_share": case.baseline.rate or 0.0, "good_share_before": case.before.rate or 0.0}
        return Proposal(
            message_id=f"proposal:{self.agent_id}",
            agent_id=self.agent_id,
            parameter=BREADTH,
            base_version=state.version,
            value=int(state.value) // 2,
            root_cause="what is read comes half as fast",
            evidence=(Evidence(claim="since the onset, and before", figures=shares),),
            predicted_rate=round(shares["good_share_before"], 3),
            rollback_plan="read as much as before",
        )

    def ballot(self, case: Case) -> Ballot:
        assert case.status.proposal is not None
        wrong = contradiction(case.status.proposal, case, None)
        return Ballot(
            message_id=f"ballot:{self.agent_id}",
            agent_id=self.agent_id,
            proposal_id=case.status.proposal.proposal_id,
            choice=Choice.REJECT if wrong else Choice.APPROVE,
            reason=wrong or "",
        )


@pytest.mark.parametrize("metric", ["slow_share", "low_quality_share"])
async def test_what_became_slow_or_poor_is_mended_though_no_more_of_it_fails(
    temporal: Client, database: Database, task_queue: str, metric: str
) -> None:
    breadth = builders.parameter(key=BREADTH, kind=ParameterKind.INTEGER, unit="", default=8, minimum=1, maximum=20)
    platform = builders.platform(
        task_types=(TaskTypeDeclaration(name=RESEARCH),),
        parameters=(breadth,),
        cycle=builders.rules(bake_window_s=0.2),
        observatory=ObservatoryRules(interval_s=1, guard_s=60, floor_window_s=600),
    )
    now, rng = datetime.now(UTC), random.Random(12)
    declare_parameters(database, platform, now)
    agents = [Reader(**(vars(agent) | {"agent_id": f"reader-{n}"})) for n, agent in enumerate(ROSTER[:4])]
    for agent in agents:
        register_agent(database, agent.agent_id, f"op-{agent.agent_id}", now)

    def outcome(task_id: str, values: Mapping[str, Value], at: datetime, load: float = 2.0) -> TaskOutcome:
        """Twice the load makes tasks slow, or rated badly; half as much to read makes up for it. A third is unrated."""
        much = float(values[BREADTH]) * load
        if metric == "slow_share":
            return builders.outcome(task_id, at=at, duration_s=much * rng.lognormvariate(0, 0.3))
        if rng.random() < 0.05:
            return builders.outcome(task_id, False, at)
        rating = max(0.0, min(1.0, rng.gauss(1.0 - much / 40, 0.05)))
        return builders.outcome(task_id, at=at, quality=rating if rng.random() < 0.7 else None)

    with database.transaction() as session:
        before = [outcome(f"usual-{n}", {BREADTH: 8}, now - timedelta(hours=2, seconds=n), 1.0) for n in range(300)]
        since = [outcome(f"worse-{n}", {BREADTH: 8}, now - timedelta(seconds=n % 10)) for n in range(100)]
        record_outcomes(session, before + since, 1)
    store = ObservatoryActivities(database, platform)
    for second in range(-9, 2):
        store.take_snapshot(now + timedelta(seconds=second))
    with database.reading() as session:
        query = select(EventRow).where(EventRow.type == EventType.ANOMALY_DETECTED.value)
        (detected,) = session.exec(query).all()
    assert detected.data["attempt"] == 1
    anomaly = Anomaly.model_validate(detected.data["anomaly"])
    assert anomaly.subject == f"{metric}:{RESEARCH}"
    client = NautilusClient(temporal, task_queue)
    result = await improved(client, database, task_queue, platform, agents, anomaly, outcome)

    assert result.end is not None
    assert result.end.ending is Ending.PROMOTED, result.end.reason
    assert result.end.proposal is not None
    assert result.end.reading is not None
    assert result.status.design is not None
    assert result.end.proposal.value == 4
    assert result.end.proposal.evidence[0].figures["good_share"] < 0.5
    usual = 0.95 if metric == "slow_share" else 0.75
    assert result.end.proposal.predicted_rate == pytest.approx(usual, abs=0.05)
    guarded = {guardrail.kind for guardrail in result.status.design.guardrails}
    assert GuardrailKind.COMPLETED in guarded
    assert (GuardrailKind.RATED in guarded) == (metric == "low_quality_share")
    excluded = sum(stratum.excluded for stratum in result.end.reading.strata)
    assert (excluded > 0) == (metric == "low_quality_share")
    assert (result.end.reading.control.rate or 0) < 0.5 < usual - 0.15 < (result.end.reading.treatment.rate or 0)
    means = "done within" if metric == "slow_share" else "rated at least"
    assert f"Good is: {RESEARCH} {means}" in result.page
    with database.reading() as session:
        assert parameter_states(session, platform)[0].value == 4
