"""Whatever comes from outside is taken as a valid message or refused in one clear line; it never crashes what reads it.

The same properties as `make fuzz`, on fewer messages. Every example that ever broke one is below them.
"""

import json
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from benchmarks.fuzz import samples, sequences
from benchmarks.fuzz.targets import LONGEST_LINE, Target, all_targets, check_line
from schema.mistakes import MOST_READ, in_one_line

TARGETS = {target.name: target for target in all_targets()}
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
dice = st.randoms(use_true_random=False)


def refusal(target: Target, content: bytes) -> str | None:
    """The line with which a target refuses, or None where it accepts; whatever else it raises is a defect."""
    try:
        target.take(content)
    except target.refusals as error:
        check_line(str(error))
        return str(error)
    return None


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_spoilt_is_accepted_or_refused_in_one_clear_line(name: str) -> None:
    target = TARGETS[name]

    @few
    @given(st.sampled_from(target.samples), dice)
    def holds(sample: bytes, rng: Random) -> None:
        refusal(target, target.spoil(sample, rng))

    holds()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(dice)
def test_no_order_of_forged_replayed_and_genuine_messages_gives_anybody_another_s_part(rng: Random) -> None:
    sequences.play(rng)


def test_the_samples_themselves_are_accepted() -> None:
    refused = {
        name: refusal(target, sample)
        for name, target in TARGETS.items()
        for sample in target.samples[:1]
        if refusal(target, sample) is not None
    }

    assert list(refused) == ["door key"]


# ---- what was found

ACT = json.loads(samples.act().model_dump_json())
LONG_NAME = "x" * 100_000
FOUND: dict[str, tuple[str, bytes, str]] = {
    "a field's name that a terminal would obey": (
        "message Act",
        json.dumps(ACT | {"\x1b[2J\x1b]0;owned\x07": 1}).encode(),
        "\\x1b[2J\\x1b]0;owned\\x07: expected no such field, but 1 came",
    ),
    "a field's name that turns the text around": (
        "message Act",
        json.dumps(ACT | {"\u202egnp.exe": 1}).encode(),
        "\\u202egnp.exe: expected no such field, but 1 came",
    ),
    "a number that JSON does not have, deep in what a task is about": (
        "message TaskRequest",
        b'{"task_id": "t-1", "task_type": "monte_carlo", "payload": {"paths": [1, {"seed": -Infinity}]}}',
        "payload: expected what JSON can carry, but Out of range float values",
    ),
    "lists in lists without end in an entry of the ledger": (
        "ledger body",
        b'{"message_id":' + b"[" * 100_000,
        "expected a JSON object (Proposal), but ",
    ),
    "an encoding that nobody knows, of three hundred characters": (
        "payload",
        b"",
        f"but {'x' * 59}… came",
    ),
    "a field's name of a hundred kilobytes": (
        "message Act",
        json.dumps(ACT | {LONG_NAME: 1}).encode(),
        f"{'x' * 59}…: expected no such field, but 1 came",
    ),
    "a payload that is not what its encoding says": (
        "payload",
        b"\x02\x02",
        "expected a payload in the encoding that it names, but Expected empty data set for binary/null",
    ),
    "an encoding that is no text": (
        "payload",
        b"\x05{}",
        "expected a payload in the encoding that it names, but 'utf-8' codec can't decode byte 0xff",
    ),
    "a whole number of thousands of digits in platform.toml": (
        "file platform.toml",
        b"mode = 1" + b"0" * 5_000,
        "/input: expected TOML, but Exceeds the limit (4300 digits) for integer string conversion",
    ),
    "tables in tables without end in platform.toml": (
        "file platform.toml",
        b"mode = " + b"[" * 100_000,
        "/input: expected TOML that is nested less deeply",
    ),
    "a key of thousands of characters in platform.toml": (
        "file platform.toml",
        b"x" * 100_000 + b" = 1",
        f"/input:1: {'x' * 300}",
    ),
    "a count of thousands of digits in a file of rates": (
        "file series.csv",
        b"timestamp,successes,total\n2026-11-01T00:00:00Z,5,0." + b"3" * 5_000,
        f"/input:2: expected whole numbers, 0 <= successes <= total, but 5 of 0.{'3' * 98} came",
    ),
    "a header of thousands of characters in a file of a series": (
        "file series.csv",
        b"x" * 5_000,
        f"expected timestamp,value or timestamp,successes,total, but {'x' * 100!r} came",
    ),
    "a field's name of thousands of characters in a file of outcomes": (
        "file outcomes.jsonl",
        json.dumps(json.loads(samples.outcome().model_dump_json()) | {"x" * 5_000: 1}).encode(),
        "/input: expected an outcome in every line, but one line does not hold one; nothing was taken",
    ),
    "a whole number of thousands of digits in a playbook": (
        "file playbook.toml",
        b"symptoms = 1" + b"0" * 5_000,
        "/input: expected a playbook in TOML, but Exceeds the limit (4300 digits) for integer string conversion",
    ),
    "tables in tables without end in a playbook": (
        "file playbook.toml",
        b"symptoms = " + b"[" * 100_000,
        "/input: expected a playbook in TOML, but ",
    ),
}


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found_is_refused(found: str) -> None:
    name, content, line = FOUND[found]

    assert line in (refusal(TARGETS[name], content) or "")


def test_a_key_file_of_another_kind_of_key_is_refused() -> None:
    target = TARGETS["file agent.pem"]
    # An object identifier that no library knows.
    of_no_kind = target.samples[0].replace(b"MC4CAQAwBQYDK2Vw", b"MC4CAQAwBQYDK4Vw")

    assert of_no_kind != target.samples[0]
    assert "expected an unencrypted private key in PEM" in (refusal(target, of_no_kind) or "")


def test_a_refusal_is_never_longer_than_a_page() -> None:
    many_fields = ACT | {f"{number}-{LONG_NAME}": LONG_NAME for number in range(10)}

    line = refusal(TARGETS["message Act"], json.dumps(many_fields).encode())

    assert line is not None
    assert len(line) <= LONGEST_LINE


def test_more_mistakes_than_anybody_makes_are_counted_and_not_read() -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(list[int]).validate_python(["x"] * (MOST_READ + 1))

    assert in_one_line(refused.value) == "expected list[int], but 10,001 mistakes came"


def test_a_line_is_checked_for_what_no_person_should_read() -> None:
    unclear: list[str] = []
    for line in ("", " ", "two\nlines", "\x1b[2J", "\u202e", "x" * (LONGEST_LINE + 1), "Traceback (most recent call"):
        with pytest.raises(AssertionError):
            check_line(line)
        unclear.append(line)
    check_line("expected a bid, but none came")

    assert len(unclear) == 7
