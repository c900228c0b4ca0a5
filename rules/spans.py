"""Spans of OpenTelemetry as outcomes of tasks: which spans are tasks, of which type, and how they went.

The names are those of the semantic conventions for GenAI agents, for errors, exceptions and feature flags. An outcome
is a function of its own span and the declaration: children arrive before their parents, in other batches, and a span
that is exported again must be the same outcome again.

Must never: raise on what a span holds. What cannot be an outcome is rejected with one line.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from rules.outcomes import contradiction
from schema.display import one_line
from schema.failure_kinds import FailureKind
from schema.messages.base import GREATEST_INTEGER, LATEST, Identifier
from schema.messages.observatory import LONGEST_ATTRIBUTE, MOST, detail_of, reason_of
from schema.messages.platform import Platform
from schema.messages.reports import OutcomeReport
from schema.messages.spans import SpanMapping
from schema.mistakes import in_one_line

AttributeValue = bool | int | float | str

INVOKE_AGENT, EXECUTE_TOOL = "invoke_agent", "execute_tool"
# What the agent or the tool of an operation is called.
NAMED_BY = {INVOKE_AGENT: "gen_ai.agent.name", EXECUTE_TOOL: "gen_ai.tool.name"}
TRACE_ID = "trace_id"
# Attributes of an outcome, and the attributes of a span that they are read from: the first that it has.
# `gen_ai.system` and the counts of prompt and completion are of older conventions, the last names are pydantic-ai's.
TEXTS = {
    "model": ("gen_ai.response.model", "gen_ai.request.model", "model_name"),
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "tool": ("gen_ai.tool.name",),
    "agent_version": ("gen_ai.agent.version",),
}
COUNTS = {
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "gen_ai.aggregated_usage.input_tokens"),
    "output_tokens": (
        "gen_ai.usage.output_tokens",
        "gen_ai.usage.completion_tokens",
        "gen_ai.aggregated_usage.output_tokens",
    ),
}
# An instrumentation's way to say that it has no error type.
NO_ERROR_TYPE = ("", "_OTHER")
# TimeoutError, SocketTimeoutException, ETIMEDOUT, DEADLINE_EXCEEDED, SoftTimeLimitExceeded; HTTP's 408 and 504.
_TIMEOUT = re.compile(
    r".*(timeout|timedout|deadlineexceeded|timelimitexceeded)(error|exception|expired|failure)?|408|504", re.IGNORECASE
)
# The second name is of older conventions.
EVALUATIONS = ("feature_flag.evaluation", "feature_flag")
# Ours, as the conventions have no name for it: `experiment` of a flag's metadata.
EXPERIMENT = "nautilus.experiment"
_ID = TypeAdapter[str](Identifier)
VARIANTS = frozenset({"control", "treatment", "in_force"})
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LATEST_NS = int((LATEST - EPOCH).total_seconds()) * 10**9
LONGEST_SHOWN = 60


class SpanStatus(IntEnum):
    """The codes of OTLP. Most instrumentations leave the status of a success unset."""

    UNSET = 0
    OK = 1
    ERROR = 2


class SpanEvent(NamedTuple):
    name: str
    attributes: Mapping[str, AttributeValue]


class Span(NamedTuple):
    """One span. Ids are hexadecimal, instants nanoseconds since 1970; `attributes` include those of the resource.

    Attributes that are no text, number or truth are left out.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, AttributeValue]
    events: tuple[SpanEvent, ...] = ()
    status: SpanStatus = SpanStatus.UNSET
    message: str = ""


class Reported(NamedTuple):
    """The outcomes that spans are, in their order, and a line for each task that could be none."""

    reports: list[OutcomeReport]
    rejected: list[str]


