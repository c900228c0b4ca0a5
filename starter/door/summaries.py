"""Summaries: cycles, tasks and diagnoses as a language model reads them: what it needs to act, and no more.

Pure. Every answer is bounded: what is long is cut, and says so in its place. Texts of agents and tasks stay values of
JSON fields; none is ever put into a sentence of ours. What a model must have whole, the value that it votes on or the
payload that it works on, is bounded by itself.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from schema.messages.base import LONGEST_VALUE
from schema.messages.cycle import CycleStatus, Phase
from schema.messages.diagnosis import Contrast, Diagnosis, DurationSample, TaskTypeDiagnosis
from schema.messages.experiment import Reading
from schema.messages.market import Agent
from schema.messages.observatory import Counts
from schema.messages.platform import ParameterState
from schema.messages.proposals import Proposal
from schema.messages.tasks import TaskPhase, TaskStatus
from starter.agent_tools import Bid, HandInResult, Propose, Vote
from starter.client import Refused

# Some 4,000 tokens: a conversation holds dozens of such answers.
MOST_CHARACTERS = 16_000
# So long a text and so many items at first; less, until the whole fits. The last always does: see the test.
SIZES = ((2_000, 40), (800, 20), (400, 10), (200, 6), (200, 3), (100, 2))
# What a model copies into its next call is never cut; it is short.
COPIED = ("workflow_id", "run_id", "proposal_id", "cycle_id", "agent_id", "subject", "parameter", "task_type")
# Of one claim, whose figures are its sender's.
MOST_FIGURES = 20
MOST_STORY = 12
# A value of a parameter as one of many; `read_diagnostics` of that one parameter has the whole.
LONGEST_LISTED_VALUE = 400
TOOL_OF_PHASE = {Phase.BIDDING: Bid.tool, Phase.PROPOSING: Propose.tool, Phase.VOTING: Vote.tool}
Document = dict[str, Any]


# ---- what fits


def fitted(document: Document, most: int = MOST_CHARACTERS) -> Document:
    """The document in at most `most` characters of JSON: long texts and lists are cut, and say so."""
    shortened = document
    for longest, items in SIZES:
        shortened = _shortened(document, longest, items)
        if len(json.dumps(shortened, ensure_ascii=False)) <= most:
            break
    return shortened


def _shortened(value: Any, longest: int, items: int) -> Any:
    if isinstance(value, str):
        return beginning(value, longest)
    if isinstance(value, Mapping):
        return {name: part if name in COPIED else _shortened(part, longest, items) for name, part in value.items()}
    if isinstance(value, list | tuple):
        kept = [_shortened(part, longest, items) for part in value[:items]]
        return kept if len(value) <= items else [*kept, {"left_out": len(value) - items}]
    return value


def beginning(text: str, longest: int) -> str:
    """A text, or its beginning and how long it is."""
    return text if len(text) <= longest else f"{text[:longest]}… (cut: {len(text):,} characters)"


def whole(content: Mapping[str, Any]) -> Any:
    """An object of somebody else's as it is, or the beginning of its text where it is longer than any value."""
    text = json.dumps(content, ensure_ascii=False, default=str)
    return content if len(text) <= LONGEST_VALUE else beginning(text, LONGEST_VALUE)


def _given(document: Document) -> Document:
    """Without fields that say nothing."""
    return {name: value for name, value in document.items() if value not in (None, "", {}, [], ())}


