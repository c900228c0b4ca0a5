"""What the door records: outcomes, arms and spans, none lost and none believed, on both databases."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import text
from sqlmodel import col, func, select

from activities.assignments import counters
from activities.database import Database
from activities.experiment import release
from schema.messages.door import Scope
from schema.messages.experiment import ExperimentDesign, Variant
from schema.tables.experiment import AssignmentRow
from schema.tables.observatory import OutcomeRow
from tests.builders import NOW, TIMEOUT
from tests.patience import PATIENCE_S
from tests.postgres import on_server
from tests.test_door import arm_of, door, outcome
from tests.test_store import away, eventually, experiment, experiments, opened, promotion, watched

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
BOTH = (Scope.PARAMETERS, Scope.OUTCOMES)


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def stored(database: Database) -> int:
    with database.reading() as session:
        return session.exec(select(func.count()).select_from(OutcomeRow)).one()


def test_parameters_resolve_while_the_store_is_away_and_outcomes_are_refused_until_it_is_back(
    database: Database,
) -> None:
    with door(database) as caller:
        caller.report(outcome("before"))
        with away(database):
            value = caller.evaluate(TIMEOUT, "t-1")
            refused = caller.report(outcome("meanwhile"))
        assert eventually(lambda: caller.report(outcome("meanwhile")).status_code == 200)

    assert value.json()["value"] == 90.0
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) > 0
    assert stored(database) == 2


def test_parameters_resolve_while_the_store_does_not_answer(postgres_database: Database) -> None:
    hanging = (
        "SELECT count(*) AS count FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%door_key%'"
    )
    statuses = []
    with door(postgres_database) as caller, postgres_database.engine.connect() as other:
        caller.evaluate(TIMEOUT, "before")
        other.execute(text("LOCK TABLE door_key IN ACCESS EXCLUSIVE MODE"))
        while not postgres_database.rows(hanging)[0]["count"]:
            statuses.append(caller.evaluate(TIMEOUT, "t-1").status_code)
        statuses.append(caller.evaluate(TIMEOUT, "t-1").status_code)
        other.rollback()

    assert set(statuses) == {200}


def test_outcomes_are_refused_until_later_while_the_server_is_a_standby(postgres_database: Database) -> None:
    name = postgres_database.url.database
    kick = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    design = opened(postgres_database, experiment())
    with door(postgres_database) as caller:
        on_server(postgres_database.url, f"ALTER DATABASE {name} SET default_transaction_read_only = on", kick)
        caller.evaluate(TIMEOUT, "begun")
        refused = caller.report(outcome("t-1"))
        on_server(postgres_database.url, f"ALTER DATABASE {name} RESET default_transaction_read_only", kick)
        assert eventually(lambda: caller.report(outcome("t-1")).status_code == 200)
        assert eventually(lambda: "begun" in assigned(postgres_database, design))

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert refused.json()["detail"] == "expected the store to answer, but it is away; send the same again"


# --- Outcomes ---------------------------------------------------------------------------------------------------------


def test_the_same_outcome_again_changes_nothing_and_a_different_one_conflicts(database: Database) -> None:
    with door(database) as caller:
        first = caller.report(outcome("t-1"), outcome("t-2")).json()
        again = caller.report(outcome("t-1"), outcome("t-2", success=False), outcome("t-3")).json()

    assert first == {"fates": ["new", "new"], "contradicting": 0}
    assert again == {"fates": ["known", "conflicting", "new"], "contradicting": 0}
    assert stored(database) == 3


BAD = [
    # What is wrong, and what the refusal says.
    ({"outcomes": []}, "outcomes: expected a list of"),
    ({"outcomes": [{"task_id": "t"}]}, "outcomes.0.task_type"),
    ({"results": []}, "results: expected no such field"),
    ({"outcomes": [outcome("t") | {"sucess": True}]}, "outcomes.0.sucess: expected no such field"),
    ({"outcomes": [outcome("t") | {"duration_s": "1"}]}, "outcomes.0.duration_s: expected a valid number"),
    ({"outcomes": [outcome("t") | {"task_type": "sums"}]}, "outcomes.0: expected a declared task type"),
    ({"outcomes": [outcome("t") | {"task_id": "a\x00b"}]}, "outcomes.0.task_id"),
    ({"outcomes": [outcome("t") | {"detail": "x" * 501}]}, "outcomes.0.detail"),
    ({"outcomes": [outcome("t") | {"finished_at": "2999-01-01T00:00:00Z"}]}, "expected a finished_at that has passed"),
    ({"outcomes": [outcome("t", timeout={"variant": "blue"})]}, "variant"),
    # Something else on every machine.
    (
        {"outcomes": [outcome("t") | {"started_at": "2026-11-30T01:00:00"}]},
        "started_at: expected an instant with its offset from UTC (...Z or ...+02:00), but '2026-11-30T01:00:00' came",
    ),
]


@pytest.mark.parametrize(("body", "said"), BAD)
def test_one_bad_outcome_refuses_the_batch_and_nothing_of_it_is_taken(
    database: Database, body: dict[str, Any], said: str
) -> None:
    if body.get("outcomes"):
        body = {"outcomes": [*body["outcomes"], outcome("good")]}
    with door(database) as caller:
        refused = caller.client.post("/v1/outcomes", json=body)

    assert refused.status_code == 422
    assert said in refused.json()["detail"]
    assert "\n" not in refused.json()["detail"]
    assert stored(database) == 0


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b"[" * 5_000, b'{"outcomes": 1e999}'])
def test_what_is_no_batch_is_refused_in_one_line(database: Database, content: bytes) -> None:
    with door(database) as caller:
        for path in ("/v1/outcomes", "/v1/exposures"):
            refused = caller.client.post(path, content=content)

            assert refused.status_code == 422
            assert "\n" not in refused.json()["detail"]


MANY = [
    # Where the mistakes are, and what the refusal says instead of reading them all.
    ({"attributes": {f"A{n}": [] for n in range(50_000)}}, "at most 128 fields in an object, but 50,000 came"),
    ({"attributes": {f"A{n}": [] for n in range(100)}}, "a dictionary of at most 16 items, but 100 came"),
    ({"resolved": {f"A{n}": [] for n in range(100)}}, "a dictionary of at most 64 items, but 100 came"),
    ({f"a{n}": 1 for n in range(50_000)}, "at most 128 fields in an object, but 50,013 came"),
]


@pytest.mark.parametrize(("fields", "said"), MANY)
def test_a_body_full_of_mistakes_is_refused_without_reading_them_all(
    database: Database, fields: dict[str, Any], said: str
) -> None:
    with door(database) as caller:
        refused = caller.report(outcome("t") | fields)

    assert refused.status_code == 422
    assert said in refused.json()["detail"]


def test_a_body_beyond_the_declared_size_is_refused_whether_or_not_it_says_how_long_it_is(database: Database) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 10_000

    with door(database, largest_body_kb=100) as caller:
        declared = caller.client.post("/v1/outcomes", content=b" " * 2_000_000)
        streamed = caller.client.post("/v1/outcomes", content=chunks())

    assert (declared.status_code, streamed.status_code) == (413, 413)
    assert "expected a body of at most 100 kB" in streamed.json()["detail"]


# --- Arms -------------------------------------------------------------------------------------------------------------


def assigned(database: Database, design: ExperimentDesign) -> dict[str, AssignmentRow]:
    with database.reading() as session:
        rows = session.exec(select(AssignmentRow).filter_by(experiment_id=design.experiment_id)).all()
    return {row.task_id: row for row in rows}


def echo(design: ExperimentDesign, arm: str | None) -> dict[str, Any]:
    """What a task says that it resolved under an experiment: its arm, and the experiment's name."""
    return {"version": design.base_version, "variant": arm, "experiment": design.experiment_id}


