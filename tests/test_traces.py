"""OTLP over HTTP: what an unmodified SDK sends becomes outcomes, and no body can do more than be refused in a line."""

import gzip
import json
import re
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as ProtoSpan
from opentelemetry.sdk._configuration import _get_exporter_names
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import Tracer, set_span_in_context
from pydantic_ai import Agent, InstrumentationSettings
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.test import TestModel

from rules.spans import Reported, SpanReader
from schema.failure_kinds import FailureKind
from schema.messages.reports import OutcomeReport, Resolved
from schema.messages.spans import SpanMapping
from starter.door.traces import JSON, MOST_EVENTS, MOST_SPANS, PROTOBUF, BodyRefused, media_type_of, read, respond
from tests import builders

MOST_BYTES = 1_000_000
READER = SpanReader(builders.platform())


class Collector(ThreadingHTTPServer):
    """A server as the door is one: reads, maps, answers. Keeps the bodies and what they were."""

    def __init__(self, reader: SpanReader) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reader = reader
        self.bodies: list[tuple[bytes, str]] = []
        self.answers: list[ExportTraceServiceResponse] = []
        self.reported: list[Reported] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/traces"

    @property
    def reports(self) -> list[OutcomeReport]:
        return [report for reported in self.reported for report in reported.reports]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        content_type = self.headers["Content-Type"]
        encoding = self.headers.get("Content-Encoding", "")
        reported = self.server.reader.read(read(body, content_type, encoding, MOST_BYTES), datetime.now(UTC))
        answer = respond(reported.rejected, content_type)
        self.server.bodies.append((body, encoding))
        self.server.reported.append(reported)
        self.server.answers.append(ExportTraceServiceResponse.FromString(answer))
        self.send_response(200)
        self.send_header("Content-Type", media_type_of(content_type))
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def collector(reader: SpanReader = READER) -> Iterator[Collector]:
    server = Collector(reader)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def exporting(server: Collector, compression: Compression = Compression.NoCompression) -> Iterator[TracerProvider]:
    """The unmodified SDK, whose exporter sends every span to the server."""
    provider = TracerProvider(resource=Resource({"service.name": "desk", "cloud.region": "eu"}), shutdown_on_exit=False)
    exporter = OTLPSpanExporter(endpoint=server.endpoint, compression=compression)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    try:
        yield provider
    finally:
        provider.shutdown()


@contextmanager
def traced(server: Collector, compression: Compression = Compression.NoCompression) -> Iterator[Tracer]:
    with exporting(server, compression) as provider:
        yield provider.get_tracer("tests")


AGENT: dict[str, Any] = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "research_synthesis"}
TOOL: dict[str, Any] = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "monte_carlo"}


def work(tracer: Tracer) -> None:
    """A tool that runs into its limit, within an agent that resolves a parameter and answers all the same."""
    with (
        tracer.start_as_current_span("POST /ask"),
        tracer.start_as_current_span("invoke_agent", attributes=AGENT) as agent,
    ):
        evaluated = {"feature_flag.key": builders.TIMEOUT, "feature_flag.result.variant": "treatment"}
        agent.add_event("feature_flag.evaluation", evaluated | {"feature_flag.version": 3})
        agent.set_attributes({"gen_ai.request.model": "gpt-4", "gen_ai.usage.output_tokens": 97})
        with tracer.start_as_current_span("chat gpt-4", attributes={"gen_ai.operation.name": "chat"}):
            pass
        with pytest.raises(TimeoutError), tracer.start_as_current_span("execute_tool", attributes=TOOL):
            raise TimeoutError("no answer within 5 s")


@pytest.mark.parametrize("compression", list(Compression))
def test_what_the_sdk_exports_becomes_outcomes(compression: Compression) -> None:
    before = datetime.now(UTC)

    with collector() as server, traced(server, compression) as tracer:
        work(tracer)

    tool, agent = server.reports
    assert (tool.task_type, tool.failure, tool.reason) == ("monte_carlo", FailureKind.TIMEOUT, "TimeoutError")
    assert "no answer within 5 s" in tool.detail
    assert (agent.task_type, agent.failure) == ("research_synthesis", None)
    assert agent.attributes == {"model": "gpt-4", "output_tokens": 97}
    assert agent.resolved == {builders.TIMEOUT: Resolved(version=3, variant="treatment")}
    assert before - timedelta(seconds=1) <= agent.started_at <= tool.started_at <= tool.finished_at <= agent.finished_at
    (encoding,) = {encoding for _, encoding in server.bodies}
    assert encoding == ("" if compression is Compression.NoCompression else compression.value)


