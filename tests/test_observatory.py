"""The Observatory on a real database: what a snapshot says, announces and costs; what agents are told."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlmodel import col, select

from activities import ledger, reading
from activities.agents import register_agent
from activities.anomalies import announce, close_anomaly
from activities.database import Database
from activities.history import counts_since, healthy_counts
from activities.market import MarketActivities
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters
from activities.proposals import ProposalActivities
from activities.recording import record_outcomes
from activities.rollups import interval_start
from activities.snapshots import market_fills, unusual_spans
from rules.detection import Detection
from rules.notices import notice
from rules.subscriptions import FOR_PEOPLE, Subscription, accepts
from schema.failure_kinds import FailureKind
from schema.messages.cycle import CycleEnd, CycleOpening, CycleRequest, Ending
from schema.messages.diagnosis import Diagnosis, DiagnosisRequest
from schema.messages.ledger import EntryKind
from schema.messages.market import Award
from schema.messages.observatory import Anomaly, Counts
from schema.messages.platform import ObservatoryRules, Platform, TaskTypeDeclaration
from schema.tables.events import EventRow
from schema.tables.experiment import ExperimentRow, ParameterRow
from schema.tables.observatory import AnomalyRow, SnapshotRow
from schema.wire import EventType
from tests import builders
from tests.builders import NOW

INTERVAL_S = 60
SUBJECT = "success_rate:research_synthesis"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def platform(**changes: Any) -> Platform:
    rules = ObservatoryRules(interval_s=INTERVAL_S, guard_s=600, baseline_s=7 * 86_400, floor_window_s=600)
    fields: dict[str, Any] = {
        "observatory": rules,
        "cycle": builders.rules(retry_cooldown_s=300, bake_window_s=600),
    }
    return builders.platform(**(fields | changes))


def observatory(database: Database, **changes: Any) -> ObservatoryActivities:
    return ObservatoryActivities(database, platform(**changes))


def record(
    database: Database,
    start: datetime,
    minutes: int,
    successes_of_ten: int,
    task_type: str = "research_synthesis",
    duration_s: float = 1.0,
    quality: float | None = None,
) -> None:
    """Ten tasks a minute, of which the first few succeed."""
    outcomes = [
        builders.outcome(
            f"{task_type}-{(start + MINUTE * minute).isoformat()}-{number}",
            number < successes_of_ten,
            start + MINUTE * minute + timedelta(seconds=number),
            task_type=task_type,
            duration_s=duration_s,
            quality=quality,
        )
        for minute in range(minutes)
        for number in range(10)
    ]
    with database.transaction() as session:
        record_outcomes(session, outcomes, INTERVAL_S)


def announced(database: Database, type: EventType) -> list[EventRow]:
    with database.reading() as session:
        query = select(EventRow).where(EventRow.type == type.value).order_by(col(EventRow.sequence))
        return list(session.exec(query).all())


def attempts(database: Database) -> list[int | None]:
    return [row.data["attempt"] for row in announced(database, EventType.ANOMALY_DETECTED)]


def run_cycle(database: Database, ending: Ending | None, started: datetime, ended: datetime) -> None:
    """A cycle on the first anomaly's subject, opened and, unless it still runs, ended."""
    market = MarketActivities(database, platform())
    number = len(attempts(database))
    with database.reading() as session:
        body = session.exec(select(AnomalyRow)).all()[-1].body
    request = CycleRequest(request_id=f"r{number}", anomaly=Anomaly.model_validate(body))
    opening = CycleOpening(request=request, workflow_id="w", run_id=f"run-{number}", at=started)
    cycle_id = market.open_meta_task(opening).cycle_id
    if ending is not None:
        market.end_cycle(CycleEnd(cycle_id=cycle_id, subject=SUBJECT, ending=ending, reason="", at=ended))


# --- Intervals and counts ---------------------------------------------------------------------------------------------