def _rounded(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")


def _seconds_left(deadline: datetime | None, now: datetime) -> int | None:
    return None if deadline is None else max(0, round((deadline - now).total_seconds()))


# ---- cycles and tasks


def listed(status: CycleStatus | TaskStatus, agent_id: str, now: datetime) -> Document:
    """One line of what waits for an agent."""
    line: Document = {"workflow_id": status.workflow_id, "awaits_you": awaits(status, agent_id)}
    if isinstance(status, CycleStatus):
        line |= {"kind": "cycle", "subject": status.subject}
        if status.opened is not None:
            line["reward_credits"] = status.briefing.rules.reward
    else:
        line |= {"kind": "task", "task_type": status.request.task_type}
        if status.opened is not None:
            line["price_limit_credits"] = status.briefing.price
    return _given(line | {"seconds_left": _seconds_left(status.deadline, now)})


def awaits(status: CycleStatus | TaskStatus, agent_id: str) -> str:
    """The tool by which this agent answers what a cycle or a task waits for; empty where it waits for others."""
    if isinstance(status, CycleStatus):
        return TOOL_OF_PHASE[status.phase] if status.awaits(agent_id) else ""
    match status.phase:
        case TaskPhase.BIDDING:
            eligible = any(agent.agent_id == agent_id and not agent.suspended for agent in status.briefing.agents)
            return Bid.tool if eligible and agent_id not in status.bids else ""
        case TaskPhase.EXECUTING:
            award = status.award
            works = award is not None and award.agent_id == agent_id and not award.built_in
            return HandInResult.tool if works and status.result is None else ""
        case _:
            return ""


def cycle(status: CycleStatus, agent_id: str, now: datetime) -> Document:
    """Where a cycle stands. The proposed value comes whole, for voters."""
    document = listed(status, agent_id, now) | {
        "run_id": status.run_id,
        "you": agent_id,
        "cycle_id": status.cycle_id,
        "phase": status.phase.value,
        "paused": status.paused_at is not None or None,
        "bids": len(status.bids),
        "declines": len(status.declines),
        "your_bid": _fields(status.bids.get(agent_id), "price", "eta_s", "pitch"),
        "you_declined": agent_id in status.declines or None,
        "award": _fields(status.award, "agent_id", "price", "deadline"),
        "story": status.story[-MOST_STORY:],
    }
    if status.anomaly is not None:
        anomaly = status.anomaly
        document["problem"] = _fields(anomaly, "metric", "task_type", "onset", "reason") | {
            "observed": _counts(anomaly.observed),
            "baseline": _counts(anomaly.baseline),
        }
    if status.opened is not None:
        document["minimum_effect"] = status.briefing.rules.minimum_effect
        document["parameters"] = [_parameter_in_short(state) for state in status.briefing.parameters]
    if status.proposal is not None:
        document["proposal"] = _proposal(status.proposal)
    document |= _vote(status, agent_id) | _experiment(status)
    fits = fitted(_given(document))
    if status.proposal is not None:
        fits["proposal"]["value"] = status.proposal.value
    return fits


def _proposal(proposal: Proposal) -> Document:
    """All but the value."""
    claims = [
        _given({"claim": evidence.claim, "figures": dict(list(evidence.figures.items())[:MOST_FIGURES])})
        for evidence in proposal.evidence
    ]
    fields = _fields(proposal, "agent_id", "parameter", "base_version", "root_cause", "predicted_rate", "rollback_plan")
    return {"proposal_id": proposal.proposal_id} | fields | {"evidence": claims}


def _vote(status: CycleStatus, agent_id: str) -> Document:
    if status.tally is None:
        return {}
    ballots = [_given(_fields(ballot, "agent_id", "choice", "reason")) for ballot in status.ballots.values()]
    counts = _fields(status.tally, "approve", "reject", "abstain", "decided", "accepted", "reason")
    you = {"you_may_vote": agent_id in status.voters, "you_voted": agent_id in status.ballots}
    return {"vote": counts | {"voters": len(status.voters)} | you | {"ballots": ballots}}


def _experiment(status: CycleStatus) -> Document:
    document: Document = {"reading": _reading(status.reading), "watch": _reading(status.watch)}
    if status.design is not None:
        document["experiment"] = _fields(status.design, "max_tasks", "task_types", "treatment_share")
    if status.end is not None:
        document["end"] = _given(_fields(status.end, "ending", "reason", "agent_id", "reward", "bonus", "penalty"))
    return _given(document)


def _reading(reading: Reading | None) -> Document | None:
    if reading is None:
        return None
    counts = {"old_value": _counts(reading.control), "new_value": _counts(reading.treatment)}
    return counts | _fields(reading, "decision", "effect", "reason")


def task(status: TaskStatus, agent_id: str, now: datetime) -> Document:
    """Where a user task stands. The payload comes whole, for the agent that does it."""
    result, settlement = status.result, status.settlement
    document = listed(status, agent_id, now) | {
        "run_id": status.run_id,
        "you": agent_id,
        "phase": status.phase.value,
        "bids": len(status.bids),
        "your_bid": _fields(status.bids.get(agent_id), "price", "eta_s", "pitch"),
        "award": _fields(status.award, "agent_id", "price", "deadline"),
        "progress": status.progress,
        "result": _given(_fields(result, "failure", "summary", "quality", "reason")),
        "end": _given(_fields(settlement, "ending", "reason", "agent_id", "price", "failure", "quality", "summary")),
        "story": status.story[-MOST_STORY:],
    }
    if status.opened is not None:
        document["heartbeat_s"] = status.briefing.heartbeat_s
    return fitted(_given(document)) | {"payload": whole(status.request.payload)}


def _fields(message: Any, *names: str) -> Document:
    """These fields of a message, as JSON; nothing where there is no message."""
    return {} if message is None else dict(message.model_dump(mode="json", include=set(names)))


def _counts(counts: Counts | None) -> Document | None:
    if counts is None:
        return None
    return _given({"tasks": counts.tasks, "good": counts.successes, "rate": _rounded(counts.rate)})


# ---- diagnoses


def diagnosis(facts: Diagnosis, subject: str, agent_id: str) -> Document:
    """The facts about a subject: in depth of its own task types and their parameters, of the others an overview."""
    in_question = in_question_of(facts, subject)
    task_types = [one for one in facts.task_types if one.task_type in in_question]
    others = [one for one in facts.task_types if one.task_type not in in_question]
    parameters = [state for state in facts.parameters if set(state.declaration.task_types) & set(in_question)]
    document = {
        "subject": subject,
        "you": agent_id,
        "since": facts.window_start.isoformat(),
        "task_types": [_task_type(one) for one in task_types],
        "parameters": [_parameter(state) for state in parameters],
        "changes": [_fields(change, "parameter", "at", "kind", "before", "value") for change in facts.changes],
        "other_task_types": [
            {"task_type": one.task_type, "since": _counts(one.counts), "before": _counts(one.before)} for one in others
        ],
        "other_parameters": [state.declaration.key for state in facts.parameters if state not in parameters],
        "tried_before": [
            _given(_fields(past, "ending", "parameter", "before", "value", "effect", "ended_at"))
            for past in facts.endings
        ],
        "memory": [_fields(pattern, "text", "state", "successes", "tries") for pattern in facts.memory],
        "left_out": list(facts.left_out),
    }
    return fitted(_given(document))


def in_question_of(facts: Diagnosis, subject: str) -> tuple[str, ...]:
    """The task types that a subject is about: its own, those that its parameter touches, or all for the platform.

    Raises Refused for a subject that is about none: the facts would be about something else.
    """
    named = subject.partition(":")[2]
    names = tuple(one.task_type for one in facts.task_types)
    touched = {state.declaration.key: state.declaration.task_types for state in facts.parameters}
    if named in ("", "platform"):
        return names
    if named in names:
        return (named,)
    if named in touched:
        return touched[named]
    known = beginning(", ".join(names), LONGEST_LISTED_VALUE)
    raise Refused(f"expected METRIC:TASK_TYPE with platform or a task type of {known}, but {subject} came")


def one_parameter(facts: Diagnosis, key: str) -> Document | None:
    """One parameter of a diagnosis with its whole value; None where it is not among them."""
    state = next((state for state in facts.parameters if state.declaration.key == key), None)
    if state is None:
        return None
    changes = [change for change in facts.changes if change.parameter == key]
    shown = [_fields(change, "at", "kind", "before", "value") for change in changes]
    return fitted(_given(_parameter(state) | {"changes": shown})) | {"value": state.value}


def _task_type(facts: TaskTypeDiagnosis) -> Document:
    failed = [sample for sample in facts.samples if sample.failure is not None]
    succeeded = [sample for sample in facts.samples if sample.failure is None]
    document = {
        "task_type": facts.task_type,
        "since": _counts(facts.counts),
        "before": _counts(facts.before),
        "failures": {kind.value: count for kind, count in facts.failures.items()},
        "reasons": [_given(_fields(one, "reason", "since", "before", "examples")) for one in facts.reasons],
        "stands_out": [_contrast(contrast) for contrast in facts.contrasts if contrast.stands_out],
        "good": _figures(facts.good),
        "bad": _figures(facts.bad),
        "usual": _figures(facts.usual),
        "latest_durations_s": _given({"succeeded": _quantiles(succeeded), "failed": _quantiles(failed)}),
    }
    return _given(document)


def _contrast(contrast: Contrast) -> Document:
    return {
        "attribute": contrast.attribute,
        "value": contrast.value,
        "with_it": _counts(contrast.counts),
        "others": _counts(contrast.rest),
    }


def _figures(figures: Any) -> Document:
    fields = {name: _rounded(number) for name, number in figures.model_dump().items()}
    return _given(fields) if figures.tasks else {}


def _quantiles(samples: Sequence[DurationSample]) -> Document | None:
    """Where durations end: at a limit, p90 and max are the same."""
    if not samples:
        return None
    ordered = sorted(sample.duration_s for sample in samples)
    at = {f"p{percent}": ordered[percent * (len(ordered) - 1) // 100] for percent in (10, 50, 90, 95)}
    return {"tasks": len(ordered)} | {name: _rounded(value) for name, value in (at | {"max": ordered[-1]}).items()}


def _parameter_in_short(state: ParameterState) -> Document:
    value = beginning(state.value, LONGEST_LISTED_VALUE) if isinstance(state.value, str) else state.value
    return {
        "parameter": state.declaration.key,
        "value": value,
        "version": state.version,
        "allowed": state.declaration.bounds,
    }


def _parameter(state: ParameterState) -> Document:
    names = ("kind", "unit", "step", "largest_change", "risk", "role", "task_types", "description")
    return _parameter_in_short(state) | _given(_fields(state.declaration, *names))


# ---- standing


def standing(agent: Agent, balance: int, is_you: bool) -> Document:
    """An agent as the market knows it; its record is on improvement cycles."""
    names = ("agent_id", "operator", "standing", "successes", "attempts", "load", "suspended", "built_in")
    record = {name: _rounded(number) for name, number in agent.record.model_dump().items()}
    has_key = bool(agent.public_key)
    shown = _fields(agent, *names) | {"balance_credits": balance, "has_key": has_key, "record_on_cycles": record}
    return shown | {"is_you": is_you}


def most_urgent(lines: Iterable[Document]) -> list[Document]:
    """What ends first comes first."""
    return sorted(lines, key=lambda line: line.get("seconds_left", float("inf")))
