"""flagd: the document says to any evaluator of flagd's what our own resolver answers, task by task."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.assignment import TOTAL_WEIGHT, bucket, weights
from rules.flagd import SCHEMA, flags
from schema.messages.base import Value
from schema.messages.experiment import Configuration, RunningExperiment
from starter.platform.resolver import ParameterResolver
from tests.builders import TIMEOUT, Fixed

PROMPT, TESTED = "research_synthesis.prompt", "success_rate:research_synthesis#1"
shares = st.floats(0, 1)
texts = st.text(max_size=20)


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
    in_force: dict[str, Value] = {TIMEOUT: 90.0, **values}
    return Configuration(values=in_force, experiments=experiments, versions=dict.fromkeys(in_force, 3))


def evaluated(flag: dict[str, Any], task: str | None) -> str:
    """The variant that flagd's rules give: json-logic's `if`, `cat` and `var`, and `fractional`."""

    def value(rule: Any) -> Any:
        match rule:
            case {"if": [condition, then, otherwise]}:
                return value(then) if value(condition) else value(otherwise)
            case {"var": "targetingKey"}:
                return task
            case {"cat": parts}:
                return "".join(value(part) or "" for part in parts)
            case {"fractional": [text, *ring]}:
                place = bucket(value(text), sum(weight for _, weight in ring))
                return next(name for i, (name, _) in enumerate(ring) if place < sum(w for _, w in ring[: i + 1]))
            case _:
                return rule

    variant: str = value(flag.get("targeting")) or flag["defaultVariant"]
    return variant


def test_a_parameter_that_nothing_tests_has_one_variant_and_no_targeting() -> None:
    document = flags(configuration(**{PROMPT: "Answer {question}."}))

    assert document["$schema"] == SCHEMA
    assert document["flags"][PROMPT] == {
        "state": "ENABLED",
        "variants": {"in_force": "Answer {question}."},
        "defaultVariant": "in_force",
        "metadata": {"version": 3},
    }


def test_an_experiment_is_a_fractional_of_experiment_and_task_for_whoever_names_a_task() -> None:
    flag = flags(configuration(running(exposure=0.5)))["flags"][TIMEOUT]

    task = {"var": "targetingKey"}
    ring = [["control", 25_000_000], ["in_force", 50_000_000], ["treatment", 25_000_000]]
    assert flag == {
        "state": "ENABLED",
        "variants": {"in_force": 90.0, "control": 90.0, "treatment": 180.0},
        "defaultVariant": "in_force",
        "metadata": {"version": 3, "experiment": TESTED},
        "targeting": {"if": [task, {"fractional": [{"cat": [TESTED, task]}, *ring]}, None]},
    }


@pytest.mark.parametrize("task", [None, ""])
def test_whoever_names_no_task_gets_what_is_in_force(task: str | None) -> None:
    under_watch = configuration(running(treatment_share=0.9), **{TIMEOUT: 180.0})

    flag = flags(under_watch)["flags"][TIMEOUT]
    with ParameterResolver(Fixed(under_watch)) as resolver:
        evaluation = resolver.evaluate(TIMEOUT, task or None)

    assert (evaluation.variant, evaluation.value) == ("in_force", 180.0)
    assert flag["variants"][evaluated(flag, task)] == 180.0


def test_at_full_exposure_no_range_is_left_for_what_is_in_force() -> None:
    targeting = json.dumps(flags(configuration(running()))["flags"][TIMEOUT]["targeting"])

    assert "in_force" not in targeting


@given(texts, texts.filter(bool), shares | st.just(1.0), shares, st.booleans())
def test_the_document_and_the_resolver_agree_on_every_task(
    experiment: str, task: str, exposure: float, share: float, is_text: bool
) -> None:
    values: dict[str, Value] = {"control": "old", "treatment": "new"} if is_text else {}
    plan = running(exposure=exposure, treatment_share=share, **values).model_copy(update={"experiment_id": experiment})
    installed = configuration(plan, **({TIMEOUT: "old"} if is_text else {}))

    flag = flags(installed)["flags"][TIMEOUT]
    with ParameterResolver(Fixed(installed)) as resolver:
        evaluation = resolver.evaluate(TIMEOUT, task)

    variant = evaluated(flag, task)
    assert (variant, flag["variants"][variant]) == (evaluation.variant, evaluation.value)


@given(shares, shares)
def test_the_ranges_fill_the_ring(exposure: float, share: float) -> None:
    ring = weights(exposure, share)

    assert sum(ring) == TOTAL_WEIGHT
    assert min(ring) >= 0


def test_the_same_configuration_is_the_same_document_in_any_process_and_order() -> None:
    code = """
import json, sys
from rules.flagd import flags
from schema.messages.experiment import Configuration
print(json.dumps(flags(Configuration.model_validate_json(sys.argv[1]))))
"""
    others: dict[str, Value] = {PROMPT: "a", "b.c": True}
    installed = configuration(running(exposure=0.1), **others)
    backwards = installed.model_copy(update={"values": dict(reversed(installed.values.items()))})

    command = [sys.executable, "-c", code, backwards.model_dump_json()]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert other == json.dumps(flags(installed))