class SpanReader:
    """Reads the tasks among spans, as one declaration maps them.

    The first mapping that a span agrees with decides, in the order of the file. A task type without a mapping has the
    spans of the agent or the tool of its name: `Research Synthesis` and `research-synthesis` are research_synthesis.
    """

    def __init__(self, platform: Platform) -> None:
        self._mappings = [(mapping, declared.name) for declared in platform.task_types for mapping in declared.spans]
        self._names = {declared.name for declared in platform.task_types if not declared.spans}
        self._parameters = {
            declared.name: {p.key for p in platform.parameters if declared.name in p.task_types}
            for declared in platform.task_types
        }

    def read(self, spans: Iterable[Span], now: datetime) -> Reported:
        """The outcomes at `now` of the spans that are tasks; a span that is none is nothing."""
        reported = Reported([], [])
        for span in spans:
            mapping, task_type = self._mapped(span)
            if not task_type:
                continue
            try:
                reported.reports.append(self._report(span, mapping, task_type, now))
            except ValidationError as error:
                reported.rejected.append(_rejection(span, in_one_line(error)))
            except ValueError as error:
                reported.rejected.append(_rejection(span, str(error)))
        return reported

    def _mapped(self, span: Span) -> tuple[SpanMapping | None, str]:
        """The mapping of a span, if any, and its task type; the type is empty where the span is no task."""
        operation = operation_of(span)
        for mapping, task_type in self._mappings:
            if _agrees(span, operation, mapping):
                return mapping, task_type
        name = _type_name(_subject(span, operation))
        return None, name if name in self._names else ""

    def _report(self, span: Span, mapping: SpanMapping | None, task_type: str, now: datetime) -> OutcomeReport:
        """The outcome of a task's span; raises ValueError, of which a ValidationError has more than one line."""
        if not 0 < span.started_ns <= span.ended_ns < LATEST_NS:
            raise ValueError(f"expected an end after the start, but {span.started_ns} and {span.ended_ns} ns came")
        evaluations = _evaluations(span, self._parameters[task_type])
        failure, reason, detail = _failure(span)
        fields: dict[str, Any] = {
            "task_id": _task_id(span, mapping, evaluations),
            "task_type": task_type,
            "started_at": _instant(span.started_ns),
            "finished_at": _instant(span.ended_ns),
            "duration_s": (span.ended_ns - span.started_ns) / 1e9,
            "failure": failure,
            "agent_id": _agent_id(span),
            "reason": reason,
            "detail": detail,
            "attributes": _attributes(span, mapping),
            "resolved": _resolved(evaluations),
        }
        if mapping is not None:
            fields |= _measured(span, mapping)
        report = OutcomeReport.model_validate(fields)
        if (refusal := contradiction(report, now)) is not None:
            raise ValueError(refusal)
        return report


def operation_of(span: Span) -> str:
    """The GenAI operation of a span: its attribute, else the first word of a name like `invoke_agent research`."""
    declared = _text(span.attributes.get("gen_ai.operation.name"))
    first, _, _ = span.name.partition(" ")
    return declared or (first if first in NAMED_BY else "")


def _subject(span: Span, operation: str) -> str:
    """The name of the agent or the tool that a span is of; empty for any other span."""
    if operation not in NAMED_BY:
        return ""
    declared = _text(span.attributes.get(NAMED_BY[operation]))
    return declared or span.name.removeprefix(operation).strip()


def _type_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _agrees(span: Span, operation: str, mapping: SpanMapping) -> bool:
    if mapping.operation is not None and mapping.operation != operation:
        return False
    if mapping.name is not None and mapping.name != span.name:
        return False
    if mapping.name_prefix is not None and not span.name.startswith(mapping.name_prefix):
        return False
    return all(_is_same(span.attributes.get(key), value) for key, value in mapping.when.items())


def _is_same(came: AttributeValue | None, expected: AttributeValue) -> bool:
    """Whether two values are equal; in Python, 1 equals true."""
    return isinstance(came, bool) == isinstance(expected, bool) and came == expected


class _Evaluation(NamedTuple):
    """One evaluation of a parameter as a feature flag; `context_id` is the targeting key."""

    parameter: str
    variant: str
    version: int | None
    experiment: str | None
    context_id: str


def _evaluations(span: Span, parameters: Collection[str]) -> list[_Evaluation]:
    """What a span says of its task type's parameters; flags of other systems are none of them."""
    said = [event.attributes for event in span.events if event.name in EVALUATIONS]
    evaluations: list[_Evaluation] = []
    for attributes in (*said, span.attributes):
        parameter = _text(attributes.get("feature_flag.key"))
        variant = attributes.get("feature_flag.result.variant", attributes.get("feature_flag.variant"))
        if parameter not in parameters or variant not in VARIANTS:
            continue
        version = _version(attributes.get("feature_flag.version"))
        context_id = _text(attributes.get("feature_flag.context.id"))
        experiment = _experiment(attributes.get(EXPERIMENT))
        evaluations.append(_Evaluation(parameter, str(variant), version, experiment, context_id))
    return evaluations


def _version(came: AttributeValue | None) -> int | None:
    """A version of a parameter: the conventions have it as text, and other systems have no number."""
    text = _text(came)
    if not re.fullmatch(r"[0-9]{1,16}", text) or not 1 <= int(text) <= GREATEST_INTEGER:
        return None
    return int(text)


def _experiment(came: AttributeValue | None) -> str | None:
    """The id of an experiment; None where it can be no id."""
    try:
        return _ID.validate_python(came)
    except ValidationError:
        return None


def _resolved(evaluations: Iterable[_Evaluation]) -> dict[str, dict[str, Any]]:
    """What the task resolved, by parameter: the first evaluation is what it started with."""
    resolved: dict[str, dict[str, Any]] = {}
    for evaluation in evaluations:
        said = {"version": evaluation.version, "variant": evaluation.variant, "experiment": evaluation.experiment}
        resolved.setdefault(evaluation.parameter, said)
    return resolved


