"""Page: where a cycle stands, as a person reads it in the Temporal web UI (markdown) and in the result.

Called on every change and in queries: a pure function of the status, and bounded. What agents and people wrote is
shown as plain text of bounded length: a proposal must not be able to draw its own tally or link elsewhere.
"""

import json
import re
import shlex

from rules.rates import wilson
from schema import wire
from schema.messages.base import Value
from schema.messages.cycle import CycleStatus, Phase
from schema.messages.experiment import ArmCounts, ExperimentDesign, Reading
from schema.messages.observatory import Counts, GuardrailKind
from schema.messages.proposals import Ballot, Proposal
from workflows.windows import ACTS

# What people still read in a table cell; the full text is in the workflow's history and in the query `status`.
LONGEST = 300
STEPS = (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING, Phase.EXPERIMENT, Phase.PROMOTING, Phase.WATCHING)
# Waiting for a place or for a person is part of the step that it holds up.
STEP_OF = {Phase.QUEUED: Phase.EXPERIMENT, Phase.APPROVAL: Phase.PROMOTING}
AWAITS = {
    Phase.OPENING: "The meta-task is being opened.",
    Phase.BIDDING: "Agents bid to investigate; the best bid is awarded when all have bid or the window closes.",
    Phase.PROPOSING: "The awarded agent investigates and hands in a proposal; if it is late, the next bid is awarded.",
    Phase.VOTING: "The other agents vote; it closes as soon as no remaining ballot can change the result.",
    Phase.QUEUED: "Another experiment holds the task types; this one starts when they are free.",
    Phase.EXPERIMENT: "Half of the tasks get the new value, until the evidence decides.",
    Phase.APPROVAL: "The evidence is for the change. **A person must promote it**, or the cycle escalates.",
    Phase.PROMOTING: "The new value becomes production configuration.",
    Phase.WATCHING: "The new value is in production; a holdback keeps the old one, and harm rolls it back.",
    Phase.ENDED: "",
}
_MARKUP = re.compile(r"[\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)|://|(?<=www)\.")


def render(status: CycleStatus) -> str:
    """The page of one cycle: where it stands first, then the facts, what a person can do, and the story."""
    lines = _head(status)
    if status.anomaly is not None:
        about = f"{status.anomaly.metric} of {status.anomaly.task_type or 'the platform'}"
        lines += ["### Anomaly", "", f"**{plain(about)}**: {plain(status.anomaly.reason)}", ""]
    if status.proposal is not None:
        lines += _proposal(status, status.proposal)
    if status.voters:
        lines += _vote(status)
    if status.design is not None:
        lines += _experiment(status)
    if status.ending is None and status.phase not in (Phase.OPENING, Phase.PROMOTING):
        lines += _acts(status)
    lines += ["### Story", "", *(f"- {plain(line)}" for line in status.story), ""]
    return "\n".join(lines)


def _head(status: CycleStatus) -> list[str]:
    where = f"Ended: {status.ending.value}" if status.ending else f"Now: {status.phase.value}"
    lines = [f"## {where}{' (paused)' if status.paused else ''}", ""]
    says = plain(status.reason) if status.ending else AWAITS[status.phase]
    if says:
        lines += [says, ""]
    if status.ending is None:
        now = STEP_OF.get(status.phase, status.phase)
        lines += [" → ".join(f"**{step.value}**" if step is now else step.value for step in STEPS), ""]
    facts = [f"attempt {status.attempt}"] if status.attempt else []
    if status.paused:
        facts.insert(0, "deadlines wait while it is paused")
    elif status.deadline and status.ending is None:
        facts.insert(0, f"next deadline **{status.deadline:%Y-%m-%d %H:%M:%S} UTC**")
    if status.bids:
        facts.append(f"{len(status.bids)} bids")
    if status.award is not None:
        facts.append(f"awarded to {plain(status.award.agent_id)} for {status.award.price} credits")
    if status.refused:
        facts.append(f"{status.refused} messages refused")
    if facts:
        lines += [", ".join(facts), ""]
    return lines


def _proposal(status: CycleStatus, proposal: Proposal) -> list[str]:
    change = f"**{_value(proposal.value)}**"
    if status.design is not None:
        change = f"{_value(status.design.control)} → {change}"
    lines = [
        "### Proposal",
        "",
        f"{plain(proposal.agent_id)} proposes `{proposal.parameter}`: {change}, "
        f"and predicts {proposal.predicted_rate:.0%} {'good tasks' if status.objectives else 'success'}.",
        "",
        f"Root cause: {plain(proposal.root_cause)}",
        "",
    ]
    for evidence in proposal.evidence:
        figures = ", ".join(f"{plain(name)} {value:g}" for name, value in list(evidence.figures.items())[:8])
        lines.append(f"- {plain(evidence.claim)}{f': {figures}' if figures else ''}")
    return [*lines, f"- Way back: {plain(proposal.way_back)}", ""]


def _vote(status: CycleStatus) -> list[str]:
    cast = {ballot.agent_id: ballot for ballot in status.ballots}
    lines = ["### Vote", ""]
    if (t := status.tally) is not None:
        counts = f"**{t.approve} for, {t.reject} against, {t.abstain} abstained** of {len(status.voters)}"
        lines += [f"{counts}: {plain(t.reason)}", ""]
    return [*lines, *(_ballot(voter, cast.get(voter)) for voter in status.voters), ""]