@given(st.integers(946_684_800_000_000, 4_102_444_800_000_000), st.integers(1, 100_000))
def test_every_instant_has_one_interval_that_holds_it(microseconds: int, interval_s: int) -> None:
    at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=microseconds)  # this century
    start = interval_start(at, interval_s)

    assert start <= at < start + timedelta(seconds=interval_s)
    assert interval_start(start, interval_s) == start
    assert start.timestamp() % interval_s == 0


def test_counts_take_the_intervals_that_start_within_the_window(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 10, 6)
    record(database, NOW - 10 * MINUTE, 10, 9, "monte_carlo")
    types = ["research_synthesis"]

    with database.reading() as session:
        assert counts_since(session, types, NOW - 3 * MINUTE) == Counts(tasks=30, successes=18)
        assert counts_since(session, types, NOW - 3 * MINUTE, NOW - MINUTE) == Counts(tasks=20, successes=12)
        both = counts_since(session, [*types, "monte_carlo"], NOW - MINUTE)
        assert both == Counts(tasks=20, successes=15)
        assert counts_since(session, ["never_ran"], NOW - MINUTE) == Counts()


def test_the_healthy_counts_end_before_the_guard_gap_and_are_none_where_nothing_was(database: Database) -> None:
    record(database, NOW - 30 * MINUTE, 10, 9)  # before the gap
    record(database, NOW - 10 * MINUTE, 10, 5)  # in the gap: what may be the trouble itself
    rules = platform().observatory

    with database.reading() as session:
        healthy = healthy_counts(session, ["research_synthesis"], NOW, rules)
        nothing = healthy_counts(session, ["monte_carlo"], NOW, rules)

    assert healthy == Counts(tasks=100, successes=90)
    assert nothing is None


# --- Snapshots --------------------------------------------------------------------------------------------------------


def test_a_snapshot_measures_the_trailing_window(database: Database) -> None:
    record(database, NOW - 30 * MINUTE, 20, 1)  # older than the window of ten minutes
    record(database, NOW - 10 * MINUTE, 10, 8)
    record(database, NOW - 10 * MINUTE, 10, 10, "monte_carlo")

    snapshot = observatory(database).take_snapshot(NOW)

    assert snapshot.platform == Counts(tasks=200, successes=180)
    assert snapshot.task_types["research_synthesis"] == Counts(tasks=100, successes=80)
    assert snapshot.throughput_per_h == 1_200
    assert snapshot.mean_duration_s == 1.0
    assert snapshot.health is not None


def test_a_platform_without_a_task_has_no_health_and_no_anomaly(database: Database) -> None:
    snapshot = observatory(database).take_snapshot(NOW)

    assert snapshot.platform == Counts()
    assert announced(database, EventType.ANOMALY_DETECTED) == []


def test_a_snapshot_of_one_instant_is_taken_once(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 10, 5)
    first = observatory(database).take_snapshot(NOW)
    record(database, NOW - 10 * MINUTE, 10, 10, "monte_carlo")  # came late: the record of the instant stands
    again = observatory(database).take_snapshot(NOW)

    assert first == again
    with database.reading() as session:
        assert len(session.exec(select(SnapshotRow)).all()) == 1
    assert attempts(database) == [1]


def test_a_success_rate_under_the_floor_is_announced_with_what_was_seen(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 10, 5)
    record(database, NOW - 10 * MINUTE, 10, 10, "monte_carlo")
    observatory(database).take_snapshot(NOW)

    (event,) = announced(database, EventType.ANOMALY_DETECTED)
    seen = Anomaly.model_validate(event.data["anomaly"])
    assert (event.subject, event.data["attempt"]) == (SUBJECT, 1)
    assert seen.task_type == "research_synthesis"
    assert seen.observed.rate == 0.5
    assert seen.onset < seen.detected_at <= NOW


