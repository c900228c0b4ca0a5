"""Dossier: what the person reads who takes over an escalated cycle. A pure function of the cycle's state.

It says what was seen and since when, what stands out on record and what agents found, what was tried with which result,
and where a person might look. It concludes nothing, and says what was not measured. Texts of agents and of the platform
are data: each is one line without control characters, of bounded length, so that none can draw in a terminal or crowd
out what others found.
"""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import chain, zip_longest

from schema.display import one_line
from schema.messages.base import format_value
from schema.messages.cycle import LONGEST_LINE, MOST_LINES, CycleState, Dossier
from schema.messages.diagnosis import Contrast, ParameterChange, PastEnding, ReasonCount, StandsOut
from schema.messages.experiment import Decision
from schema.messages.observatory import Counts
from schema.messages.platform import ParameterState
from schema.messages.proposals import Decline, Evidence

# Figures of one finding, as many as a line has room for.
MOST_FIGURES = 6
# Reasons of agents to decline, so many that there is room for the other lines.
MOST_REASONS = 5
# Agents of one finding that are named; of more their number.
MOST_NAMED = 3
# Of what stands out, as many lines as a person is to look at first: a contrast, a reason and a change.
MOST_TO_LOOK_AT = 3
# Characters of an attribute's value: two of its shares must fit in the line.
LONGEST_ATTRIBUTE = 60
# The figure by which an agent says how likely a change is to help. Reasons of several differ in such numbers only.
CHANCE, NUMBER = "chance", re.compile(r"\d+(?:\.\d+)?")
# A line as JSON, in UTF-8: the bound of the whole must hold for every script.
LONGEST_LINE_BYTES = LONGEST_LINE


def of(state: CycleState) -> Dossier:
    """The dossier of a cycle that has opened; under 20 kB of JSON whatever agents have written."""
    return Dossier(
        seen=_lines(_seen(state)),
        since=_lines(_since(state)),
        stands_out=_lines(_stands_out(state)),
        tried=_lines(_attempt(attempt) for attempt in _attempts(state)),
        look_at=_lines(_look_at(state)),
    )


def _lines(texts: Iterable[str]) -> tuple[str, ...]:
    """At most MOST_LINES lines; the last one counts what is left out."""
    lines = [_line(text) for text in texts]
    if len(lines) > MOST_LINES:
        left_out = len(lines) - (MOST_LINES - 1)
        lines = [*lines[: MOST_LINES - 1], f"and {left_out} more"]
    return tuple(lines)


def _line(text: str) -> str:
    line = one_line(text, LONGEST_LINE)
    while len(json.dumps(line, ensure_ascii=False).encode()) > LONGEST_LINE_BYTES:
        line = f"{line[:-2]}…"
    return line


# ---- what was seen, and since when


def _seen(state: CycleState) -> list[str]:
    """What the records show, what the proposer said of it, and what the experiment and the watch did."""
    briefing = state.briefing
    anomaly = state.request.anomaly
    proposal = state.proposal
    lines = [anomaly.reason] if anomaly else []
    lines.append(f"since the onset: {_good(briefing.baseline)}")
    lines.append(f"before: {_good(briefing.healthy or Counts())}")
    if anomaly is not None and not anomaly.task_type:
        lines += [f"{name} since the onset: {_good(counts)}" for name, counts in sorted(briefing.baselines.items())]
    if proposal is not None:
        lines.append(f"{proposal.agent_id} proposed a change because: {proposal.root_cause}")
    if state.reading is not None:
        lines.append(f"the experiment: {state.reading.reason}")
    if state.watch is not None:
        lines.append(f"the watch: {state.watch.reason}")
    return lines


def _good(counts: Counts) -> str:
    if counts.rate is None:
        return "no task was recorded"
    return f"{counts.successes} of {counts.tasks} tasks were good ({counts.rate:.1%})"


def _since(state: CycleState) -> list[str]:
    """Since when it is so, and for how many attempts."""
    briefing = state.briefing
    anomaly = state.request.anomaly
    lines = []
    if anomaly is not None:
        lines.append(f"it began {anomaly.onset:%Y-%m-%d %H:%M:%S} UTC")
        lines.append(f"it was detected {anomaly.detected_at:%Y-%m-%d %H:%M:%S} UTC")
    attempt = f"this was attempt {briefing.attempt}"
    if briefing.failed_attempts:
        attempt += f"; {briefing.failed_attempts} in a row before it promoted nothing"
    lines.append(attempt)
    return lines


