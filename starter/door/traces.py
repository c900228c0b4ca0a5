"""OTLP over HTTP: reads a body of spans, and writes the answer. `rules.spans` decides what the spans are.

Bodies come from outside: what is too large, compressed or not, is refused before it is decoded, and a request has a
bounded number of spans. The format is the protocol's (opentelemetry-proto): protobuf, or JSON with ids in hexadecimal.

Must never: hold a rule, or know a store.
"""

import binascii
import json
import zlib
from base64 import b64encode
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from rules.spans import AttributeValue, Span, SpanEvent, SpanStatus
from schema.display import one_line

PROTOBUF, JSON = "application/x-protobuf", "application/json"
# What a sender compresses with; zlib tells the two apart by their first bytes.
COMPRESSED, PLAIN = ("gzip", "deflate"), ("", "identity")
EITHER_HEADER = zlib.MAX_WBITS | 32
# An empty span takes two bytes in a body and hundreds in memory. The SDK sends 512 at once, the Collector thousands.
MOST_SPANS = 20_000
# An empty event too, and the SDK keeps at most 128 of a span.
MOST_EVENTS = 200_000
# An attribute of OTLP's JSON has two in 36 bytes at least; a million empty lists take a second to make.
BYTES_PER_BRACKET, FEW_BRACKETS = 12, 50_000
IDS = ("traceId", "spanId", "parentSpanId")
LONGEST_MESSAGE = 500
STATUSES = {status.value: status for status in SpanStatus}


class BodyRefused(ValueError):
    """A body that cannot be taken; the text is one line, `status` the HTTP status: sending it again would not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read(body: bytes, content_type: str, content_encoding: str, most_bytes: int) -> list[Span]:
    """The spans of a request's body, of at most `most_bytes` once it is decompressed; raises BodyRefused."""
    media_type = media_type_of(content_type)
    request = _decoded(_plain(body, content_encoding, most_bytes), media_type)
    scopes = [scope for resource in request.resource_spans for scope in resource.scope_spans]
    count = sum(len(scope.spans) for scope in scopes)
    if count > MOST_SPANS:
        raise BodyRefused(413, f"expected at most {MOST_SPANS:,} spans in a request, but {count:,} came")
    events = sum(len(span.events) for scope in scopes for span in scope.spans)
    if events > MOST_EVENTS:
        raise BodyRefused(413, f"expected at most {MOST_EVENTS:,} events in a request, but {events:,} came")
    return list(_spans(request))


def respond(rejected: Sequence[str], content_type: str) -> bytes:
    """The answer to a request that was taken, in its own format; `rejected` has a line for each span that was not."""
    answer = ExportTraceServiceResponse()
    if rejected:
        more = f" (and {len(rejected) - 1:,} more)" if len(rejected) > 1 else ""
        answer.partial_success.rejected_spans = len(rejected)
        answer.partial_success.error_message = one_line(rejected[0], LONGEST_MESSAGE) + more
    if media_type_of(content_type) == JSON:
        return json_format.MessageToJson(answer, indent=None).encode()
    return answer.SerializeToString()


def refuse(detail: str, content_type: str) -> bytes:
    """The answer to a request that was refused: the protocol's Status, which is all that a Collector reads of it.

    The Status is google.rpc's. Of it the protocol uses the message alone, which a span's status has under the same
    number; so no other package is needed. Raises BodyRefused as `media_type_of` does.
    """
    if media_type_of(content_type) == JSON:
        return json.dumps({"message": detail}).encode()
    return trace_pb2.Status(message=detail).SerializeToString()


def media_type_of(content_type: str) -> str:
    """The media type of a request, and so of its answer; raises BodyRefused for one that is not of OTLP."""
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in (PROTOBUF, JSON):
        raise BodyRefused(415, f"expected the content type {PROTOBUF} or {JSON}, but {content_type[:100]!r} came")
    return media_type