async def test_an_agent_of_a_framework_reports_its_tasks_without_a_line_of_ours() -> None:
    def monte_carlo(samples: int) -> str:
        raise TimeoutError(f"{samples} samples took too long")

    with collector() as server, exporting(server) as provider:
        instrumentation = Instrumentation(InstrumentationSettings(tracer_provider=provider))
        agent = Agent(TestModel(), name="research_synthesis", tools=[monte_carlo], capabilities=[instrumentation])
        with pytest.raises(TimeoutError):
            await agent.run("How do cursors work?")

    tool, task = server.reports
    assert (tool.task_type, tool.failure, tool.agent_id) == ("monte_carlo", FailureKind.TIMEOUT, "research_synthesis")
    assert (task.task_type, task.failure, task.reason) == ("research_synthesis", FailureKind.TIMEOUT, "TimeoutError")
    assert task.attributes.keys() == {"model", "input_tokens", "output_tokens"}


def test_the_same_export_twice_is_the_same_outcomes() -> None:
    with collector() as server, traced(server) as tracer:
        work(tracer)
        first = list(server.reports)
        for body, encoding in list(server.bodies):
            server.reported.append(READER.read(read(body, PROTOBUF, encoding, MOST_BYTES), datetime.now(UTC)))

    assert len(first) == 2
    assert server.reports == first + first


def test_a_task_that_cannot_be_an_outcome_is_counted_in_the_answer() -> None:
    research, simulation = builders.platform().task_types
    mapped = research.model_copy(update={"spans": (SpanMapping(operation="invoke_agent", task_id="job.id"),)})
    reader = SpanReader(builders.platform(task_types=(mapped, simulation)))

    with collector(reader) as server, traced(server) as tracer:
        work(tracer)

    rejected = [answer.partial_success for answer in server.answers if answer.partial_success.rejected_spans]
    assert [partial.rejected_spans for partial in rejected] == [1]
    assert "expected a task id in the attribute job.id, but there is none" in rejected[0].error_message
    # Spans that are no tasks are taken without a word.
    assert len(server.answers) == 4


def test_a_task_s_resource_can_be_selected_and_kept() -> None:
    research, _ = builders.platform().task_types
    mapping = SpanMapping(when={"service.name": "desk"}, name="POST /ask", keep=("cloud.region",))
    reader = SpanReader(builders.platform(task_types=(research.model_copy(update={"spans": (mapping,)}),)))

    with collector(reader) as server, traced(server) as tracer:
        work(tracer)

    (outcome,) = server.reports
    assert outcome.attributes == {"cloud_region": "eu"}


def test_the_exporter_takes_the_answer_for_a_success() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    root = provider.get_tracer("tests").start_span("root", attributes=AGENT)
    child = provider.get_tracer("tests").start_span("child", context=set_span_in_context(root), attributes=TOOL)
    child.end()
    root.end()

    with collector() as server:
        exporter = OTLPSpanExporter(endpoint=server.endpoint)
        result = exporter.export([child, root])  # type: ignore[list-item]  # an SDK's span can be read

    exporter.shutdown()  # type: ignore[no-untyped-call]
    assert result is SpanExportResult.SUCCESS
    assert [report.task_type for report in server.reports] == ["monte_carlo", "research_synthesis"]
    assert ["-" in report.task_id for report in server.reports] == [True, False]


def as_json(body: bytes) -> dict[str, Any]:
    """A request as an exporter of JSON sends it: ids in hexadecimal, 64-bit integers as text, enums as numbers."""
    request = ExportTraceServiceRequest.FromString(body)
    content: dict[str, Any] = json_format.MessageToDict(request, use_integers_for_enums=True)
    spans = zip(_json_spans(content), _proto_spans(request), strict=True)
    for written, span in spans:
        written |= {"traceId": span.trace_id.hex().upper(), "spanId": span.span_id.hex()}
        if span.parent_span_id:
            written["parentSpanId"] = span.parent_span_id.hex()
    return content


