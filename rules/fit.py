"""Fit: shortens a diagnosis until it travels in one message, and says what was left out.

What concerns the task type in question goes last. What is cut is cut from the end, where the least telling stands:
samples are the newest first, contrasts the strongest, reasons the most frequent, changes the newest.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from schema.messages.diagnosis import Diagnosis, TaskTypeDiagnosis

# Temporal warns at 256 kB of payload; the rest is for the envelope.
LARGEST_BYTES = 250_000
# Halving this often leaves a thirtieth; then nothing.
HALVINGS = 5

# What was left out, in the words of `Diagnosis.left_out`.
OTHER_FACTS = "facts about other task types"
OTHER_PARAMETERS = "parameters of other task types"
OTHER_TYPES = "other task types"
OWN_FACTS = "facts about the task type"
HISTORY = "older changes, cycles and memory"
BULKIEST = "the bulkiest parameters"

T = TypeVar("T")
Step = tuple[str, Callable[[Diagnosis], Diagnosis]]


def fitted(diagnosis: Diagnosis, task_type: str, largest_bytes: int = LARGEST_BYTES) -> Diagnosis:
    """The diagnosis with at most so many bytes of JSON; `task_type` is the one in question, or empty."""
    left_out: list[str] = []
    for name, cut in _steps(task_type, len(diagnosis.parameters)):
        if _bytes_of(diagnosis) <= largest_bytes:
            break
        shorter = cut(diagnosis)
        if shorter != diagnosis and name not in left_out:
            left_out.append(name)
        diagnosis = shorter.model_copy(update={"left_out": tuple(left_out)})
    return diagnosis


def _bytes_of(diagnosis: Diagnosis) -> int:
    return len(diagnosis.model_dump_json().encode())


def _steps(task_type: str, parameter_count: int) -> Iterator[Step]:
    """What to cut, in this order, each as often as it may be needed.

    What says least about the task type in question goes first: facts, parameters and then all of the other types.
    History is halved before the other types go and deleted after them, because the latest of it is the most telling.
    The parameters are last: without them an agent cannot propose a change.
    """
    halves = [0.5] * HALVINGS
    until_nothing = [*halves, 0.0]

    for share in until_nothing:
        yield OTHER_FACTS, partial(_with_less, share=share, task_type=task_type, own=False)
    if task_type:
        yield OTHER_PARAMETERS, partial(_with_own_parameters, task_type=task_type)
    for share in halves:
        yield HISTORY, partial(_with_less_history, share=share)
    for share in until_nothing:
        yield OTHER_TYPES, partial(_with_fewer_types, share=share, task_type=task_type)

    for share in until_nothing:
        yield OWN_FACTS, partial(_with_less, share=share, task_type=task_type, own=True)
    yield HISTORY, partial(_with_less_history, share=0.0)
    for _ in range(parameter_count):
        yield BULKIEST, _without_the_bulkiest


def _first(items: tuple[T, ...], share: float) -> tuple[T, ...]:
    return items[: math.ceil(share * len(items))]


def _with_less(diagnosis: Diagnosis, share: float, task_type: str, own: bool) -> Diagnosis:
    """With a share of the facts about the type in question (`own`), or about each of the others."""
    types = []
    for facts in diagnosis.task_types:
        is_own = facts.task_type == task_type
        types.append(_shorter(facts, share) if is_own == own else facts)
    return diagnosis.model_copy(update={"task_types": tuple(types)})


def _shorter(facts: TaskTypeDiagnosis, share: float) -> TaskTypeDiagnosis:
    fields = ("samples", "contrasts", "reasons")
    return facts.model_copy(update={name: _first(getattr(facts, name), share) for name in fields})


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


def _without_the_bulkiest(diagnosis: Diagnosis) -> Diagnosis:
    bulkiest = max(diagnosis.parameters, key=lambda state: len(state.model_dump_json()))
    kept = tuple(state for state in diagnosis.parameters if state is not bulkiest)
    return diagnosis.model_copy(update={"parameters": kept})
