"""Targets: everything that reads bytes from outside, with the error by which it refuses, and valid samples for it."""

import gzip
import io
import json
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from pydantic import BaseModel, ValidationError
from temporalio.api.common.v1 import Payload

from activities.deliveries import Later, Undeliverable, judge
from activities.door_keys import matching
from activities.ledger import read as read_body
from benchmarks.fuzz import hostile, samples
from rules import identity
from rules.spans import SpanReader
from rules.subscriptions import accepts, subscriptions
from schema.canonical import canonical
from schema.declaration import DeclarationError, read_platform
from schema.messages.events import read as read_event
from schema.messages.outbox import Event
from schema.messages.platform import Platform
from schema.messages.proposals import Proposal
from schema.mistakes import Unreadable, in_one_line
from starter import agent_tools, keys
from starter.agents import playbook
from starter.client import Refused
from starter.command import CommandError
from starter.commands.observatory import _judged as judged
from starter.commands.observatory import _Read
from starter.commands.outcomes import read_outcomes
from starter.door import traces
from starter.door.outcomes import ExposureBatch, OutcomeBatch
from starter.door.parameters import EvaluationBody
from workflows.plugin import OneLineConverter

MOST_BYTES = 4_000_000


class Target(NamedTuple):
    """What takes bytes: it returns, or raises one of `refusals`. `spoil` makes a hostile one of a sample."""

    name: str
    take: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]
    samples: Sequence[bytes]
    spoil: Callable[[bytes, Random], bytes]


def spoil_json(sample: bytes, rng: Random) -> bytes:
    return hostile.written(hostile.spoilt(json.loads(sample), rng), rng)


