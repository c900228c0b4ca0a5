"""The checker of chaos finds every broken promise in a doctored trace, and none in a sound one.

`tests/chaos/trace.json` is of a real run: 10 kills, 6 faults of database, disk and clock, three cycles; of its outcomes
every hundredth is kept.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos.__main__ import Act, report
from benchmarks.chaos.trace import Event, Kind, Trace, Transfer, findings
from rules import chain

RECORDED = Trace.model_validate_json((Path(__file__).parent / "chaos" / "trace.json").read_text())
CYCLE = "success_rate:work_00#1"
PARAMETER = "work_00.timeout_s"


def sound() -> Trace:
    return RECORDED.model_copy(deep=True)


def relink(trace: Trace) -> None:
    """Make the chain whole again: what was changed must be found although the ledger verifies."""
    previous = chain.GENESIS
    for number, entry in enumerate(trace.ledger, 1):
        entry |= {"sequence": number, "previous": previous}
        del entry["digest"]
        previous = entry["digest"] = chain.digest(**entry)


def of_kind(trace: Trace, kind: str, subject: str) -> dict[str, Any]:
    return next(entry for entry in trace.ledger if entry["kind"] == kind and entry["subject"] == subject)


def parameter(trace: Trace) -> Any:
    return next(parameter for parameter in trace.parameters if parameter.key == PARAMETER)


# ---- what can go wrong, each on a sound trace


def an_acknowledged_outcome_is_gone(trace: Trace) -> None:
    gone = next(outcome for outcome in trace.outcomes if outcome.task_id in trace.acknowledged)
    trace.outcomes.remove(gone)
    trace.rolled_up[gone.task_type] -= 1


def an_outcome_is_another_than_was_acknowledged(trace: Trace) -> None:
    next(o for o in trace.outcomes if o.task_id in trace.acknowledged).facts = "0.100000000 success"


def an_outcome_is_stored_twice(trace: Trace) -> None:
    trace.outcomes.append(trace.outcomes[0])
    trace.rolled_up[trace.outcomes[0].task_type] += 1


def an_outcome_is_counted_twice(trace: Trace) -> None:
    trace.rolled_up["work_00"] += 1


def an_outcome_is_not_counted(trace: Trace) -> None:
    trace.rolled_up["work_00"] -= 1


def an_arm_counts_a_task_twice(trace: Trace) -> None:
    trace.experiments[0].counted += 1


def an_arm_misses_a_task(trace: Trace) -> None:
    trace.experiments[0].counted -= 1


def a_promotion_was_announced_and_is_not_in_the_ledger(trace: Trace) -> None:
    trace.ledger.remove(of_kind(trace, "parameter.promoted", PARAMETER))
    relink(trace)
    parameter(trace).version -= 1


def production_has_the_old_version(trace: Trace) -> None:
    parameter(trace).version -= 1


def production_has_another_value(trace: Trace) -> None:
    parameter(trace).value += 0.5


def the_parameter_is_gone(trace: Trace) -> None:
    trace.parameters.remove(parameter(trace))


def a_cycle_promotes_twice(trace: Trace) -> None:
    trace.ledger.append(dict(of_kind(trace, "parameter.promoted", PARAMETER)))
    relink(trace)


def two_cycles_promote_from_one_version(trace: Trace) -> None:
    again = dict(of_kind(trace, "parameter.promoted", PARAMETER))
    again["body"] = json.dumps(json.loads(again["body"]) | {"cycle_id": "another#1"})
    trace.ledger.append(again)
    relink(trace)
    announced = Event(key="parameter.promoted:another#1", subject=PARAMETER)
    trace.events.append(announced)
    trace.received.append(announced)


def production_has_a_version_that_nobody_promoted(trace: Trace) -> None:
    parameter(trace).version += 1


def a_payment_is_made_twice(trace: Trace) -> None:
    trace.transfers.append(trace.transfers[0])


def a_payment_is_made_again_under_another_reference(trace: Trace) -> None:
    trace.transfers.append(trace.transfers[0].model_copy(update={"reference": "reward:task:market-1:again"}))


def a_payment_is_not_made(trace: Trace) -> None:
    trace.transfers.pop()


def a_payment_is_of_another_amount(trace: Trace) -> None:
    trace.transfers[0].amount += 1


def a_payment_goes_to_another_agent(trace: Trace) -> None:
    trace.transfers[0].credit = "mallory"


def a_missed_deadline_costs_nothing(trace: Trace) -> None:
    award = next(award for award in trace.awards if award.work_id == CYCLE)
    award.missed = True
    missed = Event(key=f"award.missed:{CYCLE}:{award.agent_id}", subject=CYCLE)
    trace.events.append(missed)
    trace.received.append(missed)


def without(trace: Trace, key: str) -> None:
    trace.events = [event for event in trace.events if event.key != key]
    trace.received = [event for event in trace.received if event.key != key]


def an_ending_has_no_event(trace: Trace) -> None:
    without(trace, f"cycle.ended:{CYCLE}")


def a_promotion_has_no_event(trace: Trace) -> None:
    without(trace, f"parameter.promoted:{CYCLE}")


def a_vote_has_no_event(trace: Trace) -> None:
    announced = next(event for event in trace.events if event.key.startswith(f"proposal.accepted:{CYCLE}:"))
    without(trace, announced.key)


def a_settlement_has_no_event(trace: Trace) -> None:
    without(trace, f"task.settled:{trace.tasks[0].task_id}")


def an_event_never_arrives(trace: Trace) -> None:
    gone = trace.events[50].key
    trace.received = [event for event in trace.received if event.key != gone]


def two_events_of_a_subject_change_places(trace: Trace) -> None:
    of_subject = [number for number, event in enumerate(trace.received) if event.subject == PARAMETER]
    first, last = of_subject[0], of_subject[-1]
    trace.received[first], trace.received[last] = trace.received[last], trace.received[first]


def an_event_arrives_that_never_happened(trace: Trace) -> None:
    trace.received.append(Event(key="cycle.ended:nowhere#1", subject="nowhere"))


def an_entry_was_changed(trace: Trace) -> None:
    trace.ledger[3]["at"] = "2026-11-30T00:00:00+00:00"


def an_entry_was_removed(trace: Trace) -> None:
    trace.ledger.pop(3)


def two_entries_changed_places(trace: Trace) -> None:
    trace.ledger[3], trace.ledger[4] = trace.ledger[4], trace.ledger[3]


def a_cycle_has_not_ended(trace: Trace) -> None:
    trace.cycles[0].answered = None


def a_cycle_never_opened(trace: Trace) -> None:
    trace.cycles.append(trace.cycles[0].model_copy(update={"cycle_id": None, "ending": None, "answered": None}))


def a_workflow_answers_otherwise_than_its_record(trace: Trace) -> None:
    trace.cycles[0].answered = "futile"


def a_task_has_not_ended(trace: Trace) -> None:
    task = next(task for task in trace.tasks if task.agent_id is not None)
    trace.transfers = [t for t in trace.transfers if t.reference != f"reward:task:{task.task_id}"]
    task.ending = task.agent_id = None


DOCTORED: list[tuple[Callable[[Trace], None], Kind]] = [
    (an_acknowledged_outcome_is_gone, Kind.OUTCOME_LOST),
    (an_outcome_is_another_than_was_acknowledged, Kind.OUTCOME_LOST),
    (an_outcome_is_not_counted, Kind.OUTCOME_LOST),
    (an_arm_misses_a_task, Kind.OUTCOME_LOST),
    (an_outcome_is_stored_twice, Kind.OUTCOME_DOUBLE),
    (an_outcome_is_counted_twice, Kind.OUTCOME_DOUBLE),
    (an_arm_counts_a_task_twice, Kind.OUTCOME_DOUBLE),
    (a_promotion_was_announced_and_is_not_in_the_ledger, Kind.PROMOTION_LOST),
    (production_has_the_old_version, Kind.PROMOTION_LOST),
    (production_has_another_value, Kind.PROMOTION_LOST),
    (the_parameter_is_gone, Kind.PROMOTION_LOST),
    (a_cycle_promotes_twice, Kind.PROMOTION_DOUBLE),
    (two_cycles_promote_from_one_version, Kind.PROMOTION_DOUBLE),
    (production_has_a_version_that_nobody_promoted, Kind.PROMOTION_DOUBLE),
    (a_payment_is_made_twice, Kind.PAYMENT_DOUBLE),
    (a_payment_is_made_again_under_another_reference, Kind.PAYMENT_DOUBLE),
    (a_payment_is_not_made, Kind.PAYMENT_DOUBLE),
    (a_payment_is_of_another_amount, Kind.PAYMENT_DOUBLE),
    (a_payment_goes_to_another_agent, Kind.PAYMENT_DOUBLE),
    (a_missed_deadline_costs_nothing, Kind.PAYMENT_DOUBLE),
    (an_ending_has_no_event, Kind.EVENT_LOST),
    (a_promotion_has_no_event, Kind.EVENT_LOST),
    (a_vote_has_no_event, Kind.EVENT_LOST),
    (a_settlement_has_no_event, Kind.EVENT_LOST),
    (an_event_never_arrives, Kind.EVENT_LOST),
    (two_events_of_a_subject_change_places, Kind.EVENT_LOST),
    (an_event_arrives_that_never_happened, Kind.EVENT_LOST),
    (an_entry_was_changed, Kind.LEDGER_BROKEN),
    (an_entry_was_removed, Kind.LEDGER_BROKEN),
    (two_entries_changed_places, Kind.LEDGER_BROKEN),
    (a_cycle_has_not_ended, Kind.STALLED),
    (a_cycle_never_opened, Kind.STALLED),
    (a_workflow_answers_otherwise_than_its_record, Kind.STALLED),
]


def test_a_sound_trace_has_no_finding() -> None:
    assert findings(RECORDED) == []
    # It is no empty one: each promise has something to hold.
    assert {cycle.answered for cycle in RECORDED.cycles} == {"promoted"}
    for promised in (RECORDED.outcomes, RECORDED.transfers, RECORDED.events, RECORDED.ledger):
        assert len(promised) > 20


@pytest.mark.parametrize(("doctor", "kind"), DOCTORED, ids=lambda case: getattr(case, "__name__", str(case)))
def test_each_broken_promise_is_found_as_what_it_is(doctor: Callable[[Trace], None], kind: Kind) -> None:
    trace = sound()
    doctor(trace)

    assert {finding.kind for finding in findings(trace)} == {kind}


def test_a_task_that_has_not_ended_is_stalled() -> None:
    trace = sound()
    a_task_has_not_ended(trace)

    # Its payment was taken out with it, so that nothing else is wrong.
    assert [finding.kind for finding in findings(trace)] == [Kind.STALLED]


def test_an_event_that_arrives_twice_is_no_fault() -> None:
    trace = sound()
    trace.received.append(trace.received[0])

    assert findings(trace) == []


def test_an_unacknowledged_outcome_may_be_there_or_not() -> None:
    trace = sound()
    there = trace.outcomes[0].task_id
    trace.acknowledged.pop(there, None)

    assert findings(trace) == []


def test_a_penalty_that_was_taken_is_owed() -> None:
    trace = sound()
    a_missed_deadline_costs_nothing(trace)
    award = next(award for award in trace.awards if award.missed)
    penalty = Transfer(
        reference=f"penalty:{CYCLE}:{award.agent_id}", debit=award.agent_id, credit="treasury", amount=award.price // 2
    )
    trace.transfers.append(penalty)

    assert findings(trace) == []


def test_the_report_has_exactly_the_fields_of_its_contract() -> None:
    trace = sound()
    a_payment_is_made_twice(trace)
    an_entry_was_removed(trace)
    a_cycle_has_not_ended(trace)
    act = Act("sqlite", trace, findings(trace), Counter({"worker-1": 3}), Counter(), {}, Counter())

    assert report(7, [act, act], 1.234) == {
        "seed": 7,
        "kills": 6,
        "cycles": 6,
        "ended": 4,
        "promotions_lost": 0,
        "promotions_double": 0,
        "payments_double": 2,
        "outcomes_lost": 0,
        "outcomes_double": 0,
        "events_lost": 0,
        "ledger_ok": False,
        "seconds": 1.2,
    }
