"""Requests through a real door: OFREP, outcomes, OTLP and MCP, with bodies and heads that no client would write.

One after another, so that what a refused request has written is seen at once.
"""

import gzip
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from random import Random
from time import perf_counter
from typing import Any

import httpx

from benchmarks.fuzz import hostile, samples
from benchmarks.fuzz.stage import Door, Stage
from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.targets import check_line, spoil_bytes, spoil_gzip
from benchmarks.fuzz.targets import protobuf as protobuf_sample
from starter.door.traces import JSON, PROTOBUF

LONGEST_S = 30.0
# A share of the requests is no HTTP, or hardly.
RAW_SHARE = 0.05
LARGEST_PEAK_MB = 1_000
OFREP, OUTCOMES, TRACES, MCP = "/ofrep/v1/evaluate/flags", "/v1/outcomes", "/v1/traces", "/mcp"
HEADS = (
    "{} HTTP/9.9",
    "{} HTTP/1.1\r\nTransfer-Encoding: chunked",
    "{} HTTP/1.1\r\nContent-Length: -1",
    "{} HTTP/1.1\r\nContent-Length: 10\r\nContent-Length: 20",
    "{} HTTP/1.1\r\nX: " + "x" * 70_000,
    "{} HTTP/1.1\r\nX-\x00: y",
    "{}\x00 HTTP/1.1",
    "{}" + "/x" * 20_000 + " HTTP/1.1",
    "{} HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
)
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW")
# What an answer may be: anything else is a defect.
ACCEPTED, REFUSED = (
    frozenset({200, 202, 304}),
    frozenset({400, 401, 403, 404, 405, 406, 408, 411, 413, 415, 421, 422, 429, 431}),
)

Request = dict[str, Any]


class Http:
    """Sends requests to one door, and counts what became of them."""

    def __init__(self, stage: Stage, door: Door, name: str, key: str, dice: int) -> None:
        self.stage = stage
        self.door = door
        self.tally = Tally(name)
        self.rng = Random(f"{name} {dice}")
        self.client = httpx.Client(base_url=door.url, headers={"X-API-Key": key}, timeout=LONGEST_S)

    def send_all(self, count: int, path: str, made: Callable[[Random], Request]) -> Tally:
        """Send so many requests."""
        with self.client:
            for _ in range(count):
                self.tally.sent += 1
                before = self.stage.rows()
                began = perf_counter()
                if self.rng.random() < RAW_SHARE:
                    self._raw(path)
                    is_accepted = False
                else:
                    is_accepted = self._send(path, made(self.rng))
                self.tally.slowest_s = max(self.tally.slowest_s, round(perf_counter() - began, 3))
                if not is_accepted and (after := self.stage.rows()) != before:
                    self.tally.written += 1
                    self.tally.example(f"a refused request has written: {set(after.items()) - set(before.items())}")
        if not self.door.is_alive():
            self.tally.crashed += 1
            self.tally.example("the door does not answer any more")
        if self.door.peak_mb() > LARGEST_PEAK_MB:
            self.tally.crashed += 1
            self.tally.example(f"the door has had {self.door.peak_mb():,} MB")
        return self.tally

    def _send(self, path: str, request: Request) -> bool:
        """Whether a request was accepted."""
        address = path + request.pop("more_path", "")
        try:
            response = self.client.request(request.pop("method", "POST"), address, **request)
        except httpx.TimeoutException:
            self.tally.stalled += 1
            self.tally.example(f"no answer within {LONGEST_S:g} s to {str(request)[:300]}")
            return False
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            self.tally.refused += 1  # the connection was closed: no HTTP
            return False
        if response.status_code in ACCEPTED:
            return self._judge_answer(response)
        if response.status_code not in REFUSED:
            self.tally.crashed += 1
            self.tally.example(f"{response.status_code} {response.text[:200]!r} for {str(request)[:300]}")
            return False
        self._refuse(_line(response))
        return False

    def _judge_answer(self, response: httpx.Response) -> bool:
        """Whether an answer of 2xx accepts: MCP refuses in its own form."""
        error = _error_of_mcp(response)
        if error is None:
            self.tally.accepted += 1
            return True
        self._refuse(error)
        return False

    def _refuse(self, line: str) -> None:
        self.tally.refused += 1
        try:
            check_line(line)
        except AssertionError as unclear:
            self.tally.unclear += 1
            self.tally.example(str(unclear))

    def _raw(self, path: str) -> None:
        """Send what is no HTTP, or a head without its body; a closed connection is a refusal."""
        head = self.rng.choice(HEADS).format(f"POST {path}")
        content = f"{head}\r\nHost: door\r\nX-API-Key: {self.client.headers['X-API-Key']}\r\n\r\n".encode("latin-1")
        if self.rng.randrange(3) == 0:
            content = hostile.damaged(content, self.rng)
        with socket.create_connection(("127.0.0.1", self.door.port), 5) as connection:
            connection.settimeout(0.5)  # what is not whole yet is waited for, and is given up here
            try:
                connection.sendall(content)
                answer = connection.recv(65_536)
            except OSError:  # a time-out too
                answer = b""
        if b" 500 " in answer.partition(b"\r\n")[0]:
            self.tally.crashed += 1
            self.tally.example(f"{answer[:200]!r} for {content[:200]!r}")
        else:
            self.tally.refused += 1


