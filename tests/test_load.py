"""The benchmark under load: the bare workflow does what a cycle did, or its cost would be compared with less."""

from pathlib import Path

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory

from benchmarks.load.bare import METHODS
from benchmarks.load.ratio import script

PROMOTED = Path(__file__).parent / "histories" / "promoted.json"


def test_the_bare_workflow_calls_what_a_cycle_called_after_as_many_messages_and_timers() -> None:
    events = list(WorkflowHistory.from_json("promoted", PROMOTED.read_text()).events)
    kinds = [event.event_type for event in events]

    steps = script(events).steps

    called = [
        e.activity_task_scheduled_event_attributes
        for e in events
        if e.HasField("activity_task_scheduled_event_attributes")
    ]
    assert [step.activity for step in steps] == [scheduled.activity_type.name for scheduled in called]
    assert {step.activity for step in steps} <= METHODS.keys()
    assert steps[-1].messages == kinds.count(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED)
    windows = [window for step in steps for window in (step.message_window_s, step.window_s) if window is not None]
    assert len(windows) == kinds.count(EventType.EVENT_TYPE_TIMER_STARTED)
