"""Spans of OpenTelemetry as outcomes: what is a task, how it went, and that no span can stop the others."""

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.spans import EPOCH, AttributeValue, Span, SpanEvent, SpanReader, SpanStatus, is_timeout
from schema.declaration import DeclarationError, read_platform
from schema.failure_kinds import FailureKind
from schema.messages.observatory import MOST_ATTRIBUTES, TaskOutcome
from schema.messages.platform import Platform, TaskTypeDeclaration
from schema.messages.reports import OutcomeReport, Resolved
from schema.messages.spans import SpanMapping
from tests import builders

# pragma: allowlist nextline secret
TRACE, SPAN, PARENT = "5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174", "00f067aa0ba902b7"
ENDED_NS = (builders.NOW - EPOCH) // timedelta(microseconds=1) * 1_000
OPERATION, AGENT, TOOL = "gen_ai.operation.name", "gen_ai.agent.name", "gen_ai.tool.name"
RESEARCH: dict[str, AttributeValue] = {OPERATION: "invoke_agent", AGENT: "research_synthesis"}
PAGE = (Path(__file__).parent.parent / "docs" / "telemetry.md").read_text()


def span(attributes: Mapping[str, AttributeValue] = RESEARCH, **changes: Any) -> Span:
    """The span of a research task that succeeded within two seconds."""
    fields: dict[str, Any] = {
        "trace_id": TRACE,
        "span_id": SPAN,
        "parent_id": PARENT,
        "name": "invoke_agent research_synthesis",
        "started_ns": ENDED_NS - 2 * 10**9,
        "ended_ns": ENDED_NS,
        "attributes": attributes,
    }
    return Span(**(fields | changes))


def evaluation(variant: str, **changes: AttributeValue) -> SpanEvent:
    """A parameter's evaluation, as a hook of OpenFeature writes it."""
    attributes: dict[str, AttributeValue] = {
        "feature_flag.key": builders.TIMEOUT,
        "feature_flag.result.variant": variant,
        "feature_flag.version": "3",
    }
    return SpanEvent("feature_flag.evaluation", attributes | changes)


def exception(kind: str, message: str = "") -> SpanEvent:
    return SpanEvent("exception", {"exception.type": kind, "exception.message": message})


def reader(*mappings: SpanMapping) -> SpanReader:
    """Of a platform with research tasks, which the mappings are of, and with simulations, which have none."""
    research, simulation = builders.platform().task_types
    return SpanReader(builders.platform(task_types=(research.model_copy(update={"spans": mappings}), simulation)))


def report(came: Span, *mappings: SpanMapping) -> OutcomeReport:
    reported = reader(*mappings).read([came], builders.NOW)
    assert reported.rejected == []
    (outcome,) = reported.reports
    return outcome


def rejection(came: Span, *mappings: SpanMapping) -> str:
    reported = reader(*mappings).read([came], builders.NOW)
    assert reported.reports == []
    (line,) = reported.rejected
    assert "\n" not in line
    return line


def test_the_span_of_an_agent_with_the_name_of_a_task_type_is_its_task() -> None:
    attributes = RESEARCH | {
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4",
        "gen_ai.response.model": "gpt-4-0613",
        "gen_ai.usage.input_tokens": 812,
        "gen_ai.usage.output_tokens": 97,
    }

    assert report(span(attributes)).outcome == TaskOutcome(
        task_id=f"{TRACE}-{SPAN}",
        task_type="research_synthesis",
        started_at=builders.NOW - timedelta(seconds=2),
        finished_at=builders.NOW,
        duration_s=2.0,
        agent_id="research_synthesis",
        attributes={"provider": "openai", "model": "gpt-4-0613", "input_tokens": 812, "output_tokens": 97},
    )


