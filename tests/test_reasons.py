"""Failures by reason: exact for what is kept, bounded whatever a platform makes up, and the same in any order."""

import random
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlmodel import col, select

from activities.database import Database
from activities.history import failures_by_reason, history
from activities.recording import record_outcomes
from rules.reasons import KEPT, OTHER, by_reason, merged, ranked
from schema.failure_kinds import FailureKind
from schema.messages.observatory import TaskOutcome
from schema.tables.observatory import RollupRow
from tests import builders
from tests.builders import NOW
from tests.test_rollups import INTERVAL_S, MINUTE, clear

LABELS = [f"upstream_{number}" for number in range(3 * KEPT)]
# Families of many sizes: of the labels made for single tasks, and of those that stand for themselves.
FAMILIES = [*"abcdefghijklmnopqrstuvwxyz", *(f"{name}_{number}" for name in "pqrstuvw" for number in range(9))]
failed = st.tuples(st.sampled_from([*LABELS, *FAMILIES, "", OTHER]), st.sampled_from([None, *FailureKind]))


def outcome(name: str, reason: str, failure: FailureKind | None = FailureKind.ERROR, minute: int = 0) -> TaskOutcome:
    at = NOW + minute * MINUTE
    return builders.outcome(name, failure is None, at=at).model_copy(update={"failure": failure, "reason": reason})


def outcomes(facts: list[tuple[str, FailureKind | None]]) -> list[TaskOutcome]:
    return [outcome(f"t{number}", reason, kind) for number, (reason, kind) in enumerate(facts)]


@pytest.mark.parametrize(
    ("reported", "counted"),
    [
        ([], {}),
        ([("rate_limited", FailureKind.ERROR)] * 3, {"rate_limited": 3}),
        # The same reason of two kinds is one reason.
        ([("oom", FailureKind.ERROR), ("oom", FailureKind.LOST)], {"oom": 2}),
        # Without a reason, a failure counts under its kind.
        (
            [("", FailureKind.TIMEOUT), ("", FailureKind.LOST), ("timeout", FailureKind.ERROR)],
            {"lost": 1, "timeout": 2},
        ),
        # A success did not fail, whatever it has for a reason.
        ([("rate_limited", None), ("", None)], {}),
        # A platform's own "other" is one of the others.
        ([(OTHER, FailureKind.ERROR)], {OTHER: 1}),
    ],
)
def test_failures_count_by_their_reason(
    reported: list[tuple[str, FailureKind | None]], counted: dict[str, int]
) -> None:
    assert by_reason(outcomes(reported)) == counted


def test_however_many_labels_there_are_few_are_kept_and_no_failure_is_missing() -> None:
    counted = by_reason(outcomes([(f"task-{number}", FailureKind.ERROR) for number in range(5_000)]))

    assert len(counted) == KEPT + 1
    assert sum(counted.values()) == 5_000
    assert counted[OTHER] == 5_000 - KEPT


def test_kinds_are_kept_before_all_other_labels() -> None:
    many = outcomes([(f"task-{number}", FailureKind.ERROR) for number in range(5_000)])
    kinds = outcomes([("", kind) for kind in FailureKind])

    assert by_reason(many + kinds).items() >= {kind.value: 1 for kind in FailureKind}.items()


@pytest.mark.parametrize("made", ["task-{number}", "{uuid}", "job:{uuid}:failed", "u{number}"])
def test_labels_made_for_single_tasks_do_not_hide_the_reasons_that_many_share(made: str) -> None:
    ids = random.Random(3)
    single = [made.format(number=number, uuid=UUID(int=ids.getrandbits(128))) for number in range(500)]
    shared = ["rate_limited", "upstream_503", "upstream_429", "exit_137", "OutOfMemoryError", "no_route"]
    reported: list[tuple[str, FailureKind | None]] = [(label, FailureKind.ERROR) for label in [*single, *shared * 50]]

    counted = by_reason(outcomes(reported))

    assert {label: counted.get(label) for label in shared} == dict.fromkeys(shared, 50)
    assert len(counted) == KEPT + 1


@given(facts=st.lists(failed, max_size=200), rng=st.randoms(use_true_random=False))
def test_what_is_kept_is_exact_and_the_same_in_any_order_and_any_batches(
    facts: list[tuple[str, FailureKind | None]], rng: random.Random
) -> None:
    all_of_them = outcomes(facts)
    once = by_reason(all_of_them)
    rng.shuffle(all_of_them)
    counted: dict[str, int] = {}
    while all_of_them:
        size = rng.randint(1, 40)
        batch, all_of_them = all_of_them[:size], all_of_them[size:]
        counted = merged([by_reason(batch), counted] if rng.random() < 0.5 else [counted, by_reason(batch)])
    truth = Counter(reason or kind.value for reason, kind in facts if kind is not None)

    assert counted == once
    assert all(number == truth[reason] for reason, number in counted.items() if reason != OTHER)
    assert sum(counted.values()) == truth.total()


def test_the_most_frequent_reason_comes_first_and_the_others_last() -> None:
    assert ranked({"a": 1, OTHER: 9, "c": 3, "b": 3}) == [("b", 3), ("c", 3), ("a", 1), (OTHER, 9)]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rng=st.randoms(use_true_random=False))
def test_roll_ups_by_reason_are_the_same_in_any_order_and_any_batches(
    either_database: Database, rng: random.Random
) -> None:
    facts = random.Random(5)
    all_of_them = [
        outcome(f"t{number}", facts.choice(LABELS), facts.choice([None, *FailureKind]), facts.randrange(2))
        for number in range(400)
    ]
    expected = {
        minute: by_reason(o for o in all_of_them if o.finished_at == NOW + minute * MINUTE) for minute in range(2)
    }
    assert all(OTHER in counted for counted in expected.values())  # more labels than are kept
    rng.shuffle(all_of_them)
    # A repeated outcome is counted once, and one that conflicts not at all.
    repeated = [first.model_copy(update={"reason": rng.choice([first.reason, "else"])}) for first in all_of_them[:50]]
    reports = all_of_them + repeated

    with either_database.transaction() as session:
        clear(session)
    while reports:
        size = rng.choice([1, 7, 150])
        batch, reports = reports[:size], reports[size:]
        with either_database.transaction() as session:
            record_outcomes(session, batch, INTERVAL_S)

    with either_database.reading() as session:
        rows = session.exec(select(RollupRow).order_by(col(RollupRow.start))).all()
        (track,) = history(session, NOW, NOW + 2 * MINUTE).values()
        spans = failures_by_reason(session, NOW, NOW + 2 * MINUTE)
    assert dict(enumerate(row.reasons for row in rows)) == expected
    assert [interval.reasons for interval in track] == list(expected.values())
    assert list(spans.values()) == [by_reason(all_of_them)]
