"""Drafts: what a language model suggests, and what is left of it when it is checked against the data. Pure.

A draft is a wish. It becomes a plan only where it is legal, was not refuted before, and the built-in check, which reads
nothing that the model wrote, would itself vote for it as another's proposal. The plan's chance, its evidence and the
most that it promises are the check's, from the records: of the model it keeps the change, words that are marked as the
model's, and a forecast only where that is lower. So a model that was talked into something can propose at worst what
the check finds worth an experiment anyway.

Must never: let a model raise a chance, a forecast or a figure, or take its word for what the records show.
"""

from collections.abc import Collection, Sequence
from statistics import NormalDist
from typing import NamedTuple

from pydantic import BaseModel, Field, ValidationError

from rules import bounds
from rules.redaction import redacted
from schema.display import one_line
from schema.messages.base import Value, format_value
from schema.messages.platform import ParameterKind, ParameterState
from schema.messages.proposals import Choice, Evidence
from schema.mistakes import in_one_line

from .declines import DIGITS
from .estimators import observed_tail
from .evidence import FAILED, Case, Limit
from .investigator import CERTAIN, Investigator, Plan, explanation, longer_limit, promised_gain
from .search import Idea, idea_of, ideas
from .written_texts import objection as foreign

# More are not checked: each costs some milliseconds.
MOST_DRAFTS = 6
# Of the model's words in a proposal, a ballot or a decline.
LONGEST_WORDS, LONGEST_REFUSAL = 600, 240


class Draft(BaseModel):
    """One change of one parameter that might help."""

    parameter: str = Field(description="The key of a parameter in the records.")
    value: bool | int | float | str = Field(description="Its new value, within its bounds; for a text the whole text.")
    root_cause: str = Field(description="What is wrong, and why this change may mend it, in two or three sentences.")
    predicted_rate: float = Field(description="The share of good tasks expected with the new value, 0 to 1.")


class Drafts(BaseModel):
    """Different changes worth trying, the best first; none where nothing is, and then why."""

    drafts: list[Draft]
    nothing_because: str = ""


class Opinion(BaseModel):
    """What the model thinks of another agent's proposal."""

    choice: Choice
    reason: str = Field(description="Why, in two or three sentences that name what in the records it rests on.")


class Checked(NamedTuple):
    """The plan of the best draft, None where none is left, and why each of the others was discarded."""

    plan: Plan | None
    refusals: tuple[str, ...] = ()


def words(untrusted: str, longest: int = LONGEST_WORDS) -> str:
    """What a model wrote, for a message: on one line, printable, short, without what looks like a credential."""
    # Cut first: redaction takes time that grows with the text.
    return one_line(redacted(one_line(untrusted[: 4 * longest], 2 * longest)), longest)


def best(case: Case, drafts: Sequence[Draft], check: Investigator, readable: Collection[str]) -> Checked:
    """The plan that promises most in the mean, of equals the first. `readable` are the texts that were shown whole."""
    plans: list[Plan] = []
    refusals: list[str] = []
    for draft in drafts[:MOST_DRAFTS]:
        plan = checked(case, draft, check, readable)
        if isinstance(plan, Plan):
            plans.append(plan)
        else:
            named = words(f"{draft.parameter} = {format_value(draft.value)}", LONGEST_REFUSAL)
            refusals.append(f"{named}: {one_line(plan, LONGEST_REFUSAL)}")
    baseline = case.baseline.rate or 0.0
    # max keeps the first of equals: the model has put its best first.
    return Checked(max(plans, key=lambda plan: plan.chance * (plan.rate - baseline), default=None), tuple(refusals))


def checked(case: Case, draft: Draft, check: Investigator, readable: Collection[str]) -> Plan | str:
    """The plan of a draft, or why it is discarded."""
    state = next((state for state in case.touching if state.declaration.key == draft.parameter), None)
    if state is None:
        return "expected a parameter that may be tuned here, but this is none"
    value = _of_kind(draft.value, state)
    objection = _unwritable(case, state, value, readable) or case.against(draft.parameter, value, FAILED)
    if objection is not None:
        return objection
    supported = _supported(case, state, value, check)
    if isinstance(supported, str):
        return supported
    needed = _needed_rate(case)
    rate = min(draft.predicted_rate, supported.rate)
    # Written so that NaN, which compares false with everything, is refused too.
    if not rate >= needed:
        whose = "the draft itself promises" if supported.rate >= needed else "the records support"
        return f"{whose} {rate:.1%}, and {needed:.1%} is the least worth having"
    said = words(draft.root_cause)
    plan = supported._replace(rate=max(round(rate, DIGITS), needed)).plan(state, value, said)
    return _objection(case, check, plan) or plan