def test_a_snapshot_is_taken_however_many_anomalies_it_raises(database: Database) -> None:
    """Every type of a large platform falls at once: the reason is a line for people, and every alarm is announced."""
    names = [f"type_{n}" for n in range(200)]
    rules = ObservatoryRules(interval_s=60, guard_s=600, floor_window_s=600)
    declared = builders.platform(
        task_types=tuple(TaskTypeDeclaration(name=name) for name in names), parameters=(), observatory=rules
    )
    outcomes = [
        builders.outcome(f"{name}-{n}", number >= 40 or n % 10 > 6, NOW - timedelta(seconds=5 * n + 1), task_type=name)
        for number, name in enumerate(names)
        for n in range(100)
    ]
    with database.transaction() as session:
        record_outcomes(session, outcomes, rules.interval_s)

    snapshot = ObservatoryActivities(database, declared).take_snapshot(NOW)

    with database.reading() as session:
        raised = session.exec(select(AnomalyRow)).all()
    assert len(raised) == 40
    assert snapshot.reason.endswith("; and 35 more")


def test_a_healthy_platform_announces_nothing(database: Database) -> None:
    record(database, NOW - 60 * MINUTE, 60, 9)
    for minute in range(-20, 1, 5):
        observatory(database).take_snapshot(NOW + MINUTE * minute)

    assert announced(database, EventType.ANOMALY_DETECTED) == []


# --- One event for each due attempt -----------------------------------------------------------------------------------


def test_an_anomaly_that_stands_is_announced_once_while_nobody_has_opened_its_cycle(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 20, 5)
    for minute in range(10):
        observatory(database).take_snapshot(NOW + MINUTE * minute)

    assert attempts(database) == [1]


def test_while_a_cycle_runs_no_other_attempt_is_due(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 20, 5)
    observatory(database).take_snapshot(NOW)
    run_cycle(database, None, NOW, NOW)
    for minute in range(1, 10):
        observatory(database).take_snapshot(NOW + MINUTE * minute)

    assert attempts(database) == [1]


@pytest.mark.parametrize(
    ("ending", "due"),
    [
        (Ending.FUTILE, 300),  # the next attempt comes after the retry cooldown
        (Ending.REJECTED, 300),
        (Ending.PROMOTED, 600),  # what was changed first gets its time to show
        (Ending.ESCALATED, None),  # only a person, or the end of the alarm
        (Ending.ABORTED, None),
    ],
)
def test_the_next_attempt_is_announced_when_the_cooldown_is_over_and_once(
    database: Database, ending: Ending, due: int | None
) -> None:
    record(database, NOW - 10 * MINUTE, 30, 5)
    observatory(database).take_snapshot(NOW)
    run_cycle(database, ending, NOW, NOW + MINUTE)

    told = {}
    for minute in (2, 5, 6, 7, 10, 11, 12):
        observatory(database).take_snapshot(NOW + MINUTE * minute)
        told[60 * (minute - 1)] = attempts(database)

    for seconds, numbers in told.items():
        assert numbers == ([1, 2] if due is not None and seconds >= due else [1])


def close_the_alarm(database: Database) -> datetime:
    """From NOW + 10 minutes on all is well again; the first snapshot that closes the alarm."""
    record(database, NOW + 10 * MINUTE, 120, 10)
    for minute in range(20, 131, 10):
        observatory(database).take_snapshot(NOW + MINUTE * minute)
        if closed := announced(database, EventType.ANOMALY_CLOSED):
            return closed[0].at
    raise AssertionError("expected the alarm to close within two hours of perfect health, but it stayed open")


def test_an_anomaly_that_is_over_closes_once(database: Database) -> None:
    record(database, NOW - 60 * MINUTE, 50, 9)
    record(database, NOW - 10 * MINUTE, 20, 3)
    observatory(database).take_snapshot(NOW)
    closed_at = close_the_alarm(database)
    for minute in range(1, 10):
        observatory(database).take_snapshot(closed_at + MINUTE * minute)

    assert len(announced(database, EventType.ANOMALY_CLOSED)) == 1
    with database.reading() as session:
        assert [row.closed_at for row in session.exec(select(AnomalyRow)).all()] == [closed_at]