def _json_spans(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in content["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            yield from scope["spans"]


def _proto_spans(request: ExportTraceServiceRequest) -> Iterator[ProtoSpan]:
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            yield from scope.spans


def test_json_and_protobuf_are_the_same_spans() -> None:
    with collector() as server, traced(server) as tracer:
        work(tracer)

    for body, _ in server.bodies:
        content = as_json(body)
        (written,) = _json_spans(content)
        # pragma: allowlist nextline secret
        written |= {"fieldOfALaterVersion": {"a": 1}, "links": [{"traceId": "5b8efff798038103d269b633813fc60c"}]}
        assert isinstance(written["startTimeUnixNano"], str)
        assert read(json.dumps(content).encode(), "Application/JSON; charset=utf-8", "", MOST_BYTES) == read(
            body, PROTOBUF, "identity", MOST_BYTES
        )


def test_the_protocol_s_own_example_is_read() -> None:
    example = {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "my.service"}}]},
                "scopeSpans": [
                    {
                        "scope": {"name": "my.library", "version": "1.0.0", "attributes": []},
                        "spans": [
                            {
                                "traceId": "5B8EFFF798038103D269B633813FC60C",  # pragma: allowlist secret
                                "spanId": "EEE19B7EC3C1B174",
                                "parentSpanId": "EEE19B7EC3C1B173",
                                "name": "I'm a server span",
                                "startTimeUnixNano": "1544712660000000000",
                                "endTimeUnixNano": 1544712661000000000,
                                "kind": 2,
                                "attributes": [
                                    {"key": "my.int", "value": {"intValue": "7"}},
                                    {"key": "my.list", "value": {"arrayValue": {"values": [{"intValue": 1}]}}},
                                ],
                                "status": {"code": 2, "message": "broken"},
                            }
                        ],
                    }
                ],
            }
        ]
    }

    (span,) = read(json.dumps(example).encode(), JSON, "", MOST_BYTES)

    assert (span.trace_id, span.span_id) == ("5b8efff798038103d269b633813fc60c", "eee19b7ec3c1b174")
    assert span.ended_ns - span.started_ns == 10**9
    assert (span.status, span.message) == (2, "broken")
    assert span.attributes == {"service.name": "my.service", "my.int": 7}


def refusal(
    body: bytes, content_type: str = PROTOBUF, encoding: str = "", most_bytes: int = MOST_BYTES
) -> tuple[int, str]:
    with pytest.raises(BodyRefused) as caught:
        read(body, content_type, encoding, most_bytes)
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) < 400
    return caught.value.status, line


def many(spans: int) -> bytes:
    scope = ScopeSpans(spans=[ProtoSpan()] * spans)
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[scope])]).SerializeToString()


def events(number: int) -> bytes:
    scope = ScopeSpans(spans=[ProtoSpan(events=[ProtoSpan.Event()] * number)])
    return ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[scope])]).SerializeToString()


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "status", "expected"),
    [
        (b"\xff\xff", PROTOBUF, "", 400, "expected spans as protobuf of OTLP, but they cannot be read"),
        (b"{", JSON, "", 400, "expected spans as JSON of OTLP, but they cannot be read"),
        (b"", JSON, "", 400, "expected spans as JSON of OTLP"),
        (b"\xff", JSON, "", 400, "expected spans as JSON of OTLP"),
        (b"[]", JSON, "", 400, "expected an object, but a list came"),
        (b'{"resourceSpans": 3}', JSON, "", 400, "expected spans as JSON of OTLP"),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [7]}]}]}', JSON, "", 400, "expected spans as JSON of OTLP"),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "W47/95gDgQPSabYzgT/GDA=="}]}]}]}',
            JSON,
            "",
            400,
            "expected a traceId in hexadecimal, but 'W47/95gDgQPSabYzgT/GDA==' came",
        ),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"spanId": 7}]}]}]}', JSON, "", 400, "expected a spanId in"),
        (b'{"a":' * 100_000, JSON, "", 400, "expected spans as JSON of OTLP"),
        (many(1), "text/plain", "", 415, "expected the content type application/x-protobuf or application/json"),
        (many(1), "", "", 415, "but '' came"),
        (many(1), PROTOBUF, "br", 415, "expected the content encoding gzip or none, but 'br' came"),
        (many(1), PROTOBUF, "gzip", 400, "expected a body in gzip, but"),
        (
            gzip.compress(many(9), mtime=0)[:-4],
            PROTOBUF,
            "gzip",
            400,
            "expected a body in gzip that ends with its stream",
        ),
        (
            gzip.compress(many(9), mtime=0) * 2,
            PROTOBUF,
            "gzip",
            400,
            "expected a body in gzip that ends with its stream",
        ),
        (b"", PROTOBUF, "gzip", 400, "expected a body in gzip that ends with its stream"),
        (many(MOST_SPANS + 1), PROTOBUF, "", 413, "expected at most 20,000 spans in a request, but 20,001 came"),
        (b"x" * (MOST_BYTES + 1), PROTOBUF, "", 413, "expected a body of at most 1,000,000 bytes"),
        (events(MOST_EVENTS + 1), PROTOBUF, "", 413, "expected at most 200,000 events in a request, but 200,001 came"),
        (
            b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"kind": "\\ud800"}]}]}]}',
            JSON,
            "",
            400,
            "expected spans as JSON of OTLP, but they cannot be read",
        ),
    ],
)
def test_a_body_that_is_no_spans_is_refused_in_one_line(
    body: bytes, content_type: str, encoding: str, status: int, expected: str
) -> None:
    came, line = refusal(body, content_type, encoding)

    assert came == status
    assert expected in line