# ---- what stands out


def _stands_out(state: CycleState) -> list[str]:
    """What the records show, then each claim of agents once: what most agents found comes first."""
    evidence_by_claim: dict[str, dict[str, Evidence]] = {}
    for agent_id, evidence in _findings(state):
        # The claim leaves room for the figures, and for who found it.
        claim = one_line(evidence.claim, LONGEST_LINE // 2)
        evidence_by_claim.setdefault(claim, {}).setdefault(agent_id, evidence)
    by_agreement = sorted(evidence_by_claim.items(), key=lambda item: -len(item[1]))
    claims = []
    for claim, evidence_by_agent in by_agreement:
        claims.append(f"{claim}{_figures(evidence_by_agent.values())} ({_named(tuple(evidence_by_agent))})")
    return [*_on_record(state), *claims]


def _on_record(state: CycleState) -> list[str]:
    """The strongest contrast, reason and change of the records, then the next of each."""
    shown = state.briefing.stands_out
    if shown is None:
        return []
    anomaly = state.request.anomaly
    tasks = "tasks" if anomaly is not None and anomaly.task_type else f"{shown.task_type} tasks"
    of_each = zip_longest(
        [_contrast(contrast, tasks) for contrast in shown.contrasts],
        [_reason(reason, shown, tasks) for reason in shown.reasons],
        [_change(change) for change in shown.changes],
    )
    return [line for line in chain.from_iterable(of_each) if line is not None]


def _contrast(contrast: Contrast, tasks: str) -> str:
    is_bound = contrast.value.startswith("over ")
    value = one_line(contrast.value, LONGEST_ATTRIBUTE)
    with_value = f"{contrast.attribute} {value}" if is_bound else f"{contrast.attribute}={value}"
    good, others = contrast.counts, contrast.rest
    shares = f"{_share(good.successes, good.tasks)} good against {_share(others.successes, others.tasks)} of the others"
    counts = f"{good.successes} of {good.tasks}, {others.successes} of {others.tasks}"
    return f"{tasks} with {with_value}: {shares} ({counts})"


def _reason(reason: ReasonCount, shown: StandsOut, tasks: str) -> str:
    now = f"{reason.reason}: {_share(reason.since, shown.tasks)} of {tasks} fail so"
    if not shown.tasks_before:
        return f"{now} ({reason.since} of {shown.tasks}), and no task was recorded before"
    before = _share(reason.before, shown.tasks_before)
    return f"{now}, {before} before ({reason.since} of {shown.tasks}, {reason.before} of {shown.tasks_before})"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _change(change: ParameterChange) -> str:
    values = f"{format_value(change.before)} -> {format_value(change.value)}"
    return f"{change.parameter} {values}: {change.kind.replace('_', ' ')} {change.at:%Y-%m-%d %H:%M} UTC"


def _findings(state: CycleState) -> list[tuple[str, Evidence]]:
    """Every agent's first finding, then every agent's second: twenty of one agent must not hide the others'."""
    by_agent = {agent_id: decline.findings for agent_id, decline in state.declines.items()}
    if state.proposal is not None:
        by_agent[state.proposal.agent_id] = state.proposal.evidence

    findings: list[tuple[str, Evidence]] = []
    for one_of_each in zip_longest(*by_agent.values()):
        for agent_id, evidence in zip(by_agent, one_of_each, strict=True):
            if evidence is not None:
                findings.append((agent_id, evidence))
    return findings


def _figures(found: Collection[Evidence]) -> str:
    """The figures that agents give for one claim, each with its range."""
    ranges: dict[str, list[float]] = {}
    for evidence in found:
        for name, value in evidence.figures.items():
            ranges.setdefault(name, []).append(value)
    figures = [f"{name} {_range(values)}" for name, values in list(ranges.items())[:MOST_FIGURES]]
    return f": {', '.join(figures)}" if figures else ""


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):g}", f"{max(values):g}"
    return low if low == high else f"{low} to {high}"