@pytest.mark.parametrize("ending", [Ending.ESCALATED, Ending.ABORTED])
def test_a_new_anomaly_is_attempted_although_the_last_one_was_given_up(database: Database, ending: Ending) -> None:
    record(database, NOW - 60 * MINUTE, 50, 9)
    record(database, NOW - 10 * MINUTE, 20, 3)
    observatory(database).take_snapshot(NOW)
    run_cycle(database, ending, NOW, NOW + MINUTE)
    close_the_alarm(database)
    record(database, NOW + 130 * MINUTE, 20, 3)
    observatory(database).take_snapshot(NOW + 150 * MINUTE)

    with database.reading() as session:
        assert len(session.exec(select(AnomalyRow)).all()) == 2
    anomalies = {row.data["anomaly"]["anomaly_id"] for row in announced(database, EventType.ANOMALY_DETECTED)}
    assert len(anomalies) == 2


def close_by_hand(database: Database, anomaly_id: str, at: datetime = NOW + MINUTE) -> str | None:
    return close_anomaly(database, anomaly_id, "ada", "the type is gone", at)


def open_anomalies(database: Database) -> list[str]:
    return [record.anomaly.anomaly_id for record in reading.anomalies(database)]


def test_a_person_closes_an_anomaly_and_the_record_says_who_and_why(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 20, 3)
    observatory(database).take_snapshot(NOW)
    [anomaly_id] = open_anomalies(database)

    at_work = close_by_hand(database, anomaly_id)

    assert (at_work, open_anomalies(database)) == (None, [])
    [event] = announced(database, EventType.ANOMALY_CLOSED)
    assert event.data == {"anomaly_id": anomaly_id, "reason": "closed by ada: the type is gone"}
    [entry] = reading.entries(database)
    assert (entry.kind, entry.subject, entry.body) == (
        EntryKind.ANOMALY_CLOSED,
        SUBJECT,
        {"who": "ada", "why": "the type is gone"},
    )
    [known] = reading.anomalies(database, closed=True)
    assert (known.anomaly.anomaly_id, known.closed_at) == (anomaly_id, NOW + MINUTE)


def test_an_anomaly_closed_by_hand_stays_closed_and_what_is_still_wrong_is_another(database: Database) -> None:
    record(database, NOW - 60 * MINUTE, 50, 9)
    record(database, NOW - 10 * MINUTE, 40, 3)
    observatory(database).take_snapshot(NOW)
    [first] = open_anomalies(database)
    close_by_hand(database, first)

    for minute in range(2, 30):
        observatory(database).take_snapshot(NOW + MINUTE * minute)

    [second] = open_anomalies(database)
    assert second != first
    assert len(announced(database, EventType.ANOMALY_CLOSED)) == 1


def test_whoever_closes_an_anomaly_hears_of_the_cycle_that_is_at_work_on_it(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 20, 3)
    observatory(database).take_snapshot(NOW)
    run_cycle(database, None, NOW, NOW)

    [anomaly_id] = open_anomalies(database)

    assert close_by_hand(database, anomaly_id) == "w"


def test_what_is_no_open_anomaly_cannot_be_closed(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 20, 3)
    observatory(database).take_snapshot(NOW)
    [anomaly_id] = open_anomalies(database)
    close_by_hand(database, anomaly_id)

    with pytest.raises(ValueError, match=r"expected an open anomaly, but .* was closed at 2026"):
        close_by_hand(database, anomaly_id)
    with pytest.raises(ValueError, match="expected an anomaly, but nonsense came"):
        close_by_hand(database, "nonsense")
    assert len(reading.entries(database)) == 1


# --- One cycle for one cause ------------------------------------------------------------------------------------------

SLOW = "slow_share:research_synthesis"


class Worsening:
    """Tasks become slow at NOW, on which a cycle opens, and a quarter of an hour later they begin to fail too."""

    def __init__(self, database: Database) -> None:
        self.database = database
        rules = platform().observatory.model_copy(update={"opens_cycles": ("slow_share",)})
        self.take = observatory(database, observatory=rules).take_snapshot
        record(database, NOW - 300 * MINUTE, 300, 9)
        record(database, NOW, 15, 9, duration_s=60.0)
        record(database, NOW + 15 * MINUTE, 60, 3, duration_s=60.0)

    def look(self, first: int, last: int) -> list[tuple[str, int]]:
        """Take a snapshot in each of these minutes; every attempt that was announced so far."""
        for minute in range(first, last):
            self.take(NOW + MINUTE * minute)
        events = announced(self.database, EventType.ANOMALY_DETECTED)
        return [(row.subject, row.data["attempt"]) for row in events]