def test_the_limit_is_of_the_body_once_it_is_decompressed() -> None:
    body = many(1_000)

    assert len(read(gzip.compress(body, mtime=0), PROTOBUF, "gzip", len(body))) == 1_000
    assert len(read(zlib.compress(body), PROTOBUF, "deflate", len(body))) == 1_000
    assert refusal(gzip.compress(body, mtime=0), PROTOBUF, "gzip", len(body) - 1)[0] == 413


def test_a_zip_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(200_000_000), mtime=0)
    assert len(bomb) < MOST_BYTES

    tracemalloc.start()
    try:
        status, _ = refusal(bomb, PROTOBUF, "gzip")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert status == 413
    assert peak < 10 * MOST_BYTES


def test_a_resource_is_kept_once_however_many_spans_it_has() -> None:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    for number in range(1_000):
        resource.resource.attributes.add(key=f"a{number}").value.int_value = number
    spans = resource.scope_spans.add().spans
    for _ in range(2_000):
        spans.add().attributes.add(key="a7").value.int_value = -1
    body = request.SerializeToString()

    tracemalloc.start()
    try:
        came = read(body, PROTOBUF, "", MOST_BYTES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(came) == 2_000
    assert (came[0].attributes["a7"], came[0].attributes["a8"]) == (-1, 8)
    assert peak < 10 * MOST_BYTES


def test_a_body_without_spans_is_taken() -> None:
    assert read(b"", PROTOBUF, "", MOST_BYTES) == []
    assert read(b"{}", JSON, "", MOST_BYTES) == []


def test_the_answer_is_in_the_format_of_the_request() -> None:
    lines = ["span 1: expected one\nthing", "span 2"]
    told = {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "span 1: expected one thing (and 1 more)"}}

    assert json.loads(respond([], JSON)) == {}
    assert respond([], PROTOBUF) == b""
    assert json.loads(respond(lines, JSON)) == told
    assert json_format.MessageToDict(ExportTraceServiceResponse.FromString(respond(lines, PROTOBUF))) == told


WITHIN = ["key", "value", "stringValue", "intValue"]
VALUES = st.recursive(
    # pragma: allowlist nextline secret
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("5b8efff798038103"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["key", "value", "stringValue"]), inner)
    ),
    max_leaves=6,
)
FIELDS = ["traceId", "spanId", "name", "startTimeUnixNano", "attributes", "events", "status", "kind", "links"]
REQUESTS = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(FIELDS), VALUES).map(
        lambda span: {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}
    ),
    st.dictionaries(st.sampled_from(["resourceSpans", "resource_spans"]), VALUES),
)


def reading(body: bytes, content_type: str, encoding: str = "") -> Reported | str:
    """What a body's spans are, or the line that refuses it; anything else is raised."""
    try:
        spans = read(body, content_type, encoding, MOST_BYTES)
    except BodyRefused as refused:
        return str(refused)
    return READER.read(spans, builders.NOW)


@given(REQUESTS)
def test_any_json_is_read_or_refused(content: Any) -> None:
    came = reading(json.dumps(content).encode(), JSON)

    assert isinstance(came, Reported) or came.startswith("expected spans as JSON of OTLP, but they cannot be read: ")


@given(st.binary(max_size=200), st.sampled_from(["", "gzip", "deflate"]))
def test_any_bytes_are_read_or_refused(body: bytes, encoding: str) -> None:
    came = reading(body, PROTOBUF, encoding)

    assert isinstance(came, Reported) or (came.startswith("expected ") and came.isprintable())


def test_the_page_s_variables_have_an_sdk_that_would_send_grpc_send_http(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "telemetry.md").read_text(encoding="utf-8")
    variables = dict(re.findall(r"^    export (\w+)=(.+)$", page, re.MULTILINE))
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")  # what `opentelemetry-instrument` sets
    by_default = _get_exporter_names("traces")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert by_default == ["otlp_proto_grpc"]
    assert _get_exporter_names("traces") == ["otlp_proto_http"]
    assert len(variables) == 3