def excluded(database: Database, design: ExperimentDesign) -> tuple[int, int]:
    """Excluded and contradicting tasks of both arms, and how many assignments there are of them."""
    with database.reading() as session:
        strata = counters(session, design.experiment_id)
    return sum(s.excluded for s in strata), sum(s.contradicting for s in strata)


def test_an_evaluation_by_a_platform_that_reports_outcomes_records_that_its_task_begins(database: Database) -> None:
    design = opened(database, experiment())
    with door(database) as caller:
        for number in range(10):
            caller.evaluate(TIMEOUT, f"task-{number}")
            caller.evaluate(TIMEOUT, f"task-{number}")
        caller.bulk("task-10", task_type="research_synthesis")
        caller.bulk("no-task")  # a reading of the whole configuration, for no task type

    arm = arm_of(design)
    begun = assigned(database, design)
    assert {task_id: row.variant for task_id, row in begun.items()} == {
        f"task-{n}": arm(f"task-{n}") for n in range(11)
    }


def test_an_evaluation_by_a_key_that_may_not_write_records_nothing(database: Database) -> None:
    design = opened(database, experiment())
    with door(database, (Scope.PARAMETERS,)) as caller:
        caller.evaluate(TIMEOUT, "task-1")

    assert assigned(database, design) == {}


