"""Page: where a cycle stands, as a person reads it in the Temporal web UI (markdown) and in the result.

`page.md.jinja` is the template; this module computes what it shows. Called on every change and in queries: a pure
function of the status, and bounded. What agents and people wrote is shown as plain text of bounded length: a proposal
must not be able to draw its own tally or link elsewhere.
"""

import json
import re
import shlex
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from rules.rates import wilson
from rules.texts import difference
from schema import wire
from schema.display import markdown, one_line, visible
from schema.messages.base import Value, format_value
from schema.messages.cycle import CycleStatus, Phase
from schema.messages.experiment import ExperimentDesign, Reading
from schema.messages.observatory import Counts, GuardrailKind
from workflows.windows import ACTS

# What people still read in a table cell; the full text is in the workflow's history and in the query `status`.
LONGEST = 300
STEPS = (Phase.BIDDING, Phase.PROPOSING, Phase.VOTING, Phase.EXPERIMENT, Phase.PROMOTING, Phase.WATCHING)
# Waiting for a place or for a person is part of the step that it holds up.
STEP_OF = {Phase.QUEUED: Phase.EXPERIMENT, Phase.APPROVAL: Phase.PROMOTING}
AWAITS = {
    Phase.OPENING: "The meta-task is being opened.",
    Phase.BIDDING: "Agents bid to investigate; the best bid is awarded when all have answered or the window closes.",
    Phase.PROPOSING: "The awarded agent investigates and hands in a proposal; if it is late, the next bid is awarded.",
    Phase.VOTING: "The other agents vote; it closes as soon as no remaining ballot can change the result.",
    Phase.QUEUED: "Another experiment holds the task types; this one starts when they are free.",
    Phase.EXPERIMENT: "Half of the tasks get the new value, until the evidence decides.",
    Phase.APPROVAL: "The evidence is for the change. **A person must promote it**, or the cycle escalates.",
    Phase.PROMOTING: "The new value becomes production configuration.",
    Phase.WATCHING: "The new value is in production; a holdback keeps the old one, and harm rolls it back.",
    Phase.ENDED: "The request has had its cycle, and this run did nothing.",
}
MEANS_GOOD = {
    GuardrailKind.FAST: "done within {:.3g} s",
    GuardrailKind.WELL_RATED: "rated at least {:.3g} (tasks without a rating do not count)",
    GuardrailKind.CHEAP: "at a cost of at most {:.3g}",
}
# The fields of an act besides who and why.
EXTRA = {wire.EXTEND: {"seconds": 600}, wire.WIDEN: {"exposure": 1}}
MOST_FIGURES = 8
# Lines of a text's difference; `nautilus params show` and the query `status` have all of it.
MOST_DIFFERENCE = 80


def render(status: CycleStatus) -> str:
    """The page of one cycle: where it stands first, then the facts, what a person can do, and the story."""
    # Any client may start a workflow under any id: on one line and quoted, it is safe to paste into a shell.
    workflow_option = f"--workflow-id {shlex.quote(one_line(status.workflow_id, LONGEST))}"
    namespace_option = f"--namespace {wire.NAMESPACE}"

    return _PAGE.render(
        s=status,
        current_step=STEP_OF.get(status.phase, status.phase).value,
        steps=[step.value for step in STEPS],
        waits_for=AWAITS[status.phase],
        facts=_facts(status),
        arms=_arms(status),
        difference=_difference(status),
        acts=[(kind, _act(status, kind)) for kind in _open_acts(status)],
        table_row=_row,
        namespace_option=namespace_option,
        workflow_option=workflow_option,
    )


def plain(text: str) -> str:
    """A text by an agent or a person as one line without markdown, cut to LONGEST characters."""
    return markdown(text, LONGEST)


def percent(counts: Counts) -> str:
    """A rate for people; a dash where there is nothing to divide."""
    return "-" if counts.rate is None else f"{counts.rate:.0%}"


def _facts(status: CycleStatus) -> list[str]:
    """The line under the title: its deadline, attempt, bids, award and refused messages, as far as there are any."""
    facts = []
    if status.ending is None and status.paused_at is not None:
        facts.append("deadlines wait while it is paused")
    elif status.ending is None and status.deadline is not None:
        facts.append(f"next deadline **{status.deadline:%Y-%m-%d %H:%M:%S} UTC**")
    if status.opened is not None:
        facts.append(f"attempt {status.opened.attempt}")
    if status.bids:
        facts.append(f"{len(status.bids)} bids")
    if status.declines:
        facts.append(f"{len(status.declines)} declined")
    if status.award is not None:
        facts.append(f"awarded to {plain(status.award.agent_id)} for {status.award.price} credits")
    if status.refused:
        facts.append(f"{status.refused} messages refused")
    return facts


