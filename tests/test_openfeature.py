"""The OpenFeature provider: the SDK answers what the resolver does, says why, and no exposure goes unrecorded."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import EventDetails, ProviderEvent
from openfeature.exception import ErrorCode
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagEvaluationOptions, Reason
from openfeature.hook import Hook, HookContext, HookHints

from rules.assignment import variant
from schema.messages.base import Value
from schema.messages.experiment import Configuration, RunningExperiment
from starter.platform.openfeature import NautilusProvider
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver
from tests.builders import TIMEOUT, Fixed
from tests.patience import PATIENCE_S

TESTED = "success_rate:research_synthesis#1"
VALUES: dict[str, Value] = {TIMEOUT: 90.0, "a.count": 8, "a.on": True, "a.prompt": "Answer {question}.", "a.whole": 5.0}


def running(**changes: Any) -> RunningExperiment:
    fields: dict[str, Any] = {
        "experiment_id": TESTED,
        "parameter": TIMEOUT,
        "task_types": ("research_synthesis",),
        "control": 90.0,
        "treatment": 180.0,
        "treatment_share": 0.5,
    }
    return RunningExperiment(**(fields | changes))


def configuration(*experiments: RunningExperiment, **values: Value) -> Configuration:
    in_force = VALUES | values
    return Configuration(values=in_force, experiments=experiments, versions=dict.fromkeys(in_force, 3))


@pytest.fixture
def store() -> Fixed:
    return Fixed(configuration(running()))


@pytest.fixture
def recorder(store: Fixed) -> Iterator[Recorder]:
    with Recorder(store, linger_s=0) as recorder:
        yield recorder


@pytest.fixture
def resolver(store: Fixed) -> Iterator[ParameterResolver]:
    with ParameterResolver(store, refresh_s=0.02) as resolver:
        yield resolver


@pytest.fixture
def client(resolver: ParameterResolver, recorder: Recorder) -> Iterator[OpenFeatureClient]:
    api.set_provider_and_wait(NautilusProvider(resolver, recorder))
    yield api.get_client()
    api.shutdown()


def for_task(task: str | None) -> EvaluationContext:
    return EvaluationContext(targeting_key=task)


def test_tasks_are_split_as_the_assignment_says_and_the_sdk_says_why(client: OpenFeatureClient) -> None:
    for number in range(100):
        details = client.get_float_details(TIMEOUT, 1.0, for_task(f"task-{number}"))

        arm = variant(TESTED, f"task-{number}", 0.5)
        assert (details.variant, details.reason) == (arm.value, Reason.SPLIT)
        assert details.value == (180.0 if arm == "treatment" else 90.0)
        assert details.flag_metadata["version"] == 3
        assert details.flag_metadata["experiment"] == TESTED


def test_every_kind_of_parameter_resolves_as_its_type(client: OpenFeatureClient) -> None:
    context = for_task("task-1")

    assert client.get_integer_value("a.count", 0, context) == 8
    assert client.get_boolean_value("a.on", False, context) is True
    assert client.get_string_value("a.prompt", "", context) == "Answer {question}."
    # A whole number is a float to who asks so: JSON does not tell them apart.
    assert client.get_float_value("a.count", 0.0, context) == 8.0
    static = client.get_string_details("a.prompt", "", context)
    assert (static.reason, static.variant, static.flag_metadata) == (Reason.STATIC, "in_force", {"version": 3})


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda client: client.get_float_details("no.such", 1.0), ErrorCode.FLAG_NOT_FOUND),
        (lambda client: client.get_boolean_details("a.count", False), ErrorCode.TYPE_MISMATCH),
        (lambda client: client.get_integer_details("a.on", 7), ErrorCode.TYPE_MISMATCH),  # True is an int in Python
        (lambda client: client.get_integer_details("a.whole", 7), ErrorCode.TYPE_MISMATCH),
        (lambda client: client.get_float_details("a.on", 7.0), ErrorCode.TYPE_MISMATCH),
        (lambda client: client.get_float_details("a.prompt", 7.0), ErrorCode.TYPE_MISMATCH),
        (lambda client: client.get_string_details("a.count", "x"), ErrorCode.TYPE_MISMATCH),
        (lambda client: client.get_object_details("a.prompt", {}), ErrorCode.TYPE_MISMATCH),
    ],
)
def test_what_cannot_be_answered_is_the_caller_s_default_and_a_reason(
    client: OpenFeatureClient, ask: Callable[[OpenFeatureClient], FlagEvaluationDetails[Any]], code: ErrorCode
) -> None:
    details = ask(client)

    assert (details.error_code, details.reason) == (code, Reason.ERROR)
    assert details.value in (1.0, 7, 7.0, False, "x", {})
    assert details.error_message
    assert details.error_message.startswith("expected ")


def test_who_names_no_task_gets_what_is_in_force_and_is_no_exposure(store: Fixed, recorder: Recorder) -> None:
    # Under the watch after a promotion the treatment is in force.
    store.installed = configuration(running(treatment_share=0.9), **{TIMEOUT: 180.0})
    with ParameterResolver(store) as resolver:
        api.set_provider_and_wait(NautilusProvider(resolver, recorder))
        details = api.get_client().get_float_details(TIMEOUT, 1.0)
        api.shutdown()
    recorder.close()

    assert (details.value, details.variant, details.reason) == (180.0, "in_force", Reason.DEFAULT)
    assert store.assignments == []


def test_a_task_outside_the_exposed_share_is_no_exposure(store: Fixed, recorder: Recorder) -> None:
    store.installed = configuration(running(exposure=0.0))
    with ParameterResolver(store) as resolver:
        api.set_provider_and_wait(NautilusProvider(resolver, recorder))
        details = api.get_client().get_float_details(TIMEOUT, 1.0, for_task("task-1"))
        api.shutdown()
    recorder.close()

    assert (details.value, details.variant, details.reason) == (90.0, "in_force", Reason.DEFAULT)
    assert details.flag_metadata == {"version": 3, "experiment": TESTED}
    assert store.assignments == []


def test_an_exposure_is_recorded_once_however_often_a_task_asks(
    client: OpenFeatureClient, recorder: Recorder, store: Fixed
) -> None:
    for _ in range(3):
        for number in range(20):
            client.get_float_value(TIMEOUT, 1.0, for_task(f"task-{number}"))
    recorder.close()

    recorded = {assignment.task_id: assignment.variant for assignment in store.assignments}
    assert len(store.assignments) == 20
    assert recorded == {f"task-{number}": variant(TESTED, f"task-{number}", 0.5) for number in range(20)}
    assert {(a.experiment_id, a.treatment_share) for a in store.assignments} == {(TESTED, 0.5)}


class _Names(Hook):
    """A hook of the platform's own, which knows the task."""

    def before(self, hook_context: HookContext, hints: HookHints) -> EvaluationContext:
        return for_task("task-7")


