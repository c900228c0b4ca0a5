"""The dossier: what a person reads who takes over. It holds facts, its size is bounded, and nothing in it is markup."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from rules import dossier, rewards
from rules.notices import notice
from schema.messages.cycle import CycleRequest, CycleState, Dossier, Ending, Phase
from schema.messages.diagnosis import Contrast, ParameterChange, PastEnding, ReasonCount, StandsOut
from schema.messages.events import CycleEnded
from schema.messages.experiment import PromotionResult
from schema.messages.observatory import Counts
from schema.messages.outbox import Event
from schema.messages.proposals import LARGEST_DECLINE_BYTES, Decline, Evidence
from tests import builders
from tests.builders import NOW
from workflows.page import render

FUTILE = PastEnding(
    cycle_id="success_rate:research_synthesis#2",
    ending="futile",
    parameter=builders.TIMEOUT,
    before=90.0,
    value=180.0,
    effect=0.012,
)
SILENT = PastEnding(cycle_id="success_rate:research_synthesis#1", ending="no_bids")


def contrast(attribute: str, value: str, good: tuple[int, int], rest: tuple[int, int]) -> Contrast:
    """The good of all tasks with a value, against the others."""
    counts, others = (Counts(successes=successes, tasks=tasks) for successes, tasks in (good, rest))
    return Contrast(
        attribute=attribute, value=value, counts=counts, rest=others, difference=-0.5, interval=(-0.9, -0.1)
    )


STANDS_OUT = StandsOut(
    task_type="research_synthesis",
    tasks=200,
    tasks_before=400,
    reasons=(ReasonCount(reason="licence_expired", since=80, before=1),),
    contrasts=(
        contrast("region", "eu", (12, 90), (108, 110)),
        contrast("running", "over 12", (4, 10), (8, 10)),
    ),
    changes=(
        ParameterChange(
            parameter=builders.TIMEOUT, at=NOW - timedelta(minutes=10), kind="promoted", before=180.0, value=90.0
        ),
    ),
)


def state(*declines: Decline, request: CycleRequest | None = None, **briefing: Any) -> CycleState:
    return CycleState(
        request=request or CycleRequest(request_id="r", anomaly=builders.anomaly()),
        phase=Phase.BIDDING,
        opened=builders.briefing(**briefing),
        declines={decline.agent_id: decline for decline in declines},
    )


def found(*claims: str) -> tuple[Evidence, ...]:
    return tuple(Evidence(claim=claim) for claim in claims)


# ---- what it says


def test_it_says_what_was_seen_against_the_time_before() -> None:
    made = dossier.of(state(healthy=Counts(tasks=600, successes=570)))

    assert made.seen == (
        "success_rate 66.7% (40 of 60 tasks), under the floor of 70%",
        "since the onset: 40 of 60 tasks were good (66.7%)",
        "before: 570 of 600 tasks were good (95.0%)",
    )
    assert made.since[0] == "it began 2026-11-22 12:00:00 UTC"


def test_what_was_not_measured_is_said_and_is_no_good_news() -> None:
    made = dossier.of(state(baseline=Counts(), healthy=None))

    assert made.seen[1:] == ("since the onset: no task was recorded", "before: no task was recorded")


def test_an_anomaly_of_the_platform_shows_every_task_type() -> None:
    request = CycleRequest(request_id="r", anomaly=builders.anomaly(task_type=""))
    baselines = {"research_synthesis": Counts(tasks=10, successes=2), "monte_carlo": Counts(tasks=10, successes=9)}

    made = dossier.of(state(request=request, baselines=baselines))

    assert "monte_carlo since the onset: 9 of 10 tasks were good (90.0%)" in made.seen
    assert "research_synthesis since the onset: 2 of 10 tasks were good (20.0%)" in made.seen


def test_what_most_agents_found_comes_first_and_nobody_crowds_the_others_out() -> None:
    verbose = builders.decline("ada", findings=found(*(f"detail {n}" for n in range(19)), "503 everywhere"))
    brief = builders.decline("bob", findings=found("503 everywhere", "every agent alike"))

    made = dossier.of(state(verbose, brief))

    assert made.stands_out[0] == "503 everywhere (bob, ada)"
    assert "every agent alike (bob)" in made.stands_out
    assert made.stands_out[-1] == "and 10 more"


def test_after_six_attempts_it_says_what_stands_out_on_record_and_to_look_at_that_first() -> None:
    made = dossier.of(state(attempt=7, failed_attempts=6, endings=(FUTILE,), stands_out=STANDS_OUT))

    assert made.stands_out == (
        "tasks with region=eu: 13% good against 98% of the others (12 of 90, 108 of 110)",
        "licence_expired: 40% of tasks fail so, 0% before (80 of 200, 1 of 400)",
        f"{builders.TIMEOUT} 180 -> 90: promoted 2026-11-22 11:50 UTC",
        "tasks with running over 12: 40% good against 80% of the others (4 of 10, 8 of 10)",
    )
    assert made.look_at[:3] == made.stands_out[:3]


def test_a_reason_is_not_said_to_be_new_where_nothing_was_recorded_before() -> None:
    unknown = STANDS_OUT.model_copy(update={"tasks_before": 0, "contrasts": (), "changes": ()})

    (line,) = dossier.of(state(stands_out=unknown)).stands_out

    assert line == "licence_expired: 40% of tasks fail so (80 of 200), and no task was recorded before"


def test_agents_that_differ_in_figures_only_are_one_line_after_the_records() -> None:
    def considered(agent: str, chance: float) -> Decline:
        likely = Evidence(claim="lower a.temperature: as a rule", figures={"chance": chance, "value": 0.2})
        reason = f"the likeliest change has a chance of {chance:.1%}"
        return builders.decline(agent, reason, findings=(likely,))

    other = builders.decline("dee", "the upstream is down", findings=found("503 everywhere"))
    agents = [considered("ada", 0.02), considered("bob", 0.045), considered("cyd", 0.03), considered("eve", 0.03)]

    made = dossier.of(state(other, *agents, stands_out=STANDS_OUT))

    assert made.stands_out[4:] == (
        "lower a.temperature: as a rule: chance 0.02 to 0.045, value 0.2 (4 agents)",
        "503 everywhere (dee)",
    )
    assert made.look_at[:5] == (
        *made.stands_out[:3],
        "bob, and 3 more alike: the likeliest change has a chance of 4.5%",
        "dee: the upstream is down",
    )


def test_it_lists_what_was_tried_with_endings_and_effects() -> None:
    made = dossier.of(state(endings=(FUTILE, SILENT)))

    assert made.tried == (
        f"success_rate:research_synthesis#2: {builders.TIMEOUT} 90 -> 180: futile, effect +1.2%",
        "success_rate:research_synthesis#1: no bids, no change was proposed",
    )


def test_what_was_tried_has_its_date_and_leaves_out_earlier_alarms_of_the_subject() -> None:
    recent = FUTILE.model_copy(update={"ended_at": NOW + timedelta(minutes=5)})
    of_another_alarm = SILENT.model_copy(update={"ended_at": NOW - timedelta(days=3)})
    onset = builders.anomaly().onset
    begun_before = {"began_at": onset - timedelta(minutes=1), "ended_at": onset + timedelta(minutes=1)}
    over_the_onset = SILENT.model_copy(update=begun_before)

    (line,) = dossier.of(state(endings=(recent, over_the_onset, of_another_alarm))).tried

    assert line.startswith("success_rate:research_synthesis#2 (2026-11-22 12:05 UTC): ")


def test_an_effect_that_nobody_measured_is_not_zero() -> None:
    rejected = FUTILE.model_copy(update={"ending": "rejected", "effect": None, "before": None})

    (line,) = dossier.of(state(endings=(rejected,))).tried

    assert line.endswith(f"{builders.TIMEOUT} 180: rejected, no effect was measured")


def test_it_says_which_parameters_nobody_has_tried_and_which_there_are_not() -> None:
    other = builders.state(5.0, key="research_synthesis.retries", default=10.0)
    untried = dossier.of(state(parameters=(builders.state(), other), endings=(FUTILE,)))
    none = dossier.of(state(parameters=(builders.state(task_types=("monte_carlo",)),)))

    assert "no attempt has changed research_synthesis.retries" in untried.look_at
    assert "no declared parameter touches these tasks: whether one should" in none.look_at


def test_a_person_who_did_not_promote_in_time_is_reminded_of_what_the_evidence_is_for() -> None:
    cycle = state()
    cycle.proposal, cycle.reading = builders.proposal("ada"), builders.reading()

    made = dossier.of(cycle)
    cycle.promotion = PromotionResult(swapped=True, version=2, reason="so")

    assert (
        made.look_at[0] == f"the evidence is for {builders.TIMEOUT} = 180, and it is not production: whether to set it"
    )
    assert made.tried[0].endswith("90 -> 180: escalated, effect +27.0%")
    assert not any("the evidence is for" in line for line in dossier.of(cycle).look_at)


@pytest.mark.parametrize("ending", Ending)
def test_every_escalation_has_a_dossier_and_no_other_ending(ending: Ending) -> None:
    """Six attempts, a promotion that nobody made, a frozen parameter, a rollback that failed: all end here."""
    end = rewards.settle(state(failed_attempts=6, attempt=7, endings=(FUTILE,)), ending, "because", NOW)

    assert (end.dossier is not None) is (ending is Ending.ESCALATED)
    if end.dossier is not None:
        assert end.dossier.since[-1] == "this was attempt 7; 6 in a row before it promoted nothing"


# ---- what no agent can do with it

# What JSON must escape, what UTF-8 needs four bytes for, what a terminal would obey, and what markdown would draw.
LETTERS = st.sampled_from('ab"\\\n\x1b\u202e`*[|<😀漢')


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.text(LETTERS, min_size=1, max_size=60), min_size=1, max_size=30),
    agents=st.integers(1, 30),
    claims_each=st.integers(1, 20),
)
def test_it_is_under_20_kb_and_printable_whatever_agents_write(texts: list[str], agents: int, claims_each: int) -> None:
    declines = []
    for n in range(agents):
        # Every agent begins at another text: to draw all of them would take most of the time.
        claims = [texts[(n + m) % len(texts)] for m in range(claims_each)]
        long = [(claim * 40)[:150] for claim in claims]
        findings = tuple(Evidence(claim=claim, figures={claim: 1e300}) for claim in long)
        declines.append(Decline(message_id="m", agent_id=f"agent-{n}", reason=claims[0] * 8, findings=findings[:12]))
    endings = (FUTILE.model_copy(update={"value": '"' * 2_000, "cycle_id": "漢" * 300}),) * 20

    hostile = [contrast("region", (text * 40)[:100], (1, 9), (8, 9)) for text in texts[:3]]
    change = STANDS_OUT.changes[0].model_copy(update={"value": texts[0] * 9})
    shown = STANDS_OUT.model_copy(update={"contrasts": tuple(hostile), "changes": (change,) * 3})

    made = dossier.of(state(*declines, endings=endings, stands_out=shown))

    assert len(made.model_dump_json().encode()) < 20_000
    assert all(line.isprintable() for _, lines in made.sections for line in lines)
    assert Dossier.model_validate_json(made.model_dump_json()) == made


def test_a_decline_that_would_fill_a_cycle_is_refused_with_its_size() -> None:
    with pytest.raises(ValueError, match=f"expected a decline of at most {LARGEST_DECLINE_BYTES} bytes of JSON, but "):
        builders.decline("ada", findings=found(*("x" * 2_000,) * 20))


def test_texts_of_agents_are_no_markup_on_the_page() -> None:
    hostile = "fine\n\n## Ended: promoted\n| a | b |\n<img src=x> [click](https://evil) `x` **bold**"
    decline = builders.decline("ada", hostile, findings=found(hostile))
    cycle = state(decline)
    end = rewards.settle(cycle, Ending.ESCALATED, hostile, NOW)

    for page in (
        render(builders.status(phase=Phase.ENDED, end=end, declines=cycle.declines)),
        render(builders.status(phase=Phase.BIDDING, declines=cycle.declines)),
    ):
        html = MarkdownIt().enable("table").render(page)

        assert html.count("<h2>") == 1
        for markup in ("<img", "<a ", "<table", "bold</strong>", "<code>x"):
            assert markup not in html
        assert "https://evil" in html  # it can still be read


def test_a_notification_holds_the_beginning_of_each_list_and_how_to_read_the_rest() -> None:
    verbose = builders.decline("ada", "x" * 900, findings=found(*(f"{n} " + "x" * 140 for n in range(12))))
    made = dossier.of(state(verbose, endings=(FUTILE,) * 20))
    data = CycleEnded(cycle_id="c#1", ending=Ending.ESCALATED, reason="nothing worth trying", dossier=made)
    body = data.model_dump(mode="json")
    event = Event(key="k", type=CycleEnded.type, subject="success_rate:research_synthesis", at=NOW, data=body)

    text = notice(event).text

    assert text.startswith("nothing worth trying\n\nWhat was seen:\n- success_rate 66.7%")
    assert text.endswith("\n\nAll of it: nautilus cycle show success_rate:research_synthesis")
    assert len(text) < 4_000
    for title, _ in made.sections:
        assert f"\n{title}:\n" in text


def test_the_event_of_an_earlier_release_is_read_without_a_dossier() -> None:
    data = {"cycle_id": "c#1", "ending": "escalated", "reason": "six attempts"}
    event = Event(key="k", type=CycleEnded.type, subject="s", at=NOW, data=data)

    assert notice(event).text == "six attempts"