@pytest.mark.parametrize(
    ("came", "task_type"),
    [
        # By the name of the agent or the tool, however it is written.
        (span(), "research_synthesis"),
        (span({OPERATION: "invoke_agent", AGENT: "Research Synthesis"}), "research_synthesis"),
        (span({OPERATION: "invoke_agent", AGENT: "research-synthesis"}), "research_synthesis"),
        (span({OPERATION: "execute_tool", TOOL: "monte_carlo", AGENT: "research_synthesis"}), "monte_carlo"),
        # An instrumentation may have nothing but the name of the span.
        (span({}, name="invoke_agent research_synthesis"), "research_synthesis"),
        (span({}, name="execute_tool monte_carlo"), "monte_carlo"),
        # Everything else is no task: another agent, a model's call by the agent, a span without operation.
        (span({OPERATION: "invoke_agent", AGENT: "someone_else"}), None),
        (span({OPERATION: "chat", AGENT: "research_synthesis"}, name="chat gpt-4"), None),
        (span({OPERATION: "create_agent", AGENT: "research_synthesis"}, name="create_agent"), None),
        (span({}, name="research_synthesis"), None),
        (span({}, name="invoke_agent"), None),
    ],
)
def test_what_is_a_task_without_a_mapping(came: Span, task_type: str | None) -> None:
    reported = reader().read([came], builders.NOW)

    assert [outcome.task_type for outcome in reported.reports] == ([task_type] if task_type else [])
    assert reported.rejected == []


@pytest.mark.parametrize(
    ("mapping", "is_task"),
    [
        (SpanMapping(name="job research"), True),
        (SpanMapping(name="job"), False),
        (SpanMapping(name_prefix="job "), True),
        (SpanMapping(name_prefix="research"), False),
        (SpanMapping(operation="run_job"), True),
        (SpanMapping(operation="invoke_agent"), False),
        (SpanMapping(when={"queue": "slow"}), True),
        (SpanMapping(when={"queue": "fast"}), False),
        (SpanMapping(when={"retry": 1}), True),
        # The number 1 is not the text 1, and not true.
        (SpanMapping(when={"retry": "1"}), False),
        (SpanMapping(when={"retry": True}), False),
        (SpanMapping(when={"missing": "slow"}), False),
        # All that is declared must hold.
        (SpanMapping(name_prefix="job ", operation="run_job", when={"queue": "slow", "retry": 1}), True),
        (SpanMapping(name_prefix="job ", operation="run_job", when={"queue": "slow", "retry": 2}), False),
    ],
)
def test_a_mapping_selects_by_operation_name_and_attributes(mapping: SpanMapping, is_task: bool) -> None:
    job = span({OPERATION: "run_job", "queue": "slow", "retry": 1}, name="job research")

    assert len(reader(mapping).read([job], builders.NOW).reports) == is_task


def test_a_type_with_a_mapping_has_no_other_spans() -> None:
    job, agent_within = span({}, name="job", span_id=PARENT, parent_id=""), span()

    outcomes = reader(SpanMapping(name="job")).read([agent_within, job], builders.NOW).reports

    assert [outcome.task_id for outcome in outcomes] == [TRACE]


def test_of_two_mappings_that_agree_with_a_span_the_first_decides() -> None:
    types = (
        TaskTypeDeclaration(name="quick", spans=(SpanMapping(name="job quick"),)),
        TaskTypeDeclaration(name="other", spans=(SpanMapping(name_prefix="job "),)),
    )
    spans = [span({}, name=name) for name in ("job quick", "job slow")]

    outcomes = SpanReader(Platform(task_types=types)).read(spans, builders.NOW).reports

    assert [outcome.task_type for outcome in outcomes] == ["quick", "other"]


def test_a_tool_s_task_within_an_agent_s_task_is_a_task_of_its_own() -> None:
    tool = span(
        {OPERATION: "execute_tool", TOOL: "monte_carlo"}, span_id="00000000000000a1", parent_id="00000000000000a2"
    )
    between = span({OPERATION: "execute_tool", TOOL: "unknown"}, span_id="00000000000000a2", parent_id=SPAN)

    outcomes = reader().read([tool, between, span()], builders.NOW).reports

    assert [outcome.task_type for outcome in outcomes] == ["monte_carlo", "research_synthesis"]
    assert len({outcome.task_id for outcome in outcomes}) == 2