def test_an_outcome_of_a_task_that_echoes_its_arm_counts_in_it(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    with door(database) as caller:
        reports = [outcome(f"task-{n}", n % 3 > 0, timeout=echo(design, arm(f"task-{n}"))) for n in range(60)]
        result = caller.report(*reports).json()

    assert result["contradicting"] == 0
    with database.reading() as session:
        (stratum,) = counters(session, design.experiment_id)
    assert stratum.finished == 60
    assert stratum.pending == stratum.excluded == 0


def test_an_outcome_of_the_watch_that_echoes_the_promoted_version_is_evidence(database: Database) -> None:
    opened(database, experiment())
    experiments(database).promote(promotion(), watched(), NOW)
    with door(database) as caller:
        resolved = {f"task-{n}": caller.evaluate(TIMEOUT, f"task-{n}").json() for n in range(40)}
        reports = [
            outcome(task, timeout={"version": answer["metadata"]["version"], "variant": answer["variant"]})
            for task, answer in resolved.items()
        ]
        answer = caller.report(*reports).json()

    assert {each["metadata"]["version"] for each in resolved.values()} == {2}
    assert answer["contradicting"] == 0
    assert excluded(database, watched()) == (0, 0)
    assert len(assigned(database, watched())) == 40


def test_an_outcome_that_contradicts_recomputation_is_kept_excluded_and_counted(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    other = {Variant.CONTROL: "treatment", Variant.TREATMENT: "control"}
    lies = [outcome(f"task-{n}", timeout=echo(design, other[arm(f"task-{n}")])) for n in range(8)]  # type: ignore[index]
    with door(database) as caller:
        caller.evaluate(TIMEOUT, "task-0")  # one was seen to begin
        first = caller.report(*lies).json()
        again = caller.report(*lies).json()

    assert first == {"fates": ["new"] * 8, "contradicting": 8}
    assert again["fates"] == ["known"] * 8
    assert stored(database) == 8
    assert excluded(database, design) == (8, 8)
    with database.reading() as session:
        assert sum(s.finished for s in counters(session, design.experiment_id)) == 0


@pytest.mark.parametrize("is_named", [True, False])
def test_an_arm_of_an_experiment_that_ended_is_none_of_the_next_one_on_the_same_version(
    database: Database, is_named: bool
) -> None:
    """Not by chance either: half of its tasks have the arm of the same name, with another value."""
    earlier = opened(database, experiment("c#1"))
    with database.transaction() as session:
        release(session, earlier.cycle_id, NOW)
    later = experiment("c#2")
    experiments(database).open_experiment(later, NOW)
    tasks = [f"task-{number}" for number in range(20)]
    arms = arm_of(earlier)
    echoes = {task_id: echo(earlier, arms(task_id)) for task_id in tasks}
    if not is_named:
        for said in echoes.values():
            del said["experiment"]
    with door(database) as caller:
        answer = caller.report(*(outcome(task_id, timeout=echoes[task_id]) for task_id in tasks)).json()

    assert {arms(task_id) is arm_of(later)(task_id) for task_id in tasks} == {True, False}
    assert answer == {"fates": ["new"] * 20, "contradicting": 0}
    assert assigned(database, later) == {}


def test_an_arm_without_the_name_of_its_experiment_counts_where_its_task_began_after_it_opened(
    database: Database,
) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    reports = [outcome(f"task-{n}", timeout={"version": 1, "variant": arm(f"task-{n}")}) for n in range(20)]
    for fields in reports[10:]:
        # Its second is up: it began with the experiment, and not before it.
        fields |= {"started_at": NOW.isoformat(), "finished_at": (NOW + timedelta(seconds=1)).isoformat()}
    with door(database) as caller:
        answer = caller.report(*reports).json()

    assert answer["contradicting"] == 0
    assert set(assigned(database, design)) == {f"task-{n}" for n in range(10, 20)}


def test_a_task_that_began_under_an_experiment_cannot_say_that_it_was_of_another(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)("begun")
    with door(database) as caller:
        caller.evaluate(TIMEOUT, "begun")
        assert eventually(lambda: "begun" in assigned(database, design))
        said = echo(design, arm) | {"experiment": "c#0"}
        result = caller.report(outcome("begun", timeout=said)).json()

    assert result["contradicting"] == 1
    assert excluded(database, design) == (1, 1)


def test_a_task_that_was_seen_to_begin_cannot_say_that_it_resolved_what_was_in_force(database: Database) -> None:
    design = opened(database, experiment())
    with door(database) as caller:
        caller.evaluate(TIMEOUT, "begun")
        assert eventually(lambda: "begun" in assigned(database, design))
        result = caller.report(
            outcome("begun", timeout={"version": 1, "variant": "in_force"}),
            outcome("not-begun", timeout={"version": 1, "variant": "in_force"}),
        ).json()

    assert result["contradicting"] == 1
    assert set(assigned(database, design)) == {"begun"}
    assert excluded(database, design) == (1, 1)


def test_a_task_that_echoes_nothing_counts_where_it_began_under_the_experiment(database: Database) -> None:
    design = opened(database, experiment())
    before, after = outcome("before"), outcome("after")
    for fields, began in ((before, NOW - timedelta(hours=1)), (after, NOW + timedelta(seconds=1))):
        fields["started_at"] = began.isoformat()
        fields["finished_at"] = (began + timedelta(seconds=30)).isoformat()
        fields["duration_s"] = 30.0
    with door(database) as caller:
        caller.report(before, after)

    assert set(assigned(database, design)) == {"after"}


def test_outcomes_of_tasks_that_have_begun_take_no_room_from_those_that_have_not(database: Database) -> None:
    design = opened(database, experiment(max_tasks=20))
    arm = arm_of(design)
    begun = [f"task-{number}" for number in range(15)]
    with door(database) as caller:
        for task_id in begun:
            caller.evaluate(TIMEOUT, task_id)
        assert eventually(lambda: len(assigned(database, design)) == len(begun))
        caller.report(*(outcome(task_id, timeout={"version": 1, "variant": arm(task_id)}) for task_id in begun))
        for number in range(15, 30):
            caller.evaluate(TIMEOUT, f"task-{number}")

    assert len(assigned(database, design)) == 20


def test_tasks_reported_to_begin_are_missed_when_they_do_not_end(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    begun = [
        {
            "experiment_id": design.experiment_id,
            "task_id": f"task-{n}",
            "variant": arm(f"task-{n}"),
            "assigned_at": NOW.isoformat(),
        }
        for n in range(12)
    ]
    begun[0]["variant"] = "control" if begun[0]["variant"] == "treatment" else "treatment"
    unknown = begun[1] | {"experiment_id": "another"}
    with door(database) as caller:
        first = caller.client.post("/v1/exposures", json={"exposures": [*begun, unknown]}).json()
        caller.client.post("/v1/exposures", json={"exposures": begun})

    assert first == {"assigned": 12, "contradicting": 1}
    with database.reading() as session:
        (stratum,) = counters(session, design.experiment_id)
    assert (stratum.pending, stratum.contradicting) == (11, 1)


def test_an_exposure_that_contradicts_an_outcome_recorded_before_it_makes_no_evidence(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    wrong = "control" if arm("task-1") is Variant.TREATMENT else "treatment"
    early = outcome("task-1")
    early["started_at"] = (NOW - timedelta(hours=1)).isoformat()
    exposure = {
        "experiment_id": design.experiment_id,
        "task_id": "task-1",
        "variant": wrong,
        "assigned_at": NOW.isoformat(),
    }
    with door(database) as caller:
        caller.report(early)
        caller.client.post("/v1/exposures", json={"exposures": [exposure]})

    assert excluded(database, design) == (1, 1)


def test_closing_the_door_writes_what_waits(database: Database) -> None:
    design = opened(database, experiment())
    with door(database) as caller:
        for number in range(50):
            caller.evaluate(TIMEOUT, f"task-{number}")

    assert len(assigned(database, design)) == 50


# --- Spans ------------------------------------------------------------------------------------------------------------


def test_what_the_unmodified_opentelemetry_exporter_sends_is_recorded_once(database: Database) -> None:
    with door(database) as caller:
        headers = {"X-API-Key": caller.client.headers["authorization"].removeprefix("Bearer ")}
        exporter = OTLPSpanExporter(f"{caller.url}/v1/traces", headers=headers)
        spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        tracer = provider.get_tracer("agents")
        attributes = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "research_synthesis"}
        for number in range(5):
            with tracer.start_as_current_span("invoke_agent research_synthesis", attributes=attributes) as span:
                if number == 0:
                    span.set_attribute("error.type", "TimeoutError")
                    span.set_status(StatusCode.ERROR, "no answer")
            with tracer.start_as_current_span("something else"):
                pass
        results = [exporter.export(spans.get_finished_spans()) for _ in range(2)]
        exporter.shutdown()  # type: ignore[no-untyped-call]
        provider.shutdown()

    assert results == [SpanExportResult.SUCCESS] * 2
    with database.reading() as session:
        rows = session.exec(select(OutcomeRow).order_by(col(OutcomeRow.started_at))).all()
    assert [row.failure for row in rows] == ["timeout", None, None, None, None]
    assert (rows[0].reason, rows[0].detail) == ("TimeoutError", "no answer")


def line_of(refused: httpx.Response) -> str:
    """The line of a refusal: in the protocol's Status, or where the request had no form of the protocol, a problem."""
    match refused.headers["content-type"]:
        case "application/x-protobuf":
            return str(Status.FromString(refused.content).message)
        case "application/json":
            return str(json_format.ParseDict(refused.json(), Status()).message)
    return str(refused.json()["detail"])


@pytest.mark.parametrize(
    ("content_type", "content", "status", "answered"),
    [
        ("application/x-protobuf", b"\xff\xff", 400, "application/x-protobuf"),
        ("application/json; charset=utf-8", b"{", 400, "application/json"),
        ("application/json", b"x" * 4_000_001, 413, "application/json"),
        ("text/plain", b"", 415, "application/problem+json"),
    ],
)
def test_a_body_that_holds_no_spans_is_refused_in_one_line_of_the_form_that_it_came_in(
    database: Database, content_type: str, content: bytes, status: int, answered: str
) -> None:
    with door(database) as caller:
        refused = caller.client.post("/v1/traces", content=content, headers={"Content-Type": content_type})

    assert refused.status_code == status
    assert refused.headers["content-type"] == answered
    assert line_of(refused).startswith("expected")
    assert len(line_of(refused).splitlines()) == 1


def test_an_exporter_without_a_key_reads_why_it_is_refused(database: Database) -> None:
    with door(database) as caller:
        refused = httpx.post(
            f"{caller.url}/v1/traces", headers={"Content-Type": "application/x-protobuf"}, timeout=PATIENCE_S
        )

    assert refused.status_code == 401
    assert "but none came" in line_of(refused)