def _named(agent_ids: Sequence[str]) -> str:
    return ", ".join(agent_ids) if len(agent_ids) <= MOST_NAMED else f"{len(agent_ids)} agents"


# ---- what was tried


def _attempts(state: CycleState) -> list[PastEnding]:
    """This cycle's own proposal first, then the earlier cycles on this very anomaly, the newest first."""
    anomaly = state.request.anomaly
    onset = anomaly.onset if anomaly is not None else None
    earlier = [past for past in state.briefing.endings if not _began_before(past, onset)]
    if state.proposal is None:
        return earlier
    own = PastEnding(
        cycle_id=state.briefing.cycle_id,
        ending="escalated",
        parameter=state.proposal.parameter,
        value=state.proposal.value,
        before=state.parameter.value,
        effect=state.reading.effect if state.reading else None,
        ended_at=state.reading.at if state.reading else None,
    )
    return [own, *earlier]


def _began_before(past: PastEnding, onset: datetime | None) -> bool:
    """Whether a cycle began before the onset, and so tested another state; of an old record by its end."""
    began_at = past.began_at or past.ended_at
    return onset is not None and began_at is not None and began_at < onset


def _attempt(attempt: PastEnding) -> str:
    ending = attempt.ending.replace("_", " ")
    cycle = attempt.cycle_id
    if attempt.ended_at is not None:
        cycle = f"{cycle} ({attempt.ended_at:%Y-%m-%d %H:%M} UTC)"
    if attempt.parameter is None:
        return f"{cycle}: {ending}, no change was proposed"
    before = f"{format_value(attempt.before)} -> " if attempt.before is not None else ""
    change = f"{attempt.parameter} {before}{format_value(attempt.value)}"
    effect = "no effect was measured" if attempt.effect is None else f"effect {attempt.effect:+.1%}"
    return f"{cycle}: {change}: {ending}, {effect}"


# ---- what a person might look at


def _look_at(state: CycleState) -> list[str]:
    """What is left to decide, what stands out on record, why agents declined, and what was not tried."""
    lines = []
    if state.promotion is None and state.reading is not None and state.reading.decision is Decision.PROMOTE:
        change = f"{state.proposed.parameter} = {format_value(state.proposed.value)}"
        lines.append(f"the evidence is for {change}, and it is not production: whether to set it")
    lines += _on_record(state)[:MOST_TO_LOOK_AT]
    lines += _reasons_to_decline(state)[:MOST_REASONS]

    tried = {attempt.parameter for attempt in _attempts(state)}
    declared = [parameter.declaration.key for parameter in _touching(state)]
    untried = [key for key in declared if key not in tried]
    if not declared:
        lines.append("no declared parameter touches these tasks: whether one should")
    elif untried:
        lines.append(f"no attempt has changed {', '.join(untried)}")

    if state.request.anomaly is not None:
        lines.append(f"the records: nautilus diagnose {state.request.subject}")
    return lines


def _reasons_to_decline(state: CycleState) -> list[str]:
    """The agents' reasons, the best chance first; of those that differ in numbers only, the first."""
    best_first = sorted(state.declines.items(), key=lambda item: -_best_chance(item[1]))
    alike: dict[str, list[tuple[str, str]]] = {}
    for agent_id, decline in best_first:
        alike.setdefault(NUMBER.sub("#", decline.reason), []).append((agent_id, decline.reason))

    lines = []
    for (agent_id, reason), *others in alike.values():
        who = f"{agent_id}, and {len(others)} more alike" if others else agent_id
        lines.append(f"{who}: {reason}")
    return lines


def _best_chance(decline: Decline) -> float:
    """The best chance that an agent gives a change; 0 where it gives none in figures."""
    return max((evidence.figures.get(CHANCE, 0.0) for evidence in decline.findings), default=0.0)


def _touching(state: CycleState) -> list[ParameterState]:
    """The parameters of the affected tasks: the anomaly's type, or every type where it names none."""
    anomaly = state.request.anomaly
    if anomaly is None or not anomaly.task_type:
        return list(state.briefing.parameters)
    return [p for p in state.briefing.parameters if anomaly.task_type in p.declaration.task_types]