@pytest.mark.parametrize(
    ("came", "mapping", "task_id"),
    [
        # Whether a trace has other tasks is not known yet when a span arrives: its own place in the trace decides.
        (span(parent_id=""), None, TRACE),
        (span(), None, f"{TRACE}-{SPAN}"),
        (span(), SpanMapping(operation="invoke_agent", task_id="trace_id"), TRACE),
        (span(RESEARCH | {"job.id": "J-17"}), SpanMapping(operation="invoke_agent", task_id="job.id"), "J-17"),
        (span(RESEARCH | {"job.id": 17}), SpanMapping(operation="invoke_agent", task_id="job.id"), "17"),
        # What the parameters were resolved for is the task.
        (span(events=(evaluation("control", **{"feature_flag.context.id": "J-17"}),)), None, "J-17"),
        # Two keys cannot both be; a key of another system's flag is a user or a session.
        (
            span(events=tuple(evaluation("control", **{"feature_flag.context.id": key}) for key in ("J-1", "J-2"))),
            None,
            f"{TRACE}-{SPAN}",
        ),
        (
            span(events=(evaluation("on", **{"feature_flag.key": "dark_mode", "feature_flag.context.id": "u-1"}),)),
            None,
            f"{TRACE}-{SPAN}",
        ),
        # A mapped attribute outranks the key.
        (
            span(RESEARCH | {"job.id": "J-17"}, events=(evaluation("control", **{"feature_flag.context.id": "u-1"}),)),
            SpanMapping(operation="invoke_agent", task_id="job.id"),
            "J-17",
        ),
    ],
)
def test_the_task_id_is_a_function_of_the_span(came: Span, mapping: SpanMapping | None, task_id: str) -> None:
    assert report(came, *([mapping] if mapping else [])).task_id == task_id


@pytest.mark.parametrize(
    ("changes", "failure", "reason", "detail"),
    [
        # An unset status is a success, and so is one that somebody set to OK.
        ({}, None, "", ""),
        ({"status": SpanStatus.OK, "attributes": RESEARCH | {"error.type": "retried"}}, None, "", ""),
        # An exception that was recorded and handled fails nothing.
        ({"events": (exception("KeyError", "handled"),)}, None, "", ""),
        ({"status": SpanStatus.ERROR}, FailureKind.ERROR, "", ""),
        # The error type is the reason, with or without the status that should go with it.
        ({"attributes": RESEARCH | {"error.type": "rate_limited"}}, FailureKind.ERROR, "rate_limited", ""),
        (
            {
                "status": SpanStatus.ERROR,
                "message": "upstream said 503",
                "attributes": RESEARCH | {"error.type": "503"},
            },
            FailureKind.ERROR,
            "503",
            "upstream said 503",
        ),
        ({"attributes": RESEARCH | {"error.type": 504}}, FailureKind.TIMEOUT, "504", ""),
        # Without one, the last exception's.
        (
            {"status": SpanStatus.ERROR, "events": (exception("KeyError"), exception("httpx.ReadTimeout", "too late"))},
            FailureKind.TIMEOUT,
            "httpx.ReadTimeout",
            "too late",
        ),
        (
            {
                "status": SpanStatus.ERROR,
                "attributes": RESEARCH | {"error.type": "_OTHER"},
                "events": (exception("ValueError", "no JSON"),),
            },
            FailureKind.ERROR,
            "ValueError",
            "no JSON",
        ),
        # A label that no label can be is no reason, and the failure counts under its kind.
        ({"status": SpanStatus.ERROR, "attributes": RESEARCH | {"error.type": "時間切れ"}}, FailureKind.ERROR, "", ""),
    ],
)
def test_how_a_task_went(changes: dict[str, Any], failure: FailureKind | None, reason: str, detail: str) -> None:
    outcome = report(span(**changes))

    assert (outcome.failure, outcome.reason, outcome.detail) == (failure, reason, detail)


@pytest.mark.parametrize(
    "error_type",
    [
        "timeout",
        "TimeoutError",
        "asyncio.exceptions.TimeoutError",
        "openai.APITimeoutError",
        "requests.exceptions.ReadTimeout",
        "subprocess.TimeoutExpired",
        "java.net.SocketTimeoutException",
        "context.deadlineExceededError",
        "DEADLINE_EXCEEDED",
        "ETIMEDOUT",
        "request_timed_out",
        "reqwest::Error::TimedOut",
        "billiard.exceptions.SoftTimeLimitExceeded",
        "408",
        "504",
    ],
)
def test_the_names_that_libraries_have_for_a_time_limit_are_timeouts(error_type: str) -> None:
    assert is_timeout(error_type)


@pytest.mark.parametrize(
    "error_type",
    ["", "500", "5040", "KeyError", "TimeoutValueError", "timeout.ConfigError", "RateLimitExceeded", "CancelledError"],
)
def test_another_error_is_no_timeout(error_type: str) -> None:
    assert not is_timeout(error_type)