def _aims(design: ExperimentDesign) -> str:
    """What a good task is, where it is more than one that succeeded."""
    aims = [f"{name} {MEANS_GOOD[aim.kind].format(aim.bound)}" for name, aim in sorted(design.objectives.items())]
    return f" Good is: {', '.join(aims)}." if aims else ""


def _arms(status: CycleStatus) -> list[tuple[str, ...]]:
    """The cells of the table's rows; none before there is a reading."""
    design, reading, watch = status.design, status.reading, status.watch
    if design is None or reading is None:
        return []
    arms = [
        ("before", design.control, design.baseline),
        ("control", design.control, reading.control),
        ("treatment", design.treatment, reading.treatment),
    ]
    if watch is not None:
        arms.append(("watch: old", design.control, watch.control))
        arms.append(("watch: new", design.treatment, watch.treatment))
    return [
        (name, _value(value), str(counts.tasks), str(counts.successes), percent(counts), _interval(counts))
        for name, value, counts in arms
    ]


def _interval(counts: Counts) -> str:
    if not counts.tasks:
        return "-"
    low, high = wilson(counts.successes, counts.tasks)
    return f"{low:.0%} to {high:.0%}"


def _effect(reading: Reading) -> str:
    effect = f", effect {reading.effect:+.0%}" if reading.effect is not None else ""
    if reading.interval is not None:
        effect += f" (always-valid interval {reading.interval[0]:+.0%} to {reading.interval[1]:+.0%})"
    return effect


def _open_acts(status: CycleStatus) -> list[str]:
    """What a person can do now."""
    if status.ending is not None or status.phase in (Phase.OPENING, Phase.PROMOTING, Phase.ENDED):
        return []
    kinds = [wire.PAUSE if status.paused_at is None else wire.RESUME]
    kinds += [kind for kind, phases in ACTS.items() if status.phase in phases]
    if wire.WIDEN in kinds and status.design is not None and status.design.exposure == 1:
        kinds.remove(wire.WIDEN)
    return [*kinds, wire.EXTEND, wire.ABORT]


def _act(status: CycleStatus, kind: str) -> str:
    # The story grows with each act, so that a line taken from the page later is another message and not a repetition.
    return json.dumps({"message_id": f"{kind}-{len(status.story)}", "who": "YOU", "why": "WHY"} | EXTRA.get(kind, {}))


def _row(*cells: str) -> str:
    # The web UI draws tables without any space between the columns; a space that does not break keeps them apart.
    return "|" + "|".join(f"\u00a0 {cell} \u00a0" for cell in cells) + "|"


def _value(value: Value) -> str:
    return plain(format_value(value))


def _difference(status: CycleStatus) -> str:
    """How the proposal changes a text, as a block of code; empty where it changes none.

    Backticks of a text cannot close the block: its fence is longer than any of theirs.
    """
    if status.proposal is None or status.opened is None:
        return ""
    old = next((p.value for p in status.opened.parameters if p.declaration.key == status.proposal.parameter), None)
    lines = difference(old, status.proposal.value)
    if not lines:
        return ""
    more = len(lines) - MOST_DIFFERENCE
    shown = "\n".join(visible(line) for line in lines[:MOST_DIFFERENCE])
    longest_run = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest_run + 1)
    rest = f"\n\n{more} more lines" if more > 0 else ""
    return f"{fence}diff\n{shown}\n{fence}{rest}"


def _figures(figures: dict[str, float]) -> str:
    shown = [f"{plain(name)} {value:g}" for name, value in list(figures.items())[:MOST_FIGURES]]
    return f": {', '.join(shown)}" if shown else ""


# The text is markdown and not HTML: `plain` is what makes it safe.
_ENVIRONMENT = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, autoescape=False)
_ENVIRONMENT.filters.update(plain=plain, value=_value, figures=_figures, aims=_aims, effect=_effect)
_PAGE = _ENVIRONMENT.from_string((Path(__file__).parent / "page.md.jinja").read_text(encoding="utf-8"))