@pytest.mark.parametrize("begun", [True, False])
def test_a_second_metric_of_a_type_opens_no_cycle_beside_the_first(database: Database, begun: bool) -> None:
    worsening = Worsening(database)
    first = worsening.look(1, 15)
    if begun:
        run_cycle(database, None, NOW + 15 * MINUTE, NOW)

    then = worsening.look(15, 40)

    assert first == then == [(SLOW, 1)]
    assert {one.partition("#")[0] for one in open_anomalies(database)} == {SLOW, SUBJECT}


def test_what_was_changed_for_one_metric_gets_its_time_to_show_in_the_other(database: Database) -> None:
    worsening = Worsening(database)
    worsening.look(1, 15)
    run_cycle(database, Ending.PROMOTED, NOW + 15 * MINUTE, NOW + 15 * MINUTE)

    baking, then = worsening.look(15, 25), worsening.look(25, 28)

    assert baking == [(SLOW, 1)]
    assert then == [(SLOW, 1), (SLOW, 2)]


@pytest.mark.parametrize("ending", [Ending.REJECTED, Ending.ESCALATED])
def test_the_second_metric_has_its_turn_where_the_first_has_changed_nothing(database: Database, ending: Ending) -> None:
    worsening = Worsening(database)
    worsening.look(1, 15)
    run_cycle(database, ending, NOW + 15 * MINUTE, NOW + 15 * MINUTE)

    assert worsening.look(15, 20) == [(SLOW, 1), (SUBJECT, 1)]


def test_what_is_slow_and_poor_at_once_has_one_cycle_for_its_one_cause(database: Database) -> None:
    record(database, NOW - 300 * MINUTE, 300, 9, quality=0.9)
    record(database, NOW, 20, 9, duration_s=60.0, quality=0.2)
    for minute in range(1, 20):
        observatory(database).take_snapshot(NOW + MINUTE * minute)

    events = announced(database, EventType.ANOMALY_DETECTED)
    assert [(event.subject.partition(":")[2], event.data["attempt"]) for event in events] == [("research_synthesis", 1)]


def test_of_two_metrics_that_alarm_at_once_the_one_of_failures_has_the_cycle(database: Database) -> None:
    both = [builders.anomaly(NOW, metric=m, anomaly_id=f"{m}#1") for m in ("low_quality_share", "success_rate")]
    with database.transaction() as session:
        announce(session, platform(), Detection({}, raised=tuple(both)), NOW)

    (event,) = announced(database, EventType.ANOMALY_DETECTED)
    assert event.subject == SUBJECT


# --- What no cycle can be about ---------------------------------------------------------------------------------------


def raise_one(database: Database, at: datetime = NOW, rules: Any = None, **fields: Any) -> list[Anomaly]:
    """Raise and announce an anomaly; those that need a person."""
    raised = builders.anomaly(NOW, anomaly_id="a#1", **fields)
    declared = platform(observatory=rules) if rules else platform()
    with database.transaction() as session:
        return announce(session, declared, Detection({}, raised=(raised,)), at)


@pytest.mark.parametrize(
    ("metric", "task_type", "why"),
    [
        ("throughput", "research_synthesis", "no single task decides throughput, so no experiment can"),
        ("market_fill_rate", "", "no single task decides market_fill_rate"),
        ("active_agents", "", "`nautilus agent list`"),
        ("slow_share", "", "no single task type explains it"),
    ],
)
def test_what_no_single_task_decides_calls_a_person_at_once(
    database: Database, metric: str, task_type: str, why: str
) -> None:
    (needing,) = raise_one(database, metric=metric, task_type=task_type)

    (event,) = announced(database, EventType.ANOMALY_DETECTED)
    assert event.data["attempt"] is None
    assert why in needing.escalation
    assert event.data["anomaly"]["escalation"] == needing.escalation
    assert [known.anomaly for known in reading.anomalies(database)] == [needing]
    subscribed = Subscription(FOR_PEOPLE, for_people=True)
    (sent,) = [event for event in reading.outbox(database) if accepts(subscribed, event)]
    assert notice(sent).title == f"A person is needed: {metric} of {task_type or 'the platform'}"
    assert why in notice(sent).text