def test_a_task_that_another_hook_names_is_recorded_under_that_name(
    client: OpenFeatureClient, recorder: Recorder, store: Fixed
) -> None:
    options = FlagEvaluationOptions(hooks=[_Names()])
    client.get_float_value(TIMEOUT, 1.0, for_task("task-1"), options)
    recorder.close()

    assert [(a.task_id, a.variant) for a in store.assignments] == [("task-7", variant(TESTED, "task-7", 0.5))]


def test_what_cannot_be_recorded_is_not_exposed(client: OpenFeatureClient, recorder: Recorder, store: Fixed) -> None:
    spoilt = client.get_float_details(TIMEOUT, 1.0, for_task("two words"))
    recorder.close()
    twice = [client.get_float_details(TIMEOUT, 1.0, for_task("task-1")) for _ in range(2)]

    assert (spoilt.value, spoilt.error_code) == (1.0, ErrorCode.INVALID_CONTEXT)
    assert spoilt.error_message
    assert "two words" in spoilt.error_message
    assert [(details.value, details.error_code) for details in twice] == [(1.0, ErrorCode.GENERAL)] * 2
    assert store.assignments == []


def test_without_a_recorder_it_only_resolves(resolver: ParameterResolver, store: Fixed) -> None:
    api.set_provider_and_wait(NautilusProvider(resolver))
    details = api.get_client().get_float_details(TIMEOUT, 1.0, for_task("task-1"))
    api.shutdown()

    assert details.reason == Reason.SPLIT
    assert store.assignments == []


class _Heard:
    """Waits for events."""

    def __init__(self, *events: ProviderEvent) -> None:
        self.details = {event: EventDetails() for event in events}
        self.came = {event: threading.Event() for event in events}
        for event in events:
            api.add_handler(event, partial(self.hear, event))

    def hear(self, event: ProviderEvent, details: EventDetails) -> None:
        self.details[event] = details
        self.came[event].set()

    def once_it_comes(self, event: ProviderEvent) -> EventDetails:
        assert self.came[event].wait(PATIENCE_S), event
        return self.details[event]


def test_a_changed_configuration_is_an_event_that_names_the_flags(client: OpenFeatureClient, store: Fixed) -> None:
    heard = _Heard(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED)

    store.installed = configuration(**{"a.count": 9})

    # The experiment has ended, and one value is another.
    changed = heard.once_it_comes(ProviderEvent.PROVIDER_CONFIGURATION_CHANGED).flags_changed
    assert changed == ["a.count", TIMEOUT]
    assert client.get_integer_value("a.count", 0) == 9


def test_a_store_that_is_away_makes_the_provider_stale_and_its_return_ready(
    client: OpenFeatureClient, store: Fixed
) -> None:
    stale, ready = ProviderEvent.PROVIDER_STALE, ProviderEvent.PROVIDER_READY
    heard = _Heard(stale)

    store.away = True
    heard.once_it_comes(stale)
    assert client.get_integer_value("a.count", 0) == 8  # the last good configuration
    again = _Heard(ready)
    store.away = False

    again.once_it_comes(ready)


def test_who_listens_hears_every_read_until_it_stops(store: Fixed) -> None:
    heard: list[Configuration | None] = []
    first, second = threading.Event(), threading.Event()

    def listen(latest: Configuration | None) -> None:
        heard.append(latest)
        first.set()

    with ParameterResolver(store, refresh_s=0.01) as resolver:
        resolver.listen(listen)
        assert first.wait(PATIENCE_S)
        resolver.unlisten(listen)
        resolver.listen(lambda _: second.set())
        assert second.wait(PATIENCE_S)
        count = len(heard)
        second.clear()
        assert second.wait(PATIENCE_S)

    assert len(heard) == count
    assert set(map(type, heard)) == {Configuration}


def test_it_needs_no_database() -> None:
    code = "import sys, starter.platform.openfeature; print('\\n'.join(sys.modules))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert {name.partition(".")[0] for name in loaded}.isdisjoint(
        {"sqlalchemy", "sqlmodel", "activities", "temporalio"}
    )
