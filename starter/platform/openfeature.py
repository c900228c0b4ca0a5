"""OpenFeature: our parameters behind the standard's Python SDK. An adapter of the resolver; it decides nothing itself.

A flag is a parameter, the targeting key the task's id, and a variant an arm, or `in_force` where no experiment exposes
the task. A provider that has a recorder records each exposure by a hook, before the task learns its value.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from threading import Lock
from typing import Any, TypeVar

from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEventDetails
from openfeature.exception import FlagNotFoundError, InvalidContextError, TypeMismatchError
from openfeature.flag_evaluation import FlagEvaluationDetails, FlagResolutionDetails, FlagValueType, Reason
from openfeature.hook import Hook, HookContext, HookHints
from openfeature.provider import AbstractProvider, Metadata
from pydantic import ValidationError

from rules.flagd import flags
from schema.messages.base import Value
from schema.messages.experiment import Assignment, Configuration
from starter.platform.recorder import Recorder
from starter.platform.resolver import Evaluation, ParameterResolver

T = TypeVar("T", bool, str, int, float)
Structure = Sequence[FlagValueType] | Mapping[str, FlagValueType]
Context = EvaluationContext | None
# A task asks for a few parameters within minutes; to record one again changes nothing, and costs a row's lookup.
REMEMBERED = 10_000


class NautilusProvider(AbstractProvider):
    """Resolves flags in process. `resolver` and `recorder` stay its caller's, who closes them."""

    def __init__(self, resolver: ParameterResolver, recorder: Recorder | None = None) -> None:
        super().__init__()
        self._resolver = resolver
        self._hooks: list[Hook] = [] if recorder is None else [ExposureHook(recorder)]
        self._announced = resolver.configuration
        self._is_stale = False

    def get_metadata(self) -> Metadata:
        return Metadata(name="nautilus")

    def get_provider_hooks(self) -> list[Hook]:
        return self._hooks

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        self._resolver.listen(self._announce)

    def shutdown(self) -> None:
        self._resolver.unlisten(self._announce)

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: Context = None
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, evaluation_context, _boolean)

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: Context = None
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, evaluation_context, _string)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: Context = None
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, evaluation_context, _integer)

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: Context = None
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, evaluation_context, _float)

    def resolve_object_details(
        self, flag_key: str, default_value: Structure, evaluation_context: Context = None
    ) -> FlagResolutionDetails[Structure]:
        raise TypeMismatchError(f"expected a boolean, string, integer or float, but an object was asked of {flag_key}")

    def _resolve(self, key: str, context: Context, convert: Callable[[str, Value], T]) -> FlagResolutionDetails[T]:
        task = context.targeting_key if context else None
        try:
            evaluation = self._resolver.evaluate(key, task or None)
        except KeyError:
            raise FlagNotFoundError(f"expected a declared parameter, but {key} came") from None
        return FlagResolutionDetails(
            value=convert(key, evaluation.value),
            reason=Reason(evaluation.reason),
            variant=evaluation.variant,
            flag_metadata=_metadata(evaluation, task),
        )

    def _announce(self, latest: Configuration | None) -> None:
        """Emit what a read of the configuration means: stale, ready again, or which flags have changed."""
        if latest is None:
            if not self._is_stale:
                self._is_stale = True
                self.emit_provider_stale(ProviderEventDetails(message="the last good configuration is kept"))
            return
        if self._is_stale:
            self._is_stale = False
            self.emit_provider_ready(ProviderEventDetails())
        if changed := _changed(self._announced, latest):
            self.emit_provider_configuration_changed(ProviderEventDetails(flags_changed=changed))
        self._announced = latest


class ExposureHook(Hook):
    """Records that a task was exposed, once for each task and experiment that it remembers.

    A task whose exposure cannot be recorded gets the caller's default and an error: it must not be in an arm unnoticed.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._recorded: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = Lock()

    def after(self, hook_context: HookContext, details: FlagEvaluationDetails[FlagValueType], hints: HookHints) -> None:
        assignment = _assignment(details, datetime.now(UTC))
        if assignment is None:
            return
        exposure = (assignment.experiment_id, assignment.task_id)
        if exposure not in self._recorded:
            self._recorder.assigned([assignment])
            self._remember(exposure)

    def _remember(self, exposure: tuple[str, str]) -> None:
        with self._lock:
            self._recorded[exposure] = None
            if len(self._recorded) > REMEMBERED:
                self._recorded.popitem(last=False)


def _assignment(details: FlagEvaluationDetails[FlagValueType], at: datetime) -> Assignment | None:
    """The exposure that an evaluation is; None where no arm was given out.

    All of it is in the evaluation: by now the resolver may have another configuration, and the context that a hook is
    given lacks what hooks of the caller's have put into it. Raises InvalidContextError.
    """
    facts = details.flag_metadata
    if details.reason != Reason.SPLIT or "task_id" not in facts:
        return None
    try:
        return Assignment.model_validate(
            {
                "experiment_id": facts["experiment"],
                "task_id": facts["task_id"],
                "variant": details.variant,
                "treatment_share": facts["treatment_share"],
                "assigned_at": at,
            }
        )
    except ValidationError:
        expected = "expected a targeting key that is a task's id (letters, digits, _.:@/#+-, at most 200)"
        raise InvalidContextError(f"{expected}, but {facts['task_id']!r} came") from None


def _metadata(evaluation: Evaluation, task: str | None) -> dict[str, bool | int | float | str]:
    metadata: dict[str, bool | int | float | str] = {"version": evaluation.version}
    if evaluation.experiment is not None:
        metadata["experiment"] = evaluation.experiment.experiment_id
    if evaluation.experiment is not None and evaluation.is_exposed and task:
        metadata |= {"treatment_share": evaluation.experiment.treatment_share, "task_id": task}
    return metadata


def _boolean(key: str, value: Value) -> bool:
    if not isinstance(value, bool):
        raise _mismatch(key, "boolean", value)
    return value


def _string(key: str, value: Value) -> str:
    if not isinstance(value, str):
        raise _mismatch(key, "string", value)
    return value


def _integer(key: str, value: Value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):  # Python's True is an int
        raise _mismatch(key, "integer", value)
    return value


def _float(key: str, value: Value) -> float:
    if isinstance(value, bool | str):
        raise _mismatch(key, "float", value)
    return float(value)


def _mismatch(key: str, asked: str, value: Value) -> TypeMismatchError:
    return TypeMismatchError(f"expected {key} to be asked as what it is, {type(value).__name__}, but {asked} was asked")


def _changed(before: Configuration, latest: Configuration) -> list[str]:
    """The flags of either that are not alike in both."""
    if before == latest:
        return []
    old: dict[str, Any] = flags(before)["flags"]
    new: dict[str, Any] = flags(latest)["flags"]
    return sorted(key for key in old | new if old.get(key) != new.get(key))