def _line(response: httpx.Response) -> str:
    """The line with which a request was refused, in whichever form."""
    media_type = response.headers.get("content-type", "").partition(";")[0]
    if media_type == PROTOBUF:
        from opentelemetry.proto.trace.v1.trace_pb2 import Status

        return str(Status.FromString(response.content).message)
    if not media_type.endswith("json") or not response.content:
        return response.text or response.reason_phrase
    document = response.json()
    if "error" in document:
        return str(document["error"]["message"])
    return str(document.get("detail") or document.get("errorDetails") or document.get("message") or "")


def _error_of_mcp(response: httpx.Response) -> str | None:
    """The line with which MCP refuses within an answer of 200, or None."""
    if response.request.url.path != MCP or not response.content:
        return None
    document = response.json()
    answers = document if isinstance(document, list) else [document]
    for answer in answers:
        if "error" in answer:
            return str(answer["error"]["message"])
        result = answer.get("result", {})
        if result.get("isError"):
            return str(result["content"][0]["text"])
    return None


def _anyhow(rng: Random, request: Request) -> Request:
    """The same by another method, with another type or to another path, now and then."""
    match rng.randrange(40):
        case 0:
            request["method"] = rng.choice(METHODS)
        case 1:
            request.setdefault("headers", {})["Content-Type"] = rng.choice(
                ("", "text/html", "a/b;" + "c" * 5_000, "application/json;charset=utf-16")
            )
        case 2:
            request.setdefault("headers", {})["Content-Encoding"] = rng.choice(("gzip", "br", "x" * 300, "gzip, gzip"))
        case 3:
            request["more_path"] = rng.choice(
                ("/", "/../../etc/passwd", "/%00", "/%2e%2e/", "?" + "a=b&" * 2_000, "/" + "x" * 3_000)
            )
    return request


def _of_json(document: Any, rng: Random) -> bytes:
    return hostile.written(hostile.spoilt(document, rng), rng)


def evaluation(rng: Random) -> Request:
    """OFREP: one flag, or all."""
    body = {"context": {"targetingKey": f"task-{rng.randrange(9)}", "task_type": samples.TASK_TYPE, "user": {"id": 7}}}
    request: Request = {"content": _of_json(body, rng)}
    if rng.randrange(2):
        key = rng.choice(
            (samples.PARAMETER, "nobody.declared", "%00", "%F0%9F%A6%91", "x" * 2_000, "..%2f", "%0d%0aX:1")
        )
        request["more_path"] = f"/{key}"
    return _anyhow(rng, request)


def outcomes(rng: Random) -> Request:
    """A batch of outcomes, or a body of up to four megabytes of mistakes."""
    now = datetime.now(UTC)
    reports = [samples.report(f"task-{rng.randrange(10**6)}", now) for _ in range(rng.choice((1, 2, 5)))]
    content = _of_json({"outcomes": [report.model_dump(mode="json") for report in reports]}, rng)
    if rng.randrange(100) == 0:
        content = (
            b'{"outcomes":[' + rng.choice((b"{}", b"[]", b'{"a":0,"b":1}', b"0")) * rng.choice((1, 200_000)) + b"]}"
        )
    return _anyhow(rng, {"content": content, "headers": {"Content-Type": "application/json"}})


def spans(rng: Random) -> Request:
    """An export of spans, as JSON, protobuf, or gzip of either."""
    now = datetime.now(UTC)
    match rng.randrange(3):
        case 0:
            return _anyhow(rng, {"content": _of_json(samples.export(now), rng), "headers": {"Content-Type": JSON}})
        case 1:
            content = spoil_bytes(protobuf_sample(), rng)
            return _anyhow(rng, {"content": content, "headers": {"Content-Type": PROTOBUF}})
    packed = spoil_gzip(gzip.compress(protobuf_sample()), rng)
    return _anyhow(rng, {"content": packed, "headers": {"Content-Type": PROTOBUF, "Content-Encoding": "gzip"}})


def mcp_call(stage: Stage) -> Callable[[Random], Request]:
    """Makes calls of tools, which are about the cycle and the task that run."""
    places = {"cycle": stage.cycle, "task": stage.task}

    def call(rng: Random) -> Request:
        name, arguments = rng.choice(samples.calls())
        if "workflow_id" in arguments:
            arguments = arguments | {"workflow_id": places[str(arguments["workflow_id"]).partition(":")[0]]}
        params = {"name": name, "arguments": arguments}
        document = {"jsonrpc": "2.0", "id": rng.randrange(10**6), "method": "tools/call", "params": params}
        if rng.randrange(5) == 0:
            document["method"] = rng.choice(
                ("tools/list", "initialize", "ping", "resources/list", "x" * 500, "notifications/x")
            )
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        return _anyhow(rng, {"content": _of_json(document, rng), "headers": headers})

    return call


def through_http(stage: Stage, door: Door, count: int, dice: int) -> Iterator[Tally]:
    """The rows of the four doors that are HTTP's."""
    platform, agent = door.platform_key, door.agent_key
    yield Http(stage, door, "OFREP", platform, dice).send_all(count, OFREP, evaluation)
    yield Http(stage, door, "outcomes", platform, dice).send_all(count, OUTCOMES, outcomes)
    yield Http(stage, door, "OTLP", platform, dice).send_all(count, TRACES, spans)
    yield Http(stage, door, "MCP", agent, dice).send_all(count, MCP, mcp_call(stage))