def test_a_long_message_is_cut_and_a_model_s_long_name_too() -> None:
    attributes = RESEARCH | {"gen_ai.request.model": "m" * 300, AGENT: "research_synthesis", "error.type": "e" * 300}

    outcome = report(span(attributes, status=SpanStatus.ERROR, message="\x00" + "x" * 10_000))

    assert len(outcome.detail) == 500
    assert "\x00" not in outcome.detail
    assert outcome.reason == "e" * 64
    assert outcome.attributes["model"] == "m" * 100


def test_counts_of_tokens_that_are_no_counts_are_left_out() -> None:
    attributes = RESEARCH | {"gen_ai.usage.input_tokens": -1, "gen_ai.usage.output_tokens": "many"}

    assert report(span(attributes)).attributes == {}


def test_the_names_of_older_instrumentations_are_read_too() -> None:
    attributes = RESEARCH | {
        "gen_ai.system": "openai",
        "gen_ai.usage.prompt_tokens": 5,
        "gen_ai.aggregated_usage.output_tokens": 7,
    }

    assert report(span(attributes)).attributes == {"provider": "openai", "input_tokens": 5, "output_tokens": 7}


def test_a_mapping_names_cost_quality_and_what_else_to_keep() -> None:
    mapping = SpanMapping(
        operation="invoke_agent", cost="llm.cost", quality="eval.score", keep=("cloud.region", "Queue-Depth", "cached")
    )
    attributes = RESEARCH | {
        "llm.cost": 0.25,
        "eval.score": 1,
        "cloud.region": "eu",
        "Queue-Depth": 7,
        "cached": True,
        "other": "left out",
    }

    outcome = report(span(attributes), mapping)

    assert (outcome.cost, outcome.quality) == (0.25, 1.0)
    assert outcome.attributes == {"cloud_region": "eu", "queue_depth": 7, "cached": "true"}


def test_an_outcome_without_the_mapped_cost_and_quality_is_one() -> None:
    outcome = report(span(), SpanMapping(operation="invoke_agent", cost="llm.cost", quality="eval.score"))

    assert (outcome.cost, outcome.quality) == (0.0, None)


@pytest.mark.parametrize(
    ("event", "resolved"),
    [
        (evaluation("treatment"), Resolved(version=3, variant="treatment")),
        (evaluation("in_force", **{"feature_flag.version": 4}), Resolved(version=4, variant="in_force")),
        # A version may be any text: then the arm alone is known.
        (evaluation("control", **{"feature_flag.version": "sha-9f2"}), Resolved(variant="control")),
        (evaluation("control", **{"feature_flag.version": "0"}), Resolved(variant="control")),
        (
            evaluation("control", **{"nautilus.experiment": "c#1"}),
            Resolved(version=3, variant="control", experiment="c#1"),
        ),
        (evaluation("control", **{"nautilus.experiment": "no id"}), Resolved(version=3, variant="control")),
        (evaluation("control", **{"nautilus.experiment": 7}), Resolved(version=3, variant="control")),
        (
            SpanEvent("feature_flag", {"feature_flag.key": builders.TIMEOUT, "feature_flag.variant": "control"}),
            Resolved(variant="control"),
        ),
        # Other systems' flags, and other events.
        (evaluation("treatment", **{"feature_flag.key": "dark_mode"}), None),
        (evaluation("on"), None),
        (evaluation("treatment")._replace(name="log"), None),
    ],
)
def test_an_evaluation_on_the_span_says_what_the_task_resolved(event: SpanEvent, resolved: Resolved | None) -> None:
    expected = {} if resolved is None else {builders.TIMEOUT: resolved}

    assert report(span(events=(event,))).resolved == expected


def test_an_evaluation_may_be_attributes_of_the_span() -> None:
    assert report(span({**RESEARCH, **evaluation("control").attributes})).resolved == {
        builders.TIMEOUT: Resolved(version=3, variant="control")
    }


def test_of_two_evaluations_the_first_is_what_the_task_started_with() -> None:
    outcome = report(span(events=(evaluation("control"), evaluation("treatment"))))

    assert outcome.resolved[builders.TIMEOUT].variant == "control"


MAPPED = SpanMapping(operation="invoke_agent", task_id="job.id", cost="llm.cost", quality="eval.score")
JOB = RESEARCH | {"job.id": "J-1"}