class _Supported(NamedTuple):
    """What the records hold of a change, without anything that a model said of it."""

    rate: float
    chance: float
    cause: str
    evidence: tuple[Evidence, ...]

    def plan(self, state: ParameterState, value: Value, said: str) -> Plan:
        change = f"{state.declaration.key} from {format_value(state.value)} to {format_value(value)}"
        cause = f"{self.cause}; a language model adds: {said}" if said else self.cause
        pitch = one_line(f"{self.cause}; {change} has a chance of {self.chance:.0%}", LONGEST_WORDS)
        return Plan(state, value, self.chance, self.rate, cause, self.evidence, pitch)


def _supported(case: Case, state: ParameterState, value: Value, check: Investigator) -> _Supported | str:
    """The rate that the records support, by the durations where they show it, else what a trial may promise."""
    baseline = case.baseline.rate
    assert baseline is not None  # an agent that cannot tell asks no model
    limit = longer_limit(case, state, value)
    by_durations = _by_durations(case, limit, value, check, baseline) if limit is not None else None
    if by_durations is not None:
        return by_durations
    idea = likely(case, state, value, check)
    if idea is None:
        return "nothing speaks for going this way"
    evidence = Evidence(claim=f"a trial: {idea.why}", figures={"chance": round(idea.chance, DIGITS)})
    return _Supported(baseline + promised_gain(case, baseline), idea.chance, idea.why, (evidence,))


def likely(case: Case, state: ParameterState, value: Value, check: Investigator) -> Idea | None:
    """What the search makes of a change, a text that was written just now among it."""
    key = state.declaration.key
    written = {key: value} if state.declaration.kind is ParameterKind.TEXT else {}
    return idea_of(ideas(case, check.playbook, check.trust, check.step, written), state, value)


def _by_durations(case: Case, limit: Limit, value: Value, check: Investigator, baseline: float) -> _Supported | None:
    """What the durations on record say of a longer limit; None where they cannot tell."""
    cause = explanation(limit)
    model = check.method(case.samples) or observed_tail(case.samples)
    if cause is None or model is None or limit.in_seconds(value) > check.reach * case.longest:
        return None
    estimate = model(limit.in_seconds(value))
    gain = estimate.rate - baseline - case.status.briefing.rules.minimum_effect
    chance = limit.explained * NormalDist().cdf(gain / max(estimate.error, 1e-6))
    rate, error = round(estimate.rate, DIGITS), round(estimate.error, DIGITS)
    forecast = f"by {check.method_name} {rate:.1%} would succeed within {format_value(value)}"
    evidence = (
        Evidence(claim=cause, figures={"share_of_failures_at_limit": round(limit.explained, DIGITS)}),
        Evidence(claim=forecast, figures={"predicted_rate": rate, "standard_error": error}),
    )
    return _Supported(min(estimate.rate, CERTAIN), chance, cause, evidence)


def _objection(case: Case, check: Investigator, plan: Plan) -> str | None:
    """Why the platform would refuse a plan, or why the check would not vote for it; None where neither would."""
    try:
        proposal = check.proposed(case, plan)
    except ValidationError as error:
        return in_one_line(error)
    parameters = {state.declaration.key: state for state in case.recent.parameters}
    minimum = case.status.briefing.rules.minimum_effect
    refusal = bounds.refusal(proposal, parameters, case.task_type, _needed_rate(case) - minimum, minimum)
    if refusal is not None:
        return refusal
    choice, why = check.verdict(case, proposal)
    return None if choice is Choice.APPROVE else why


def _needed_rate(case: Case) -> float:
    """The least rate that a proposal may promise: by the newest records, and by those of when the cycle opened."""
    rates = (case.baseline.rate, case.status.briefing.baseline.rate)
    baseline = max(rate for rate in rates if rate is not None)
    return baseline + case.status.briefing.rules.minimum_effect


def _unwritable(case: Case, state: ParameterState, value: Value, readable: Collection[str]) -> str | None:
    """Why a draft's value cannot be a value of its parameter, or None."""
    if state.declaration.kind is ParameterKind.TEXT:
        if state.declaration.key not in readable:
            return "expected a text that could be read whole, but only its beginning was shown"
        if isinstance(value, str) and not value.strip():
            return "expected a text, but nothing came"
    return unfit(case, state, value)


def unfit(case: Case, state: ParameterState, value: Value) -> str | None:
    """Why nobody's value may be one of its parameter, or None: out of bounds, or a text that brings something along."""
    refusal = state.declaration.refusal(value)
    if refusal is not None or state.declaration.kind is not ParameterKind.TEXT:
        return refusal
    return foreign(str(value), str(state.value), case)


def _of_kind(value: Value, state: ParameterState) -> Value:
    """The value with the type of its parameter, where that is the same number: JSON does not tell 4 from 4.0."""
    declared = state.declaration
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if declared.kind is ParameterKind.INTEGER and isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if declared.kind is ParameterKind.FLOAT and abs(value) < 1e300 else value
