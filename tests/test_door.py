"""The door keeps out whom it should, answers as OFREP has it, and loses nothing that it acknowledged."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from sqlmodel import col, func, select

from activities import door_keys, ledger
from activities.agents import register_agent
from activities.assignments import counters
from activities.database import Database
from activities.parameters import declare_parameters, freeze
from rules.assignment import assigner
from schema.messages.door import Scope
from schema.messages.experiment import ExperimentDesign, Variant
from schema.messages.platform import DoorRules, ObservatoryRules
from schema.tables.experiment import AssignmentRow
from schema.tables.observatory import OutcomeRow
from starter.door.app import application
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.serving import serving
from tests.test_store import away, eventually, experiment, opened

BOTH = (Scope.PARAMETERS, Scope.OUTCOMES)


@pytest.fixture
def database(either_database: Database) -> Database:
    return either_database


def platform(**rules: int) -> Any:
    return builders.platform(observatory=ObservatoryRules(interval_s=60), door=DoorRules(**rules))


class Caller:
    """Somebody outside, with a key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"} if key else {})

    def evaluate(self, key: str, task_id: str, **context: Any) -> httpx.Response:
        body = {"context": {"targetingKey": task_id, **context}}
        return self.client.post(f"/ofrep/v1/evaluate/flags/{key}", json=body)

    def bulk(self, task_id: str, headers: Mapping[str, str] | None = None, **context: Any) -> httpx.Response:
        body = {"context": {"targetingKey": task_id, **context}}
        return self.client.post("/ofrep/v1/evaluate/flags", json=body, headers=headers)

    def report(self, *outcomes: Mapping[str, Any]) -> httpx.Response:
        return self.client.post("/v1/outcomes", json={"outcomes": list(outcomes)})


@contextmanager
def door(database: Database, scopes: tuple[Scope, ...] = BOTH, **rules: int) -> Iterator[Caller]:
    """A door on this database, and a platform that has a key of these scopes."""
    declare_parameters(database, platform(), NOW)
    _, text = door_keys.create_platform_key(database, "web", scopes, "ada", NOW)
    with serving(application(database, platform(**rules), refresh_s=0.05)) as url:
        caller = Caller(url, text)
        with caller.client:
            yield caller


