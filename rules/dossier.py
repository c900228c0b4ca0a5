"""Dossier: what the person reads who takes over an escalated cycle. A pure function of the cycle's state.

It says what was seen and since when, what agents found, what was tried with which result, and where a person might
look. It concludes nothing, and says what was not measured. Texts of agents are data: each is one line without control
characters, of bounded length, so that no agent can draw in a terminal or crowd out what others found.
"""

import json
from collections.abc import Iterable
from itertools import zip_longest

from schema.messages.base import format_value, one_line
from schema.messages.cycle import LONGEST_LINE, MOST_LINES, CycleState, Dossier
from schema.messages.diagnosis import PastEnding
from schema.messages.experiment import Decision
from schema.messages.observatory import Counts
from schema.messages.platform import ParameterState
from schema.messages.proposals import Evidence

# Figures of one finding, as many as a line has room for.
MOST_FIGURES = 6
# Reasons of agents to decline, so many that there is room for the other lines.
MOST_REASONS = 8
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
        line = one_line(line, len(line) - 1)
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


# ---- what agents found


def _stands_out(state: CycleState) -> list[str]:
    """Each finding once, with the agents that had it: what most agents found comes first."""
    agents_by_finding: dict[str, list[str]] = {}
    for agent_id, evidence in _findings(state):
        agents = agents_by_finding.setdefault(_finding(evidence), [])
        if agent_id not in agents:
            agents.append(agent_id)
    by_agreement = sorted(agents_by_finding.items(), key=lambda item: -len(item[1]))
    return [f"{finding} ({', '.join(agents)})" for finding, agents in by_agreement]


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


def _finding(evidence: Evidence) -> str:
    figures = [f"{name} {value:g}" for name, value in list(evidence.figures.items())[:MOST_FIGURES]]
    # The claim leaves room for the figures, and for who found it.
    claim = one_line(evidence.claim, LONGEST_LINE // 2)
    return f"{claim}: {', '.join(figures)}" if figures else claim


# ---- what was tried


def _attempts(state: CycleState) -> list[PastEnding]:
    """This cycle's own proposal first, then those of earlier cycles, the newest first."""
    earlier = list(state.briefing.endings)
    if state.proposal is None:
        return earlier
    own = PastEnding(
        cycle_id=state.briefing.cycle_id,
        ending="escalated",
        parameter=state.proposal.parameter,
        value=state.proposal.value,
        before=state.parameter.value,
        effect=state.reading.effect if state.reading else None,
    )
    return [own, *earlier]


def _attempt(attempt: PastEnding) -> str:
    ending = attempt.ending.replace("_", " ")
    if attempt.parameter is None:
        return f"{attempt.cycle_id}: {ending}, no change was proposed"
    before = f"{format_value(attempt.before)} -> " if attempt.before is not None else ""
    change = f"{attempt.parameter} {before}{format_value(attempt.value)}"
    effect = "no effect was measured" if attempt.effect is None else f"effect {attempt.effect:+.1%}"
    return f"{attempt.cycle_id}: {change}: {ending}, {effect}"


# ---- what a person might look at


def _look_at(state: CycleState) -> list[str]:
    """What is left to decide, the agents' reasons to decline, and what was not tried; then where the records are."""
    lines = []
    if state.promotion is None and state.reading is not None and state.reading.decision is Decision.PROMOTE:
        change = f"{state.proposed.parameter} = {format_value(state.proposed.value)}"
        lines.append(f"the evidence is for {change}, and it is not production: whether to set it")
    reasons = [f"{agent_id}: {decline.reason}" for agent_id, decline in state.declines.items()]
    lines += reasons[:MOST_REASONS]

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


def _touching(state: CycleState) -> list[ParameterState]:
    """The parameters of the affected tasks: the anomaly's type, or every type where it names none."""
    anomaly = state.request.anomaly
    if anomaly is None or not anomaly.task_type:
        return list(state.briefing.parameters)
    return [p for p in state.briefing.parameters if anomaly.task_type in p.declaration.task_types]