@pytest.mark.parametrize("metric", ["success_rate", "no_data", "slow_share", "low_quality_share", "high_cost_share"])
def test_what_a_cycle_is_about_calls_nobody_yet(database: Database, metric: str) -> None:
    assert raise_one(database, metric=metric) == []

    (event,) = announced(database, EventType.ANOMALY_DETECTED)
    assert (event.data["attempt"], event.data["anomaly"]["escalation"]) == (1, "")


def test_what_the_operator_keeps_for_people_is_theirs_until_the_operator_says_otherwise(database: Database) -> None:
    kept = platform().observatory.model_copy(update={"opens_cycles": ("slow_share",)})
    (needing,) = raise_one(database, rules=kept, metric="low_quality_share")
    assert "opens_cycles in platform.toml does not name low_quality_share" in needing.escalation

    assert raise_one(database, NOW + MINUTE, metric="low_quality_share") == []

    assert attempts(database) == [None, 1]
    assert [known.anomaly.escalation for known in reading.anomalies(database)] == [""]


DAYS = timedelta(days=2)


@pytest.mark.parametrize(
    ("ending", "stands", "called"),
    [
        # Nothing was promoted.
        (Ending.FUTILE, False, True),
        # What was promoted was taken back.
        (Ending.ROLLED_BACK, True, True),
        # A cycle has called a person, and nothing follows.
        (Ending.ESCALATED, False, False),
        # A promotion stands, or is being watched.
        (Ending.PROMOTED, True, False),
        (None, True, False),
    ],
)
def test_what_lasts_without_a_promotion_calls_a_person_once_and_attempts_go_on(
    database: Database, ending: Ending | None, stands: bool, called: bool
) -> None:
    raise_one(database)
    run_cycle(database, ending, NOW, NOW + MINUTE)
    if stands:
        with database.transaction() as session:
            ledger.append(session, EntryKind.PARAMETER_PROMOTED, f"{SUBJECT}#1:parameter.promoted", "p", NOW, {})

    def call(at: datetime) -> list[str]:
        with database.transaction() as session:
            return [anomaly.escalation for anomaly in announce(session, platform(), Detection({}), at)]

    assert call(NOW + DAYS - MINUTE) == []
    why = "it has been open for 48 h without a promotion that stands (attempts: 1); further ones go on"
    assert call(NOW + DAYS) == ([why] if called else [])
    call(NOW + DAYS + MINUTE)

    assert attempts(database).count(None) == called
    if ending not in (None, Ending.ESCALATED):
        assert attempts(database)[:2] == [1, 2]
    texts = [row.data["anomaly"]["escalation"] for row in announced(database, EventType.ANOMALY_DETECTED)]
    assert [bool(text) for text in texts] == [attempt is None for attempt in attempts(database)]


def test_a_snapshot_names_what_needs_a_person_for_as_long_as_it_is_open(database: Database) -> None:
    record(database, NOW - 300 * MINUTE, 300, 10)
    raise_one(database, metric="throughput")

    during = observatory(database).take_snapshot(NOW + MINUTE)
    close_anomaly(database, "a#1", "olga", "the sender is back", NOW + 2 * MINUTE)
    after = observatory(database).take_snapshot(NOW + 3 * MINUTE)

    (need,) = during.escalations
    assert need.startswith("a#1: no single task decides throughput")
    assert after.escalations == ()