@pytest.mark.parametrize(
    ("came", "mappings", "expected"),
    [
        (span(ended_ns=0), (), "expected an end after the start"),
        (span(started_ns=ENDED_NS + 1), (), "expected an end after the start"),
        (span(ended_ns=2**64 - 1), (), "expected a finished_at that has passed"),
        (span(trace_id="0" * 32), (), f"expected a trace id of 32 hexadecimal digits, but '{'0' * 32}' came"),
        (span(span_id="abc"), (), "expected a span id of 16 hexadecimal digits, but 'abc' came"),
        (span(RESEARCH), (MAPPED,), "expected a task id in the attribute job.id, but there is none"),
        (span(RESEARCH | {"job.id": "not an id"}), (MAPPED,), "task_id: expected text like"),
        (
            span(JOB | {"llm.cost": "dear"}),
            (MAPPED,),
            "expected a number as cost in the attribute llm.cost, but 'dear'",
        ),
        (span(JOB | {"llm.cost": float("nan")}), (MAPPED,), "expected a number as cost"),
        (span(JOB | {"eval.score": True}), (MAPPED,), "expected a number as quality"),
        (span(JOB | {"eval.score": 5}), (MAPPED,), "quality: expected less than or equal to 1, but 5 came"),
    ],
)
def test_a_task_that_cannot_be_an_outcome_is_rejected_in_one_line(
    came: Span, mappings: tuple[SpanMapping, ...], expected: str
) -> None:
    line = rejection(came, *mappings)

    assert line.startswith(f"span {came.span_id} 'invoke_agent research_synthesis': ")
    assert expected in line


def test_a_rejected_span_does_not_keep_the_others_out() -> None:
    reported = reader().read([span(ended_ns=0), span()], builders.NOW)

    assert (len(reported.reports), len(reported.rejected)) == (1, 1)


VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(st.characters(), max_size=150),  # lone surrogates too
    st.sampled_from(["control", "timeout", "J-1", builders.TIMEOUT, "research_synthesis", "monte_carlo"]),
)
KEYS = [
    OPERATION,
    AGENT,
    TOOL,
    "gen_ai.request.model",
    "gen_ai.usage.input_tokens",
    "error.type",
    "exception.type",
    "exception.message",
    "feature_flag.key",
    "feature_flag.result.variant",
    "feature_flag.version",
    "feature_flag.context.id",
    "nautilus.experiment",
    "job.id",
    "llm.cost",
    "eval.score",
    "cloud.region",
]
SIMULATION: dict[str, AttributeValue] = {OPERATION: "execute_tool", TOOL: "monte_carlo"}
ATTRIBUTES = st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=10)), VALUES, max_size=12)
NAMES = st.one_of(st.sampled_from(["invoke_agent research_synthesis", "execute_tool monte_carlo", "job"]), st.text())
INSTANTS = st.one_of(st.integers(0, 2**64 - 1), st.integers(ENDED_NS - 10**10, ENDED_NS))
EVENTS = st.lists(
    st.builds(SpanEvent, st.sampled_from(["exception", "feature_flag.evaluation", "other"]), ATTRIBUTES), max_size=3
).map(tuple)
MESSAGES = st.text(st.characters(), max_size=20)
# Spans of which everything may be wrong, and tasks of which only attributes and events may be.
GARBAGE = st.builds(
    Span,
    trace_id=st.one_of(st.just(TRACE), st.text(max_size=40)),
    span_id=st.one_of(st.sampled_from([SPAN, PARENT]), st.text(max_size=20)),
    parent_id=st.sampled_from(["", SPAN, PARENT]),
    name=NAMES,
    started_ns=INSTANTS,
    ended_ns=INSTANTS,
    attributes=st.one_of(ATTRIBUTES, ATTRIBUTES.map(lambda drawn: drawn | SIMULATION)),
    events=EVENTS,
    status=st.sampled_from(SpanStatus),
    message=MESSAGES,
)
TASKS = st.builds(
    span,
    st.one_of(ATTRIBUTES, ATTRIBUTES.map(lambda drawn: {"llm.cost": 0.5} | drawn | {"job.id": "J-2", **SIMULATION})),
    name=st.sampled_from(["job", "execute_tool monte_carlo"]),
    span_id=st.integers(1, 2**64 - 1).map("{:016x}".format),
    events=EVENTS,
    status=st.sampled_from(SpanStatus),
    message=MESSAGES,
)
SPANS = st.lists(st.one_of(GARBAGE, TASKS), max_size=6)
GARBAGE_READER = reader(
    SpanMapping(name="job", task_id="job.id", cost="llm.cost", quality="eval.score", keep=("cloud.region", "job.id"))
)