def _ballot(voter: str, ballot: Ballot | None) -> str:
    if ballot is None:
        return f"- {plain(voter)}: no ballot"
    return f"- {plain(voter)}: **{ballot.choice.value}**{f' - {plain(ballot.reason)}' if ballot.reason else ''}"


def _experiment(status: CycleStatus) -> list[str]:
    design, reading = status.design, status.reading
    assert design is not None
    lines = [
        "### Experiment",
        "",
        f"`{design.parameter}` on {', '.join(design.task_types)}: "
        f"{_value(design.control)} against {_value(design.treatment)}.{_aim(design)}",
        "",
    ]
    if reading is None:
        lines += [
            "How far it is: the last failure of the pending activity `await_verdict` says it, here or with",
            "",
            "```bash",
            f"temporal workflow describe{_address(status)}",
            "```",
            "",
        ]
        return lines
    rows = [
        ("before", design.control, design.baseline),
        ("control", design.control, reading.control),
        ("treatment", design.treatment, reading.treatment),
    ]
    watch: Reading | None = status.watch
    if watch is not None:
        rows += [("watch: old", design.control, watch.control), ("watch: new", design.treatment, watch.treatment)]
    return [
        *lines,
        _row("arm", "value", "tasks", "good" if design.objectives else "successes", "rate", "95 %"),
        "|---" * 6 + "|",
        *(_arm(name, value, counts) for name, value, counts in rows),
        "",
        *_verdict(reading),
    ]


def _aim(design: ExperimentDesign) -> str:
    """What a good task is, where it is more than one that succeeded."""
    means = {
        GuardrailKind.FAST: "done within {:.3g} s",
        GuardrailKind.WELL_RATED: "rated at least {:.3g}",
        GuardrailKind.CHEAP: "at a cost of at most {:.3g}",
    }
    aims = [f"{name} {means[aim.kind].format(aim.bound)}" for name, aim in sorted(design.objectives.items())]
    return f" Good is: {', '.join(aims)}." if aims else ""


def _arm(name: str, value: Value, counts: Counts) -> str:
    low, high = wilson(counts.successes, counts.tasks)
    between = f"{low:.0%} to {high:.0%}" if counts.tasks else "-"
    return _row(name, _value(value), str(counts.tasks), str(counts.successes), percent(counts), between)


def _row(*cells: str) -> str:
    # The web UI draws tables without any space between the columns; a space that does not break keeps them apart.
    return "|" + "|".join(f"\u00a0 {cell} \u00a0" for cell in cells) + "|"


def _verdict(reading: Reading) -> list[str]:
    effect = f", effect {reading.effect:+.0%}" if reading.effect is not None else ""
    if reading.interval is not None:
        effect += f" (always-valid interval {reading.interval[0]:+.0%} to {reading.interval[1]:+.0%})"
    return [f"**Verdict: {plain(reading.decision)}**{effect}. {plain(reading.reason)}", ""]


def _acts(status: CycleStatus) -> list[str]:
    kinds = [wire.RESUME if status.paused else wire.PAUSE]
    kinds += [kind for kind, phases in ACTS.items() if status.phase in phases]
    if status.design is not None and status.design.exposure == 1:
        kinds = [kind for kind in kinds if kind != wire.WIDEN]
    lines = ["### What a person can do now", "", "```bash"]
    return [*lines, *(_act(status, kind) for kind in (*kinds, wire.EXTEND, wire.ABORT)), "```", ""]


def _act(status: CycleStatus, kind: str) -> str:
    # The story grows with each act, so that a line taken from the page later is another message and not a repetition.
    act: dict[str, str | int] = {"message_id": f"{kind}-{len(status.story)}", "who": "YOU", "why": "WHY"}
    act |= {wire.EXTEND: {"seconds": 600}, wire.WIDEN: {"exposure": 1}}.get(kind, {})
    # Three lines, because the web UI cuts off what is wider than half its page.
    where = _address(status).replace(" --workflow-id", " \\\n  --workflow-id", 1)
    return f"temporal workflow update execute --name {kind}{where} \\\n  --input '{json.dumps(act)}'"


def _address(status: CycleStatus) -> str:
    # Anybody may start a workflow under any id; a line that a person pastes into a shell must quote it.
    return f" --namespace {wire.NAMESPACE} --workflow-id {shlex.quote(' '.join(status.workflow_id.split()))}"


def plain(text: str) -> str:
    """Somebody's words as one line of text that means nothing to markdown, at most LONGEST characters of them."""
    words = " ".join(text.split())
    if len(words) > LONGEST:
        words = words[: LONGEST - 1] + "…"
    return _MARKUP.sub(lambda found: "".join(f"\\{character}" for character in found.group()), words)


def _value(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else plain(str(value))


def percent(counts: Counts | ArmCounts) -> str:
    """A rate for people; a dash where there is nothing to divide."""
    return f"{counts.successes / counts.tasks:.0%}" if counts.tasks else "-"