def outcome(task_id: str, success: bool = True, **echo: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome as JSON; `echo` has what was resolved of the timeout."""
    fields = builders.outcome(task_id, success).model_dump(mode="json")
    return fields | {"resolved": {TIMEOUT: echo["timeout"]} if echo else {}}


def arm_of(design: ExperimentDesign) -> Callable[[str], Variant | None]:
    return assigner(design.experiment_id, 1.0, design.treatment_share)


def stored(database: Database) -> int:
    with database.reading() as session:
        return session.exec(select(func.count()).select_from(OutcomeRow)).one()


# --- Who comes in -----------------------------------------------------------------------------------------------------

ROUTES = [
    ("POST", f"/ofrep/v1/evaluate/flags/{TIMEOUT}", Scope.PARAMETERS),
    ("POST", "/ofrep/v1/evaluate/flags", Scope.PARAMETERS),
    ("GET", "/v1/flags", Scope.PARAMETERS),
    ("GET", "/v1/configuration", Scope.PARAMETERS),
    ("POST", "/v1/outcomes", Scope.OUTCOMES),
    ("POST", "/v1/exposures", Scope.OUTCOMES),
    ("POST", "/v1/traces", Scope.OUTCOMES),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_every_route_refuses_a_missing_a_wrong_a_revoked_and_an_out_of_scope_key(
    database: Database, method: str, path: str, scope: Scope
) -> None:
    other = next(one for one in BOTH if one is not scope)
    revoked, revoked_text = door_keys.create_platform_key(database, "old", BOTH, "ada", NOW)
    door_keys.revoke(database, revoked.key_id, "ada", "leaked", NOW)
    with door(database, (other,)) as caller:
        out_of_scope = caller.client.headers["authorization"].removeprefix("Bearer ")
        key_id, secret = out_of_scope.split("_", 2)[1:]
        wrong = [
            "",
            "nautilus",
            revoked_text,
            f"nautilus_{key_id}_{'A' * 43}",
            f"nautilus_{'0' * 12}_{secret}",
            out_of_scope + "x",
            "\u00e4".encode().decode("latin-1"),
        ]
        statuses = [
            httpx.request(method, caller.url + path, headers={b"X-API-Key": key.encode("latin-1")}).status_code
            for key in wrong
        ]
        forbidden = caller.client.request(method, path)

    assert statuses == [401] * len(wrong)
    assert forbidden.status_code == 403
    assert forbidden.headers["content-type"] == "application/problem+json"
    assert forbidden.json()["detail"].startswith(f"expected a key with the scope {scope}, but {key_id} has {other}")


def test_nothing_of_a_request_is_read_before_its_key_was_accepted(database: Database) -> None:
    with door(database) as caller:
        refused = httpx.post(f"{caller.url}/v1/outcomes", content=b"{" * 10_000_000)

    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"


def test_a_key_that_is_revoked_opens_nothing_within_two_seconds_and_a_new_one_works_as_soon(database: Database) -> None:
    with door(database) as caller:
        assert caller.client.get("/v1/flags").status_code == 200
        key, text = door_keys.create_platform_key(database, "batch", BOTH, "ada", NOW)
        batch = {"X-API-Key": text}
        assert eventually(lambda: httpx.get(f"{caller.url}/v1/flags", headers=batch).status_code == 200)

        door_keys.revoke(database, key.key_id, "ada", "leaked", NOW)

        assert eventually(lambda: httpx.get(f"{caller.url}/v1/flags", headers=batch).status_code == 401)
        assert caller.client.get("/v1/flags").status_code == 200


def test_a_secret_is_stored_nowhere_and_every_key_is_in_the_ledger(database: Database) -> None:
    register_agent(database, "bob", "team", NOW)
    key, text = door_keys.create_platform_key(database, "web", BOTH, "ada", NOW)
    agents_key, _ = door_keys.create_agent_key(database, "bob", "ada", NOW)
    door_keys.revoke(database, key.key_id, "ada", "leaked", NOW)

    secret = text.split("_", 2)[2]
    entries = ledger.entries(database, latest=10)
    assert [(entry.kind.value, entry.subject) for entry in entries] == [
        ("door_key.created", key.key_id),
        ("door_key.created", agents_key.key_id),
        ("door_key.revoked", key.key_id),
    ]
    with database.reading() as session:
        everything = str(session.connection().exec_driver_sql("SELECT * FROM door_key").all()) + str(entries)
    assert secret not in everything


@pytest.mark.parametrize("scopes", [(), (Scope.AGENTS,), (Scope.OUTCOMES, Scope.AGENTS)])
def test_a_platform_gets_no_key_of_agents_and_none_for_nothing(database: Database, scopes: tuple[Scope, ...]) -> None:
    with pytest.raises(ValueError, match="expected scopes of a platform"):
        door_keys.create_platform_key(database, "web", scopes, "ada", NOW)


def test_only_a_registered_agent_gets_a_key(database: Database) -> None:
    with pytest.raises(ValueError, match="expected a registered agent, but there is no nobody"):
        door_keys.create_agent_key(database, "nobody", "ada", NOW)


def test_more_requests_than_a_key_may_send_are_refused_for_a_second(database: Database) -> None:
    with door(database, platform_requests_per_s=5) as caller:
        responses = [caller.client.get("/v1/flags") for _ in range(30)]

    refused = [response for response in responses if response.status_code == 429]
    assert len(refused) >= 10
    assert {response.headers["retry-after"] for response in refused} == {"1"}
    assert "expected at most 5 requests a second" in refused[0].json()["detail"]


def test_wrong_keys_from_one_address_are_slowed_down_and_right_ones_are_not(database: Database) -> None:
    with door(database) as caller:
        wrong = [httpx.get(f"{caller.url}/v1/flags").status_code for _ in range(60)]
        right = caller.client.get("/v1/flags").status_code

    assert Counter(wrong)[429] > 0
    assert right == 200


# --- Parameters -------------------------------------------------------------------------------------------------------


def test_a_flag_resolves_by_ofrep_as_the_resolver_does_and_says_what_chose_it(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    with door(database) as caller:
        answers = {f"task-{n}": caller.evaluate(TIMEOUT, f"task-{n}").json() for n in range(40)}

    for task_id, answer in answers.items():
        variant = arm(task_id)
        assert variant is not None
        assert answer == {
            "key": TIMEOUT,
            "value": 180.0 if variant is Variant.TREATMENT else 90.0,
            "reason": "SPLIT",
            "variant": variant.value,
            "metadata": {"version": 1, "experiment": design.experiment_id},
        }
    assert len({answer["variant"] for answer in answers.values()}) == 2


def test_without_an_experiment_or_a_task_the_value_in_force_is_the_answer(database: Database) -> None:
    opened(database, experiment())
    with door(database) as caller:
        of_no_task = caller.client.post(f"/ofrep/v1/evaluate/flags/{TIMEOUT}", json={}).json()
        freeze(database, TIMEOUT, "ada", "incident", NOW)
        eventually(lambda: caller.evaluate(TIMEOUT, "t").json()["reason"] == "STATIC")
        frozen = caller.evaluate(TIMEOUT, "t").json()

    assert (of_no_task["value"], of_no_task["reason"], of_no_task["variant"]) == (90.0, "DEFAULT", "in_force")
    assert (frozen["value"], frozen["reason"], frozen["metadata"]) == (90.0, "STATIC", {"version": 1})


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        # A flag that nobody declared.
        ("/nothing", b'{"context": {}}', 404, "FLAG_NOT_FOUND"),
        # No JSON, and JSON that is no context.
        (f"/{TIMEOUT}", b"{", 400, "PARSE_ERROR"),
        (f"/{TIMEOUT}", b'{"context": 3}', 400, "INVALID_CONTEXT"),
        # A task whose outcome nobody could report.
        (f"/{TIMEOUT}", b'{"context": {"targetingKey": "a b"}}', 400, "INVALID_CONTEXT"),
        ("", b"[]", 400, "INVALID_CONTEXT"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_the_protocols_words(
    database: Database, path: str, content: bytes, status: int, code: str
) -> None:
    with door(database) as caller:
        response = caller.client.post(f"/ofrep/v1/evaluate/flags{path}", content=content)

    assert response.status_code == status
    assert response.json()["errorCode"] == code
    assert "expected" in response.json()["errorDetails"]


def test_a_bulk_evaluation_that_has_not_changed_is_not_sent_again(database: Database) -> None:
    opened(database, experiment())
    with door(database) as caller:
        first = caller.bulk("task-1")
        same = caller.bulk("task-1", {"If-None-Match": first.headers["etag"]})
        freeze(database, TIMEOUT, "ada", "incident", NOW)
        eventually(lambda: caller.evaluate(TIMEOUT, "t").json()["reason"] == "STATIC")
        changed = caller.bulk("task-1", {"If-None-Match": first.headers["etag"]})

    assert (first.status_code, same.status_code, changed.status_code) == (200, 304, 200)
    assert same.content == b""
    assert [flag["key"] for flag in first.json()["flags"]] == [p.key for p in platform().parameters]


def test_a_bulk_evaluation_for_a_task_type_has_the_flags_that_touch_it(database: Database) -> None:
    with door(database) as caller:
        keys = {flag["key"] for flag in caller.bulk("t-1", task_type="research_synthesis").json()["flags"]}
        of_none = caller.bulk("t-1", task_type="nothing").json()["flags"]

    assert keys == {p.key for p in platform().parameters if "research_synthesis" in p.task_types}
    assert of_none == []


def test_the_configuration_and_the_flags_carry_a_validator(database: Database) -> None:
    with door(database) as caller:
        for path in ("/v1/configuration", "/v1/flags"):
            first = caller.client.get(path)
            again = caller.client.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})

            assert (first.status_code, again.status_code) == (200, 304)


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
        reports = [
            outcome(f"task-{n}", n % 3 > 0, timeout={"version": 1, "variant": arm(f"task-{n}")}) for n in range(60)
        ]
        result = caller.report(*reports).json()

    assert result["contradicting"] == 0
    with database.reading() as session:
        (stratum,) = counters(session, design.experiment_id)
    assert stratum.finished == 60
    assert stratum.pending == stratum.excluded == 0


def test_an_outcome_that_contradicts_recomputation_is_kept_excluded_and_counted(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    other = {Variant.CONTROL: "treatment", Variant.TREATMENT: "control"}
    lies = [outcome(f"task-{n}", timeout={"version": 1, "variant": other[arm(f"task-{n}")]}) for n in range(8)]  # type: ignore[index]
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


# --- Operation --------------------------------------------------------------------------------------------------------


def test_health_and_readiness_need_no_key_and_a_stale_door_is_not_ready(database: Database) -> None:
    with door(database) as caller:
        health = httpx.get(f"{caller.url}/health")
        ready = httpx.get(f"{caller.url}/ready")
        unknown = caller.client.get("/v1/nothing")

    assert (health.status_code, ready.status_code, unknown.status_code) == (200, 200, 404)
    assert ready.json()["status"] == "ready"
    assert "expected a route of the door" in unknown.json()["detail"]


def test_closing_the_door_writes_what_waits(database: Database) -> None:
    design = opened(database, experiment())
    with door(database) as caller:
        for number in range(50):
            caller.evaluate(TIMEOUT, f"task-{number}")

    assert len(assigned(database, design)) == 50


def test_no_request_that_its_description_allows_or_forbids_makes_the_door_fail(database: Database) -> None:
    """Schemathesis against the door's own OpenAPI description: no answer of 500 or more."""
    opened(database, experiment())
    with door(database, platform_requests_per_s=100_000) as caller:
        schema = schemathesis.openapi.from_url(f"{caller.url}/openapi.json")
        headers = {"Authorization": caller.client.headers["authorization"]}
        operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
        for operation in operations:

            @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(operation.as_strategy())
            def send(case: Any) -> None:
                case.validate_response(case.call(headers=headers), checks=[not_a_server_error])

            send()

    assert {operation.path for operation in operations} >= {path for _, path, _ in ROUTES if "flags/" not in path}


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
        exporter.shutdown()
        provider.shutdown()  # type: ignore[no-untyped-call]

    assert results == [SpanExportResult.SUCCESS] * 2
    with database.reading() as session:
        rows = session.exec(select(OutcomeRow).order_by(col(OutcomeRow.started_at))).all()
    assert [row.failure for row in rows] == ["timeout", None, None, None, None]
    assert (rows[0].reason, rows[0].detail) == ("TimeoutError", "no answer")


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [("application/x-protobuf", b"\xff\xff", 400), ("application/json", b"{", 400), ("text/plain", b"", 415)],
)
def test_a_body_that_holds_no_spans_is_refused_in_one_line(
    database: Database, content_type: str, content: bytes, status: int
) -> None:
    with door(database) as caller:
        refused = caller.client.post("/v1/traces", content=content, headers={"Content-Type": content_type})

    assert refused.status_code == status
    assert "expected" in refused.json()["detail"]