def _task_id(span: Span, mapping: SpanMapping | None, evaluations: Iterable[_Evaluation]) -> str:
    """The mapped attribute; else the key that the task's parameters were resolved for; else the span's own ids.

    A span without a parent is its whole trace. Raises ValueError where the mapped attribute is missing: another id
    would be no task that parameters were resolved for.
    """
    if mapping is not None and mapping.task_id is not None and mapping.task_id != TRACE_ID:
        declared = _text(span.attributes.get(mapping.task_id))
        if not declared:
            raise ValueError(f"expected a task id in the attribute {mapping.task_id}, but there is none")
        return declared
    for name, came, digits in (("trace id", span.trace_id, 32), ("span id", span.span_id, 16)):
        if not re.fullmatch(rf"(?!0+$)[0-9a-f]{{{digits}}}", came):
            raise ValueError(f"expected a {name} of {digits} hexadecimal digits, but {came[:LONGEST_SHOWN]!r} came")
    if mapping is not None and mapping.task_id == TRACE_ID:
        return span.trace_id
    keys = {evaluation.context_id for evaluation in evaluations} - {""}
    if len(keys) == 1:
        return keys.pop()
    return f"{span.trace_id}-{span.span_id}" if span.parent_id else span.trace_id


def _failure(span: Span) -> tuple[FailureKind | None, str, str]:
    """The kind of failure, its reason and its detail; of a success None and no more.

    An exception that was recorded and handled fails nothing: the status decides, or an error type where it is unset.
    """
    exceptions = [event.attributes for event in span.events if event.name == "exception"]
    exception = exceptions[-1] if exceptions else {}
    declared = _text(span.attributes.get("error.type"))
    if span.status is SpanStatus.OK or (span.status is SpanStatus.UNSET and not declared):
        return None, "", ""
    label = declared if declared not in NO_ERROR_TYPE else _text(exception.get("exception.type"))
    detail = span.message or _text(exception.get("exception.message"))
    kind = FailureKind.TIMEOUT if is_timeout(label) else FailureKind.ERROR
    return kind, reason_of(label), detail_of(detail)


def is_timeout(error_type: str) -> bool:
    """Whether an error type is of a time limit: the last part of its name ends like one of those that are known."""
    last = re.split(r"[.:/$]", error_type)[-1]
    return _TIMEOUT.fullmatch(re.sub(r"[^A-Za-z0-9]", "", last)) is not None


def _agent_id(span: Span) -> str:
    name = _text(span.attributes.get("gen_ai.agent.name")) or _text(span.attributes.get("gen_ai.agent.id"))
    return re.sub(r"[^ -~]", "?", name)[:200]


def _attributes(span: Span, mapping: SpanMapping | None) -> dict[str, float | str]:
    """The model, its provider and tokens, and what the mapping keeps; what no outcome can hold is left out."""
    attributes: dict[str, float | str] = {}
    for name, keys in TEXTS.items():
        texts = [_text(span.attributes.get(key)) for key in keys]
        if any(texts):
            attributes[name] = _shortened(next(filter(None, texts)))
    for name, keys in COUNTS.items():
        counts = [_count(span.attributes.get(key)) for key in keys]
        known = [count for count in counts if count is not None]
        if known:
            attributes[name] = known[0]
    for key in mapping.keep if mapping is not None else ():
        value = span.attributes.get(key)
        if isinstance(value, str):
            attributes[_kept_name(key)] = _shortened(value)
        elif isinstance(value, bool):
            attributes[_kept_name(key)] = str(value).lower()
        elif value is not None and -MOST <= value <= MOST:
            attributes[_kept_name(key)] = float(value)
    return attributes


def _kept_name(key: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", key.lower())


def _count(came: AttributeValue | None) -> float | None:
    if came is None or isinstance(came, bool | str) or not 0 <= came <= MOST:
        return None
    return float(came)


def _measured(span: Span, mapping: SpanMapping) -> dict[str, float]:
    """Cost and quality, where they are mapped and the span has them; raises ValueError for what is no number."""
    measured: dict[str, float] = {}
    for name, key in (("cost", mapping.cost), ("quality", mapping.quality)):
        came = span.attributes.get(key) if key is not None else None
        if came is None:
            continue
        if isinstance(came, bool | str) or not -MOST <= came <= MOST:
            raise ValueError(
                f"expected a number as {name} in the attribute {key}, but {str(came)[:LONGEST_SHOWN]!r} came"
            )
        measured[name] = came
    return measured


def _instant(ns: int) -> datetime:
    return EPOCH + timedelta(microseconds=ns // 1_000)


def _text(came: AttributeValue | None) -> str:
    """A value as text, as numbers of tasks and codes of errors come; empty where there is none."""
    return "" if came is None or isinstance(came, bool) else str(came)


def _shortened(text: str) -> str:
    return detail_of(text)[:LONGEST_ATTRIBUTE]


def _rejection(span: Span, mistake: str) -> str:
    return one_line(f"span {span.span_id[:16]} {span.name[:LONGEST_SHOWN]!r}: {mistake}", 300)