def _plain(body: bytes, content_encoding: str, most_bytes: int) -> bytes:
    """The body without its compression; never holds more than one byte beyond the limit."""
    encoding = content_encoding.strip().lower()
    if encoding not in (*COMPRESSED, *PLAIN):
        raise BodyRefused(415, f"expected the content encoding gzip or none, but {content_encoding[:100]!r} came")
    content = body
    if encoding in COMPRESSED and len(body) <= most_bytes:
        content = _decompressed(body, encoding, most_bytes + 1)
    if len(content) > most_bytes:
        raise BodyRefused(413, f"expected a body of at most {most_bytes:,} bytes, but a larger one came")
    return content


def _decompressed(body: bytes, encoding: str, most_bytes: int) -> bytes:
    """The first `most_bytes` of a compressed body."""
    stream = zlib.decompressobj(EITHER_HEADER)
    try:
        content = stream.decompress(body, most_bytes)
    except zlib.error as error:
        raise BodyRefused(400, f"expected a body in {encoding}, but {error}") from None
    # Many streams in one body could take much longer to read than one, and no exporter sends them.
    if len(content) < most_bytes and (not stream.eof or stream.unused_data):
        raise BodyRefused(400, f"expected a body in {encoding} that ends with its stream, but it does not")
    return content


def _decoded(body: bytes, media_type: str) -> ExportTraceServiceRequest:
    try:
        if media_type == JSON:
            return json_format.ParseDict(_standard_json(body), ExportTraceServiceRequest(), ignore_unknown_fields=True)
        return ExportTraceServiceRequest.FromString(body)
    # SystemError: what protobuf's C code raises for an enum's name that has half of a surrogate pair.
    except (DecodeError, json_format.Error, ValueError, TypeError, RecursionError, SystemError) as error:
        what = "JSON" if media_type == JSON else "protobuf"
        mistake = one_line(str(error), 200) or type(error).__name__
        raise BodyRefused(400, f"expected spans as {what} of OTLP, but they cannot be read: {mistake}") from None


def _standard_json(body: bytes) -> dict[str, Any]:
    """A request as protobuf's own JSON has it: with ids in base64. Raises ValueError."""
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > max(FEW_BRACKETS, len(body) // BYTES_PER_BRACKET):
        raise ValueError(f"expected spans with attributes, but {brackets:,} opening brackets came")
    content = json.loads(body)
    if not isinstance(content, dict):
        raise ValueError(f"expected an object, but a {type(content).__name__} came")
    for resource in _objects(content, "resourceSpans"):
        for scope in _objects(resource, "scopeSpans"):
            for span in _objects(scope, "spans"):
                span.pop("links", None)  # whose ids are in hexadecimal too, and which no outcome is about
                _encode_ids(span)
    return content


def _objects(parent: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The objects of a list; anything else is left to be refused by its kind."""
    children = parent.get(key)
    for child in children if isinstance(children, list) else ():
        if isinstance(child, dict):
            yield child


def _encode_ids(span: dict[str, Any]) -> None:
    for name in IDS:
        if name not in span or span[name] is None:
            continue
        try:
            span[name] = b64encode(bytes.fromhex(span[name])).decode()
        except (TypeError, ValueError, binascii.Error):
            raise ValueError(f"expected a {name} in hexadecimal, but {str(span[name])[:60]!r} came") from None


def _spans(request: ExportTraceServiceRequest) -> Iterator[Span]:
    for resource in request.resource_spans:
        of_all = dict(_attributes(resource.resource.attributes))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield _span(span, of_all)


def _span(span: trace_pb2.Span, of_all: dict[str, AttributeValue]) -> Span:
    events = [SpanEvent(event.name, dict(_attributes(event.attributes))) for event in span.events]
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        started_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        # Not copied: a resource with thousands of attributes may have thousands of spans.
        attributes=ChainMap(dict(_attributes(span.attributes)), of_all),
        events=tuple(events),
        status=STATUSES.get(span.status.code, SpanStatus.UNSET),
        message=span.status.message,
    )


def _attributes(pairs: Iterable[KeyValue]) -> Iterator[tuple[str, AttributeValue]]:
    """The attributes that are a text, a number or a truth."""
    for pair in pairs:
        value = pair.value
        match value.WhichOneof("value"):
            case "string_value":
                yield pair.key, value.string_value
            case "bool_value":
                yield pair.key, value.bool_value
            case "int_value":
                yield pair.key, value.int_value
            case "double_value":
                yield pair.key, value.double_value