@given(SPANS)
def test_whatever_spans_hold_every_task_is_a_valid_outcome_or_one_line(spans: list[Span]) -> None:
    reported = GARBAGE_READER.read(spans, builders.NOW)

    assert len(reported.reports) + len(reported.rejected) <= len(spans)
    for outcome in reported.reports:
        assert OutcomeReport.model_validate_json(outcome.model_dump_json(), strict=True) == outcome
        assert len(outcome.attributes) <= MOST_ATTRIBUTES
        assert outcome.failure is not None or outcome.reason == outcome.detail == ""
    for line in reported.rejected:
        assert line.isprintable()
        assert len(line) <= 300


@given(SPANS, st.randoms())
def test_an_outcome_depends_on_neither_order_nor_batch(spans: list[Span], chance: Any) -> None:
    together = GARBAGE_READER.read(spans, builders.NOW)
    shuffled = chance.sample(spans, len(spans))

    again = [GARBAGE_READER.read([came], builders.NOW) for came in shuffled]

    reports = [report for reported in again for report in reported.reports]
    assert sorted(map(repr, reports)) == sorted(map(repr, together.reports))
    assert sorted(line for reported in again for line in reported.rejected) == sorted(together.rejected)


# The declaration.
DECLARED = """
[[task_types]]
name = "research"

[[task_types.spans]]
name_prefix = "job "
task_id = "job.id"

[[task_types]]
name = "simulation"

[[task_types.spans]]
operation = "invoke_workflow"
when = { "workflow.kind" = "simulation", "retry" = 1 }
"""


def read(tmp_path: Path, content: str) -> Platform:
    path = tmp_path / "platform.toml"
    path.write_text(content)
    return read_platform(path)


def test_mappings_are_declared_with_their_task_type(tmp_path: Path) -> None:
    research, simulation = read(tmp_path, DECLARED).task_types

    assert research.spans == (SpanMapping(name_prefix="job ", task_id="job.id"),)
    assert simulation.spans[0].when == {"workflow.kind": "simulation", "retry": 1}


@pytest.mark.parametrize(
    ("was", "now", "line", "expected"),
    [
        ('task_id = "job.id"', 'task = "job.id"', 7, "expected a known key, but 'task' came; did you mean task_id?"),
        ('name_prefix = "job "', 'name_prefix = ""', 6, "expected text like"),
        ('name_prefix = "job "\n', "", 5, "expected at least one of operation, name, name_prefix, when"),
        ('name_prefix = "job "', 'name_prefix = "job "\nname = "job"', 7, "expected a name or a name_prefix, but both"),
        ('"job.id"', '"job id"', 7, "expected text like"),
        ('"retry" = 1', '"retry" = [1]', 14, "expected true or false, a number or text"),
        (
            'operation = "invoke_workflow"\nwhen = { "workflow.kind" = "simulation", "retry" = 1 }',
            'name_prefix = "job "',
            12,
            "expected every selection of spans once, but this one is already of task type research",
        ),
    ],
)
def test_a_mistake_in_a_mapping_has_its_line(tmp_path: Path, was: str, now: str, line: int, expected: str) -> None:
    assert was in DECLARED

    with pytest.raises(DeclarationError) as caught:
        read(tmp_path, DECLARED.replace(was, now, 1))

    (problem,) = caught.value.problems
    assert problem.line == line
    assert expected in problem.message


def test_the_page_s_declaration_maps_the_page_s_span(tmp_path: Path) -> None:
    (declaration,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    platform = read(tmp_path, declaration)
    job = span({"job.id": "J-17", "llm.cost_usd": 0.02, "cloud.region": "eu-west-1"}, name="job research 17")

    (outcome,) = SpanReader(platform).read([job], builders.NOW).reports

    assert (outcome.task_id, outcome.task_type, outcome.cost) == ("J-17", "research_synthesis", 0.02)
    assert outcome.attributes == {"cloud_region": "eu-west-1"}


def test_the_page_s_table_has_every_field_of_a_report() -> None:
    rows = [line.split("|")[1].strip(" `") for line in PAGE.splitlines() if line.startswith("| `")]

    assert set(rows) == set(OutcomeReport.model_fields)