@pytest.mark.parametrize(("metric", "counted"), [("low_quality_share", 0), ("slow_share", 0), ("success_rate", 3)])
def test_a_meta_task_that_no_agent_knows_a_remedy_for_is_no_fault_of_the_market(
    database: Database, metric: str, counted: int
) -> None:
    market, subject = MarketActivities(database, platform()), f"{metric}:research_synthesis"
    for number in range(3):
        request = CycleRequest(request_id=f"r{number}", anomaly=builders.anomaly(NOW, metric=metric))
        opening = CycleOpening(request=request, workflow_id="w", run_id=f"run-{number}", at=NOW)
        cycle_id = market.open_meta_task(opening).cycle_id
        if number == 2:
            won = {"agent_id": "ada", "price": 50, "score": 0.5, "reason": "alone", "deadline": NOW}
            market.record_award(Award(cycle_id=cycle_id, **won), NOW)
        ending = Ending.NO_PROPOSAL if number == 2 else Ending.NO_BIDS
        market.end_cycle(CycleEnd(cycle_id=cycle_id, subject=subject, ending=ending, reason="", at=NOW))

    with database.reading() as session:
        fills = market_fills(session, NOW - MINUTE, NOW + MINUTE)
    assert Counts.total(fill.counts for track in fills.values() for fill in track).tasks == counted


def test_a_cycle_of_another_type_is_not_in_the_way(database: Database) -> None:
    worsening = Worsening(database)
    record(database, NOW - 300 * MINUTE, 300, 9, "monte_carlo")
    record(database, NOW, 15, 3, "monte_carlo")

    assert set(worsening.look(1, 15)) == {(SLOW, 1), ("success_rate:monte_carlo", 1)}


# --- Diagnosis --------------------------------------------------------------------------------------------------------


def test_a_diagnosis_tells_the_recorded_facts_and_no_conclusion(database: Database) -> None:
    declare_parameters(database, platform(), NOW)
    record(database, NOW - 10 * MINUTE, 10, 6)
    observatory(database).take_snapshot(NOW)
    register_agent(database, "ada", "op-ada", NOW)
    run_cycle(database, None, NOW, NOW)
    ProposalActivities(database).open_vote(f"{SUBJECT}#1", builders.proposal("ada"), NOW)
    MarketActivities(database, platform()).end_cycle(
        CycleEnd(cycle_id=f"{SUBJECT}#1", subject=SUBJECT, ending=Ending.REJECTED, reason="", at=NOW)
    )

    told = observatory(database).diagnose(DiagnosisRequest(subject=SUBJECT, window_s=300, samples=7), NOW)

    research, monte_carlo = told.task_types
    assert research.counts == research.before == Counts(tasks=50, successes=30)
    assert research.failures == {FailureKind.TIMEOUT: 20}
    assert len(research.samples) == 7
    assert (monte_carlo.counts, monte_carlo.samples) == (Counts(), ())
    assert [state.value for state in told.parameters] == [90.0]
    assert [(e.ending, e.parameter, e.value) for e in told.endings] == [("rejected", builders.TIMEOUT, 180.0)]


def test_a_diagnosis_since_an_instant_tells_what_was_before_it(database: Database) -> None:
    record(database, NOW - 10 * MINUTE, 8, 9)
    record(database, NOW - 2 * MINUTE, 2, 4)
    asked = DiagnosisRequest(subject=SUBJECT, window_s=300, since=NOW - 2 * MINUTE)

    research, _ = observatory(database).diagnose(asked, NOW).task_types

    assert (research.counts, research.before) == (Counts(tasks=20, successes=8), Counts(tasks=50, successes=45))
    assert len(research.samples) == 20


