"""Fit: shortens a diagnosis until it travels in one message, and says what was left out.

What concerns the task type in question goes last, and the first of its facts always stay. What is cut is cut from the
end, where the least telling stands: samples are the newest first, contrasts the strongest, reasons the most frequent,
changes the newest. Of a long text its beginning stays.

Must never: make of a text another one that an agent would propose.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from rules.rates import worst
from schema.messages.base import Value, format_value
from schema.messages.diagnosis import Diagnosis, ParameterChange, PastEnding, TaskTypeDiagnosis
from schema.messages.platform import Parameter, ParameterKind, ParameterState

# Temporal warns at 256 kB of payload; the rest is for the envelope.
LARGEST_BYTES = 250_000
# Halving this often leaves a thirtieth; then nothing.
HALVINGS = 5
# Longer texts are what makes a diagnosis bulky; shorter ones cost less than what they say is worth.
LONG_TEXT = 1_000
# What stays of the facts about the task type in question: without samples no built-in agent bids. About 30 kB at most.
LEAST = {"samples": 50, "reasons": 5, "contrasts": 5}
NOTHING = dict.fromkeys(LEAST, 0)

# What was left out, in the words of `Diagnosis.left_out`.
OTHER_TEXTS = "all but the beginnings of texts of other task types"
OTHER_FACTS = "facts about other task types"
OTHER_PARAMETERS = "parameters of other task types"
OTHER_TYPES = "other task types"
DEFAULTS = "all but the beginnings of default texts"
OLD_TEXTS = "long texts of changes and cycles"
OWN_TEXTS = "all but the beginnings of the longest texts"
OWN_FACTS = "facts about the task type"
HISTORY = "older changes, cycles and memory"
BULKIEST = "the bulkiest parameters"

T = TypeVar("T")
Step = tuple[str, Callable[[Diagnosis], Diagnosis]]


def fitted(diagnosis: Diagnosis, task_type: str, largest_bytes: int = LARGEST_BYTES, parameter: str = "") -> Diagnosis:
    """The diagnosis with at most so many bytes of JSON.

    `task_type` is the one in question; where it is empty, that is the one that fails most. `parameter` is one of its
    parameters that is proposed to change, and is never left out.
    """
    in_question = task_type or worst({facts.task_type: facts.counts for facts in diagnosis.task_types})
    left_out: list[str] = []
    for name, cut in _steps(diagnosis, in_question, largest_bytes, parameter):
        if _bytes_of(diagnosis) <= largest_bytes:
            break
        shorter = cut(diagnosis)
        if shorter != diagnosis and name not in left_out:
            left_out.append(name)
        diagnosis = shorter.model_copy(update={"left_out": tuple(left_out)})
    return diagnosis


def _bytes_of(diagnosis: Diagnosis) -> int:
    return len(diagnosis.model_dump_json().encode())


def _steps(diagnosis: Diagnosis, task_type: str, largest_bytes: int, parameter: str) -> Iterator[Step]:
    """What to cut, in this order, each as often as it may be needed.

    What says least about the task type in question goes first: texts, facts, parameters and then all of the other
    types. A long text travels as a default, as a value and in the history: the copies go before anything else of the
    type in question, those of suspects last, and the values before its facts. History is halved before the other types
    go and deleted after them, because the latest of it is the most telling. The parameters are last: without them an
    agent cannot propose a change. The least facts go only under a limit that leaves no room for them.
    """
    halves = [0.5] * HALVINGS
    until_nothing = [*halves, 0.0]

    yield OTHER_TEXTS, partial(_with_short_texts, task_type=task_type)
    for share in until_nothing:
        yield OTHER_FACTS, partial(_with_less, share=share, task_type=task_type, own=False, least=NOTHING)
    yield DEFAULTS, _with_short_defaults
    yield OLD_TEXTS, partial(_with_short_history, but_suspects=True)
    if task_type:
        yield OTHER_PARAMETERS, partial(_with_own_parameters, task_type=task_type)
    yield OLD_TEXTS, partial(_with_short_history, but_suspects=False)
    for share in halves:
        yield HISTORY, partial(_with_less_history, share=share)
    for share in until_nothing:
        yield OTHER_TYPES, partial(_with_fewer_types, share=share, task_type=task_type)

    for _ in filter(_has_long_text, diagnosis.parameters):
        yield OWN_TEXTS, _with_the_longest_cut
    for share in until_nothing:
        yield OWN_FACTS, partial(_with_less, share=share, task_type=task_type, own=True, least=LEAST)
    yield HISTORY, partial(_with_less_history, share=0.0)
    yield BULKIEST, partial(_without_the_bulkiest, largest_bytes=largest_bytes, kept=parameter)
    for share in until_nothing:
        yield OWN_FACTS, partial(_with_less, share=share, task_type=task_type, own=True, least=NOTHING)


def _first(items: tuple[T, ...], share: float, least: int = 0) -> tuple[T, ...]:
    return items[: max(least, math.ceil(share * len(items)))]


def _with_less(diagnosis: Diagnosis, share: float, task_type: str, own: bool, least: Mapping[str, int]) -> Diagnosis:
    """With a share of the facts about the type in question (`own`), or about each of the others; `least` by field."""
    types = []
    for facts in diagnosis.task_types:
        is_own = facts.task_type == task_type
        types.append(_shorter(facts, share, least) if is_own == own else facts)
    return diagnosis.model_copy(update={"task_types": tuple(types)})


def _shorter(facts: TaskTypeDiagnosis, share: float, least: Mapping[str, int]) -> TaskTypeDiagnosis:
    return facts.model_copy(update={name: _first(getattr(facts, name), share, least[name]) for name in least})


def _with_less_history(diagnosis: Diagnosis, share: float) -> Diagnosis:
    fields = ("changes", "endings", "memory")
    return diagnosis.model_copy(update={name: _first(getattr(diagnosis, name), share) for name in fields})


def _with_own_parameters(diagnosis: Diagnosis, task_type: str) -> Diagnosis:
    own = tuple(state for state in diagnosis.parameters if task_type in state.declaration.task_types)
    return diagnosis.model_copy(update={"parameters": own})


def _with_fewer_types(diagnosis: Diagnosis, share: float, task_type: str) -> Diagnosis:
    """The one in question, and of the others those that fail most, in the order of the declaration."""
    others = [facts for facts in diagnosis.task_types if facts.task_type != task_type]
    others.sort(key=lambda facts: facts.counts.successes - facts.counts.tasks)
    kept = {facts.task_type for facts in _first(tuple(others), share)} | {task_type}
    types = tuple(facts for facts in diagnosis.task_types if facts.task_type in kept)
    return diagnosis.model_copy(update={"task_types": types})


def _without_the_bulkiest(diagnosis: Diagnosis, largest_bytes: int, kept: str) -> Diagnosis:
    """Without as few parameters but the `kept` one as make it fit: hundreds may go, so each is measured once."""
    excess = _bytes_of(diagnosis) - largest_bytes + len(BULKIEST) + len('"",')
    sizes = {state.declaration.key: len(state.model_dump_json().encode()) for state in diagnosis.parameters}
    sizes.pop(kept, None)
    dropped = set()
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if excess <= 0:
            break
        dropped.add(key)
        excess -= sizes[key]
    states = tuple(state for state in diagnosis.parameters if state.declaration.key not in dropped)
    return diagnosis.model_copy(update={"parameters": states})


# ---- long texts


def _is_long(value: Value | None) -> bool:
    return isinstance(value, str) and len(value) > LONG_TEXT


def _with_short_texts(diagnosis: Diagnosis, task_type: str) -> Diagnosis:
    """With the beginnings of the long texts of parameters that do not touch the task type."""
    states = []
    for state in diagnosis.parameters:
        is_own = task_type in state.declaration.task_types
        states.append(state if is_own else _with_short_value(_with_short_default(state)))
    return diagnosis.model_copy(update={"parameters": tuple(states)})


def _with_short_defaults(diagnosis: Diagnosis) -> Diagnosis:
    return diagnosis.model_copy(update={"parameters": tuple(map(_with_short_default, diagnosis.parameters))})


def _with_the_longest_cut(diagnosis: Diagnosis) -> Diagnosis:
    """With the beginning of the one value that takes the most bytes, if one is long."""
    long = filter(_has_long_text, diagnosis.parameters)
    longest = max(long, key=lambda state: len(str(state.value).encode()), default=None)
    states = tuple(_with_short_value(state) if state is longest else state for state in diagnosis.parameters)
    return diagnosis.model_copy(update={"parameters": states})


def _has_long_text(state: ParameterState) -> bool:
    """Whether the value is a text; a long choice must stay one of the choices."""
    return state.declaration.kind is ParameterKind.TEXT and _is_long(state.value)


def _with_short_value(state: ParameterState) -> ParameterState:
    return state.model_copy(update={"value": format_value(state.value)}) if _has_long_text(state) else state


def _with_short_default(state: ParameterState) -> ParameterState:
    declared = state.declaration
    return state.model_copy(update={"declaration": declared.model_copy(update={"default": _short_default(declared)})})


def _short_default(declared: Parameter) -> Value:
    """The beginning of a long default, with every placeholder: who reads a declaration validates its default."""
    beginning = " ".join((format_value(declared.default), *declared.placeholders))
    is_shorter = _is_long(declared.default) and len(beginning) < len(str(declared.default))
    return beginning if is_shorter and declared.refusal(beginning) is None else declared.default


def _with_short_history(diagnosis: Diagnosis, but_suspects: bool) -> Diagnosis:
    """Changes and endings at once: a text that was tried in vain must not stay in the one and be lost in the other.

    But for suspects: agents know by its value that a change is in force, and propose the one before.
    """
    kept = _suspects(diagnosis) if but_suspects else []
    changes = tuple(change if change in kept else _short_change(change) for change in diagnosis.changes)
    endings = tuple(map(_short_end, diagnosis.endings))
    return diagnosis.model_copy(update={"changes": changes, "endings": endings})


def _suspects(diagnosis: Diagnosis) -> list[ParameterChange]:
    """The newest change of each parameter that production runs on the value of."""
    newest: dict[str, ParameterChange] = {}
    for change in diagnosis.changes:
        newest.setdefault(change.parameter, change)
    in_force = {state.declaration.key: state.value for state in diagnosis.parameters}
    return [change for key, change in newest.items() if not change.is_first and change.value == in_force.get(key)]


def _short_change(change: ParameterChange) -> ParameterChange:
    """With no long value before: agents propose to go back to it, and its beginning is another text."""
    before = None if _is_long(change.before) else change.before
    value = format_value(change.value) if _is_long(change.value) else change.value
    return change.model_copy(update={"before": before, "value": value})


def _short_end(ending: PastEnding) -> PastEnding:
    texts = {"value": ending.value, "before": ending.before}
    return ending.model_copy(update={name: format_value(text) for name, text in texts.items() if _is_long(text)})