def spoil_text(sample: bytes, rng: Random) -> bytes:
    """Lines and tokens of a text changed, or its bytes."""
    if rng.randrange(4) == 0:
        return hostile.damaged(sample, rng)
    lines = sample.decode(errors="replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        lines[at] = _other_line(lines[at], rng)
    return "\n".join(lines).encode(errors="surrogatepass")


def _other_line(line: str, rng: Random) -> str:
    head, sign, _ = line.partition(rng.choice(("=", ",", ":", " ")))
    raw = rng.choice((*hostile.RAW, *hostile.INSTANTS, *map(json.dumps, hostile.TEXTS), "1" + "0" * 5_000))
    return rng.choice((f"{head}{sign} {raw}", f"{line}\n{line}", f"{line}{raw}", raw, "", f"[{line}", f"{raw}{line}"))


def spoil_bytes(sample: bytes, rng: Random) -> bytes:
    content = sample
    for _ in range(rng.choice((1, 1, 2, 3))):
        content = hostile.damaged(content, rng)
    return content


def spoil_gzip(sample: bytes, rng: Random) -> bytes:
    """Something hostile, well compressed, or what is no gzip."""
    if rng.randrange(2) == 0:
        return spoil_bytes(sample, rng)
    if rng.randrange(50) == 0:
        return gzip.compress(b"\0" * 20_000_000, 1, mtime=0)
    return gzip.compress(spoil_bytes(gzip.decompress(sample), rng), 1, mtime=0)


# ---- files: each reader gets a path


@cache
def _folder() -> Path:
    """A folder in memory where there is one, for as long as the process lives."""
    memory = Path("/dev/shm")
    made = tempfile.TemporaryDirectory(prefix="nautilus-fuzz-", dir=memory if memory.is_dir() else None)
    _kept.append(made)
    return Path(made.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def _file(read: Callable[[Path], object], content: bytes) -> object:
    path = _folder() / "input"
    path.write_bytes(content)
    path.chmod(0o600)
    return read(path)


def _declaration(path: Path) -> object:
    try:
        return read_platform(path)
    except DeclarationError as error:
        for problem in error.problems:
            check_line(str(problem))
        raise


def _outcomes(path: Path) -> object:
    """The outcomes of a file; what is wrong in its lines goes to standard error, a line for each."""
    errors = io.StringIO()
    try:
        with redirect_stderr(errors):
            return list(read_outcomes(path, {samples.TASK_TYPE}))
    finally:
        for line in errors.getvalue().split("\n")[:-1]:
            check_line(line)


# ---- messages


def _payload(kind: type[BaseModel], content: bytes) -> object:
    payload = Payload(metadata={"encoding": b"json/plain"}, data=content)
    (message,) = OneLineConverter().from_payloads([payload], [kind])
    return same_again(message)


def same_again(message: BaseModel) -> BaseModel:
    """The message, which must survive being written and read: a history and a ledger hold it."""
    again = type(message).model_validate_json(message.model_dump_json())
    assert again == message, "expected the same message after writing and reading it"
    return message


def _raw_payload(content: bytes) -> object:
    """The first byte chooses the encoding, the rest is the data."""
    encodings = [b"json/plain", b"binary/plain", b"binary/null", b"json/protobuf", b"binary/protobuf", b"\xff", b""]
    payload = Payload(metadata={"encoding": encodings[content[0] % 7] if content else b"x" * 300}, data=content[1:])
    return OneLineConverter().from_payloads([payload], [Proposal])


def _strict(kind: type[BaseModel], content: bytes) -> object:
    try:
        return same_again(kind.model_validate_json(content, strict=True))
    except ValidationError as error:
        raise Unreadable(in_one_line(error)) from None


def _lax(kind: type[BaseModel], content: bytes) -> object:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise Unreadable(in_one_line(error)) from None


def _call(content: bytes) -> object:
    """A call of a tool, as the MCP server reads it."""
    document = json.loads(content)
    if not isinstance(document, dict) or not isinstance(document.get("arguments"), dict):
        raise Refused("expected a call")  # the SDK's own checks
    try:
        arguments = agent_tools.parsed(str(document.get("name")), document["arguments"])
        if isinstance(arguments, agent_tools.Writing):
            return arguments.numbered().message("ada")
    except ValidationError as error:
        raise Unreadable(in_one_line(error)) from None
    return arguments


class Forged(AssertionError):
    """A message that its agent did not sign was taken for the agent's."""


def _signed(kind: str, content: bytes) -> object:
    """A message of an agent with a registered key; only what was signed may pass."""
    original = _signed_sample(kind)
    try:
        message = type(original).model_validate_json(content)
    except ValidationError as error:
        raise Unreadable(in_one_line(error)) from None
    for name, key in samples.KEYS.items():
        for context in ("run-1", "run-2", ""):
            why = identity.refusal(message, "cycle:c", context, kind, key.public, unsigned_allowed=True)
            is_original = message == original and name == original.agent_id and context == "run-1"
            if why is None and not is_original:
                raise Forged(f"{kind} was taken as a message of {name} in {context}")
            if why is not None:
                check_line(why)
    if message != original:
        raise Refused("not what was signed")
    return message


@cache
def _signed_sample(kind: str) -> Any:
    message = samples.BY_KIND[kind]
    return samples.KEYS[message.agent_id].sign(message, "cycle:c", "run-1", kind)


# ---- the rest


def _canonical(content: bytes) -> object:
    """Canonical JSON means the same, and is the same when it is made again."""
    document = json.loads(content)
    text = canonical(document)
    assert canonical(json.loads(text)) == text, "expected the canonical text of a canonical text to be itself"
    return text


def _ledger_body(content: bytes) -> object:
    """A body that was damaged in the database."""
    try:
        return read_body(Proposal, content.decode(errors="replace"))
    except ValidationError as error:
        raise Unreadable(in_one_line(error)) from None


def _event(content: bytes) -> object:
    try:
        event = Event.model_validate_json(content)
        read_event(event)
    except ValidationError as error:
        raise Unreadable(in_one_line(error)) from None
    return [accepts(subscription, event) for subscription in _subscriptions().values()]


@cache
def _platform() -> Platform:
    return Platform.model_validate(tomllib.loads(samples.DECLARED))


@cache
def _subscriptions() -> dict[str, Any]:
    return subscriptions(_platform())


def _answer(content: bytes) -> object:
    """A receiver's status and Retry-After."""
    status, _, retry_after = content.decode("latin-1").partition("\n")
    number = int(status) if status.isascii() and status.isdecimal() and len(status) < 5 else 500
    judge(number, retry_after, samples.NOW)
    return number


def _door_key(content: bytes) -> object:
    if matching({}, content.decode("latin-1")) is None:
        raise Refused("expected a key in force")
    raise Forged("a key that nobody made opened the door")


def _otlp(content_type: str, encoding: str, content: bytes) -> object:
    spans = traces.read(content, content_type, encoding, MOST_BYTES)
    reported = SpanReader(_platform()).read(spans, samples.NOW)
    for line in reported.rejected:
        check_line(line)
    for report in reported.reports:
        same_again(report)
    return traces.respond(reported.rejected, content_type)


def protobuf() -> bytes:
    document = samples.export()
    for resource in document["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                span["traceId"], span["spanId"] = "W47/95gDgQPSabYzgT/GDA==", "7uGbfsPBsXQ="
    request: ExportTraceServiceRequest = json_format.ParseDict(document, ExportTraceServiceRequest())
    return request.SerializeToString()


# A refusal is read in a terminal, in a history and by a model; before it there may be the name of a file.
LONGEST_LINE = 1_100


class Unclear(AssertionError):
    """A refusal that is not one clear line."""


def check_line(line: str) -> None:
    """Raises Unclear for a refusal that is empty, too long, or more than plain text on one line."""
    if not line.strip():
        raise Unclear("an empty refusal")
    if len(line) > LONGEST_LINE:
        raise Unclear(f"a refusal of {len(line):,} characters: {line[:80]!r}...")
    if not line.isprintable():
        raise Unclear(f"control characters in a refusal: {line[:300]!r}")
    if "Traceback" in line:
        raise Unclear(f"a traceback: {line[:200]!r}")


def _of_json(name: str, take: Callable[[bytes], object], *documents: object, refusals: Any = (Unreadable,)) -> Target:
    return Target(name, take, refusals, [json.dumps(document).encode() for document in documents], spoil_json)


def all_targets() -> Iterator[Target]:
    """Every target; the names are those of the table."""
    for message in samples.MESSAGES:
        kind = type(message)
        name = f"message {kind.__name__}"
        yield _of_json(name, partial(_payload, kind), message.model_dump(mode="json"))
    for wire_name in samples.BY_KIND:
        take = partial(_signed, wire_name)
        document = _signed_sample(wire_name).model_dump(mode="json")
        yield _of_json(f"signed {wire_name}", take, document, refusals=(Unreadable, Refused))
    yield Target(
        "payload",
        _raw_payload,
        (Unreadable,),
        [b"\x00" + samples.proposal().model_dump_json().encode(), b"\x01abc", b"\x02"],
        spoil_bytes,
    )

    batch = {"outcomes": [samples.report().model_dump(mode="json"), samples.report("task-2").model_dump(mode="json")]}
    yield _of_json("body outcomes", partial(_strict, OutcomeBatch), batch)
    exposures = {"exposures": [samples.exposure().model_dump(mode="json")]}
    yield _of_json("body exposures", partial(_strict, ExposureBatch), exposures)
    evaluation = {"context": {"targetingKey": "task-1", "task_type": samples.TASK_TYPE, "user": {"id": 7}}}
    yield _of_json("body OFREP", partial(_lax, EvaluationBody), evaluation)
    tool_calls = [{"name": name, "arguments": arguments} for name, arguments in samples.calls()]
    yield _of_json("MCP calls", _call, *tool_calls, refusals=(Unreadable, Refused, ValueError, RecursionError))

    yield _of_json("OTLP JSON", partial(_otlp, traces.JSON, ""), samples.export(), refusals=(traces.BodyRefused,))
    exported = protobuf()
    yield Target("OTLP protobuf", partial(_otlp, traces.PROTOBUF, ""), (traces.BodyRefused,), [exported], spoil_bytes)
    packed = [gzip.compress(exported, mtime=0)]
    yield Target("OTLP gzip", partial(_otlp, traces.PROTOBUF, "gzip"), (traces.BodyRefused,), packed, spoil_gzip)

    lines = "\n".join(samples.outcome(f"task-{n}").model_dump_json() for n in range(3)).encode()
    yield Target("file outcomes.jsonl", partial(_file, _outcomes), (CommandError,), [lines], _spoil_lines)
    declared = samples.DECLARED.encode()
    yield Target("file platform.toml", partial(_file, _declaration), (DeclarationError,), [declared], spoil_text)
    plays = [(Path(keys.__file__).parent / "agents" / "playbook.toml").read_bytes()[:3_000].rpartition(b"\n\n")[0]]
    yield Target("file playbook.toml", partial(_file, playbook.read), (DeclarationError,), plays, spoil_text)
    yield Target("file series.csv", partial(_file, _series), (CommandError,), _series_samples(), spoil_text)
    yield Target("file agent.pem", partial(_file, keys.read), (keys.KeyFileError,), [_key_file()], spoil_text)

    yield _of_json("canonical JSON", _canonical, batch, refusals=(ValueError, RecursionError))
    yield _of_json("ledger body", _ledger_body, samples.proposal().model_dump(mode="json"))
    yield _of_json("event", _event, *_events())
    answers = [b"200\n", b"503\n120", b"429\nWed, 21 Oct 2026 07:28:00 GMT", b"301\n"]
    yield Target("receiver's answer", _answer, (Undeliverable, Later), answers, spoil_text)
    door_key = [b"nautilus_0123456789ab_" + b"A" * 43]
    yield Target("door key", _door_key, (Refused,), door_key, spoil_bytes)


def _spoil_lines(sample: bytes, rng: Random) -> bytes:
    lines = sample.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = spoil_json(lines[at], rng)
    return b"\n".join(lines)


def _series(path: Path) -> object:
    return judged(path, _Read(path))


def _series_samples() -> list[bytes]:
    times = [f"2026-11-{day:02d}T{hour:02d}:00:00+00:00" for day in range(1, 6) for hour in range(24)]
    values = "".join(f"{at},{n % 7}.5\n" for n, at in enumerate(times))
    rates = "".join(f"{at},{n % 7},{n % 7 + 3}\n" for n, at in enumerate(times))
    return [f"timestamp,value\n{values}".encode(), f"timestamp,successes,total\n{rates}".encode()]


def _key_file() -> bytes:
    path = _folder() / "sample.pem"
    if not path.exists():
        keys.write(path, samples.KEYS["ada"])
    return path.read_bytes()


def _events() -> list[dict[str, Any]]:
    event = {"key": "k", "subject": "s", "at": samples.NOW.isoformat(), "sequence": 1}
    data = {"reason": "ended", "anomaly_id": "a"}
    return [
        event | {"type": "anomaly.closed", "data": data},
        event | {"type": "cycle.ended", "data": {"ending": "promoted"}},
    ]
