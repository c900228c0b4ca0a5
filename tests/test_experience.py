"""Experience: what two cases have in common, and how much of one counts for the other."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.patterns import relevant
from schema.experience import HALF_LIFE, SAME_KIND, SAME_REASON_ELSEWHERE, nearness, posterior
from schema.messages.memory import Change, Claim, Pattern, PatternKind, PatternState, Symptom, prevailing_reason
from schema.parameter_roles import Role
from tests.builders import NOW

LIMITED = Symptom(metric="success_rate", task_type="a", failure="error", reason="rate_limited")


def symptom(**changes: str) -> Symptom:
    return LIMITED.model_copy(update=changes)


def pattern(
    change: Change, learned: Symptom = LIMITED, support: float = 1.0, against: float = 0.0, at: datetime = NOW
) -> Pattern:
    claim = Claim(kind=PatternKind.REMEDY, symptom=learned, change=change)
    return Pattern(
        pattern_id=claim.pattern_id,
        claim=claim,
        state=PatternState.SUPPORTED,
        text="",
        successes=1,
        tries=1,
        support=support,
        against=against,
        interval=(0.0, 1.0),
        effect=None,
        effect_interval=None,
        first_seen=at,
        last_seen=at,
        judged_at=at,
    )


LONGER_PAUSE = Change.of("a.pause_s", 1.0, 2.0, Role.BACKOFF)


# ---- what is alike


@pytest.mark.parametrize(
    ("other", "is_like"),
    [
        (symptom(task_type="b"), True),
        (symptom(failure="timeout"), True),  # the reason says more than the kind
        (symptom(reason="upstream_503"), False),
        (symptom(reason=""), True),  # learned before there were reasons: the kind is all there is
        (symptom(reason="", failure="timeout"), False),
        (symptom(metric="slow_share"), False),
    ],
)
def test_symptoms_are_alike_by_reason_or_else_by_kind(other: Symptom, is_like: bool) -> None:
    assert LIMITED.is_like(other) is is_like
    assert other.is_like(LIMITED) is is_like


def test_changes_are_alike_by_role_and_by_name_where_one_has_none() -> None:
    elsewhere = Change.of("b.cooldown_ms", 100, 210, Role.BACKOFF)
    no_role, unknown = Change.of("b.pause_s", 1.0, 2.0), Change.of("b.pause_s", 1.0, 2.0, Role.OTHER)

    assert LONGER_PAUSE.is_like(elsewhere)
    assert LONGER_PAUSE.is_like(no_role)
    assert LONGER_PAUSE.is_like(unknown)
    assert not elsewhere.goes_like(no_role)
    assert not LONGER_PAUSE.goes_like(Change.of("b.pause_s", 1.0, 2.0, Role.LIMIT))
    # Two parameters of which nothing is known have nothing in common.
    assert not unknown.goes_like(Change.of("b.depth", 1.0, 2.0, Role.OTHER))


def test_a_long_text_is_remembered_by_its_hash() -> None:
    prompt = "Answer in one word. " * 100

    change = Change.of("a.prompt", "Answer.", prompt, Role.PROMPT)

    assert len(change.text) < 60
    assert change == Change.of("a.prompt", "Reply.", prompt, Role.PROMPT)
    assert change != Change.of("a.prompt", "Answer.", prompt + "!", Role.PROMPT)


@pytest.mark.parametrize(
    ("since", "before", "reason"),
    [
        # frequent is not the same as more frequent
        ({"upstream_503": 30, "rate_limited": 20}, {"upstream_503": 300}, "rate_limited"),
        ({"rate_limited": 20}, {}, "rate_limited"),
        # a platform that was never better: what comes and goes by chance says nothing
        ({"upstream_503": 39, "rate_limited": 1}, {"upstream_503": 400}, "upstream_503"),
        ({"timeout": 30, "rate_limited": 5}, {}, ""),  # most of it has no label, and counts by its kind
        ({"other": 30, "rate_limited": 5}, {}, ""),  # or the label of everything rare
        ({"a": 10, "b": 10}, {}, "b"),  # one and the same answer in any order
        ({}, {"rate_limited": 5}, ""),
    ],
)
def test_the_reason_of_a_symptom_is_what_became_more_frequent(
    since: dict[str, int], before: dict[str, int], reason: str
) -> None:
    assert prevailing_reason(since, 100, before, 1_000) == reason
    assert prevailing_reason(dict(reversed(since.items())), 100, before, 1_000) == reason


def test_slow_tasks_have_no_reason_to_fail() -> None:
    slow = Symptom.of("slow_share", "a", [("error", 5)], "rate_limited")

    assert slow == Symptom(metric="slow_share", task_type="a")


def test_a_claim_from_before_roles_and_reasons_keeps_its_id() -> None:
    old = Claim(
        kind=PatternKind.REMEDY,
        symptom=Symptom(metric="success_rate", task_type="a", failure="timeout"),
        change=Change(parameter="a.timeout_s", verb="raise", size=2),
    )
    with_role = old.model_copy(update={"change": old.change.model_copy(update={"role": "limit"})})
    with_reason = old.model_copy(update={"symptom": symptom(reason="slow_disk")})

    assert old.pattern_id == "baf762c0de14"  # as release 1 stored it
    assert len({old.pattern_id, with_role.pattern_id, with_reason.pattern_id}) == 3


# ---- how much it counts


@pytest.mark.parametrize(
    ("learned", "worth"),
    [
        (LIMITED, 1.0),
        (symptom(task_type="b"), SAME_REASON_ELSEWHERE),
        (symptom(task_type="b", failure="timeout"), SAME_REASON_ELSEWHERE),
        (symptom(task_type="b", reason="upstream_503"), SAME_KIND),
        (symptom(reason="upstream_503"), SAME_KIND),
        (symptom(reason=""), SAME_KIND),
        (symptom(reason="", failure="timeout"), 0.0),
        (symptom(metric="slow_share"), 0.0),
    ],
)
def test_evidence_counts_the_less_the_further_away_it_was_learned(learned: Symptom, worth: float) -> None:
    assert nearness(learned, LIMITED) == worth


def test_without_reasons_the_task_type_and_the_kind_are_all() -> None:
    here = symptom(reason="")

    assert nearness(here, here) == 1.0
    assert nearness(symptom(reason="", task_type="b"), here) == SAME_KIND


def test_the_posterior_adds_what_is_near_and_went_the_same_way() -> None:
    patterns = [
        pattern(LONGER_PAUSE, support=2.0, against=0.5),
        pattern(Change.of("b.cooldown_ms", 100, 800, Role.BACKOFF), symptom(task_type="b")),
        pattern(Change.of("b.cooldown_ms", 100, 800, Role.BACKOFF), symptom(task_type="b", reason="oom"), 0.0, 1.0),
        pattern(Change.of("a.pause_s", 2.0, 1.0, Role.BACKOFF), support=9.0),  # the other way
        pattern(Change.of("a.timeout_s", 1.0, 2.0, Role.LIMIT), support=9.0),
    ]

    found = posterior(patterns, LIMITED, Role.BACKOFF, "raise", NOW)

    assert found == pytest.approx((2.0 + 0.7, 0.5 + 0.3))


def test_the_posterior_decays_from_the_instant_of_the_judgement() -> None:
    assert posterior([pattern(LONGER_PAUSE)], LIMITED, "backoff", "raise", NOW + HALF_LIFE) == pytest.approx((0.5, 0))


def test_a_setting_counts_by_role_or_only_for_its_value() -> None:
    patterns = [
        pattern(Change.of("a.model", "small", "large", Role.MODEL), support=2.0),
        pattern(Change.of("a.model", "large", "small", Role.MODEL), support=0.0, against=1.0),
    ]

    assert posterior(patterns, LIMITED, Role.MODEL, "set", NOW) == (2.0, 1.0)
    assert posterior(patterns, LIMITED, Role.MODEL, "set", NOW, value="large") == (2.0, 0.0)


def test_what_has_no_role_counts_by_name() -> None:
    patterns = [pattern(Change.of("a.depth", 32, 16, Role.OTHER)), pattern(Change.of("a.width", 32, 16, Role.OTHER))]

    assert posterior(patterns, LIMITED, Role.OTHER, "lower", NOW, name="depth") == (1.0, 0.0)
    assert posterior(patterns, LIMITED, Role.OTHER, "lower", NOW) == (0.0, 0.0)


def test_a_direction_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="expected the direction raise, lower or set, but 'up' came"):
        posterior([], LIMITED, Role.LIMIT, "up", NOW)


@given(st.floats(0, 5), st.floats(0, 5), st.integers(0, 400))
def test_old_evidence_never_counts_more_than_new(support: float, against: float, days: int) -> None:
    known = [pattern(LONGER_PAUSE, support=support, against=against)]
    new = posterior(known, LIMITED, "backoff", "raise", NOW)

    old = posterior(known, LIMITED, "backoff", "raise", NOW + timedelta(days=days))

    assert 0 <= old[0] <= new[0] == support
    assert 0 <= old[1] <= new[1] == against


# ---- what is recalled


def test_the_nearest_is_recalled_first_and_then_the_weightiest() -> None:
    near = [
        pattern(LONGER_PAUSE),
        pattern(LONGER_PAUSE, symptom(task_type="b"), support=2.0),
        pattern(LONGER_PAUSE, symptom(task_type="c"), support=1.0),
        pattern(LONGER_PAUSE, symptom(reason="upstream_503")),
        pattern(LONGER_PAUSE, symptom(task_type="b", reason="upstream_503"), support=9.0),
        pattern(LONGER_PAUSE, symptom(metric="slow_share", failure="", reason=""), support=9.0),
        pattern(LONGER_PAUSE, symptom(task_type="b", failure="timeout", reason=""), support=9.0),
    ]

    assert relevant(reversed(near), LIMITED, 20) == tuple(near)
    assert relevant(reversed(near), LIMITED, 2) == tuple(near[:2])


def test_of_other_task_types_only_what_an_experiment_decided_is_recalled() -> None:
    undecided = [pattern(LONGER_PAUSE, symptom(task_type=name), support=0.0) for name in ("a", "b")]
    refuted = pattern(LONGER_PAUSE, symptom(task_type="c"), support=0.0, against=1.0)

    assert {p.claim.symptom.task_type for p in relevant([*undecided, refuted], LIMITED, 20)} == {"a", "c"}