@pytest.mark.parametrize(
    ("changed_min_ago", "counts"),
    [
        # What came before a change says nothing of what it has left to mend.
        (5, Counts(tasks=50, successes=40)),
        # Too few tasks since the change: all since the onset.
        (4, Counts(tasks=100, successes=60)),
        # A change from before the onset is none of this anomaly's.
        (12, Counts(tasks=100, successes=60)),
    ],
)
def test_what_is_wrong_now_is_counted_from_the_last_change_and_set_against_the_time_before_the_onset(
    database: Database, changed_min_ago: int, counts: Counts
) -> None:
    declare_parameters(database, platform(), NOW - timedelta(days=1))
    with database.transaction() as session:
        row = session.get_one(ParameterRow, builders.TIMEOUT)
        row.version, row.changed_at = 2, NOW - changed_min_ago * MINUTE
        session.add(row)
    record(database, NOW - 20 * MINUTE, 10, 9)
    record(database, NOW - 10 * MINUTE, 5, 4)
    record(database, NOW - 5 * MINUTE, 5, 8)
    asked = DiagnosisRequest(subject=SUBJECT, window_s=600, since=NOW - 10 * MINUTE)

    research, _ = observatory(database).diagnose(asked, NOW).task_types
    anomaly = builders.anomaly(NOW - 10 * MINUTE)
    opening = CycleOpening(request=CycleRequest(request_id="r", anomaly=anomaly), workflow_id="w", run_id="run", at=NOW)
    briefing = MarketActivities(database, platform()).open_meta_task(opening)

    assert (research.counts, research.before) == (counts, Counts(tasks=100, successes=90))
    assert briefing.baseline == counts


def test_no_baseline_learns_from_an_experiment_and_each_learns_from_a_watch(database: Database) -> None:
    hour = timedelta(hours=1)
    experiment: dict[str, Any] = {"cycle_id": "c#1", "parameter": builders.TIMEOUT, "exposing": False, "exposure": 1.0}
    experiment |= {"extended": False, "queued_at": NOW, "design": {"task_types": ["research_synthesis"]}}
    with database.transaction() as session:
        session.add(ExperimentRow(experiment_id="c#1", opened_at=NOW, closed_at=NOW + hour, **experiment))
        session.add(ExperimentRow(experiment_id="c#1.watch", opened_at=NOW + hour, closed_at=None, **experiment))
    with database.reading() as session:
        spans = unusual_spans(session, platform(), NOW - hour, NOW + 3 * hour)

    assert spans == {"research_synthesis": [(NOW, NOW + hour)]}


def told_of_one(database: Database) -> Diagnosis:
    """What is told of a task type with 450 recorded tasks, at most 400 of them one by one."""
    outcomes = [
        builders.outcome(f"t{n}", n % 2 > 0, NOW - timedelta(seconds=n + 1), duration_s=100 / (n + 3))
        for n in range(450)
    ]
    with database.transaction() as session:
        record_outcomes(session, outcomes, INTERVAL_S)
    return observatory(database).diagnose(DiagnosisRequest(subject=SUBJECT), NOW)


def test_a_diagnosis_holds_the_latest_tasks_only(database: Database) -> None:
    research, _ = told_of_one(database).task_types

    assert research.counts.tasks == 450
    assert [sample.duration_s for sample in research.samples] == [100 / (n + 3) for n in range(400)]


def test_a_diagnosis_of_a_large_platform_fits_a_message(database: Database) -> None:
    names = [f"type_{n}" for n in range(24)]
    platform = builders.platform(task_types=tuple(TaskTypeDeclaration(name=n) for n in names), parameters=())
    outcomes = [
        builders.outcome(
            f"{name}-{n}", n % 2 > 0, NOW - timedelta(seconds=n + 1), task_type=name, duration_s=100 / (n + 3)
        )
        for name in names
        for n in range(200)
    ]
    with database.transaction() as session:
        record_outcomes(session, outcomes, INTERVAL_S)
    large = ObservatoryActivities(database, platform).diagnose(DiagnosisRequest(subject=SUBJECT), NOW)

    # Temporal warns at 256 kB of payload and refuses 2 MB.
    assert len(large.model_dump_json()) < 256 * 1_024


@pytest.mark.parametrize("wanted", [{"samples": 1_000_000}, {"samples": -1}, {"window_s": -1}, {"window_s": 10**12}])
def test_nobody_can_ask_for_more_than_the_most(wanted: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"less than|greater than"):
        DiagnosisRequest(subject=SUBJECT, **wanted)
