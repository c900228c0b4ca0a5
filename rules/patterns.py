"""Patterns: what can be learned from finished cycles, and how sure it is.

Evidence is kept one by one and weighed by age: counts decay, not truth. What contradicts a claim is counted against it;
it overwrites nothing, and a claim that grows old becomes unsure and not false. Nothing here decides anything: agents
read it beside the records, and only an experiment promotes.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference", 1927 (intervals of shares);
DerSimonian & Laird, "Meta-analysis in clinical trials", 1986 (effects that differ between experiments).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import NormalDist
from typing import TYPE_CHECKING

from rules.rates import wilson
from schema.experience import nearness, weight
from schema.messages.memory import (
    Change,
    Claim,
    Lesson,
    Memory,
    Observation,
    Pattern,
    PatternKind,
    PatternState,
    Symptom,
)

# Only learning needs these: `nautilus memory list` starts faster without them.
if TYPE_CHECKING:
    from schema.messages.cycle import CycleEnd
    from schema.messages.experiment import ExperimentDesign

# Six half-lives: what has not been seen for a year is forgotten.
NEGLIGIBLE = 2.0**-6
# Older evidence than that of the last hundred nightly runs is dropped.
MOST_OBSERVATIONS = 100
Z95 = NormalDist().inv_cdf(0.975)
# A verdict is a whole experiment with error rates of its own: one settles a claim for a half-life (z^2 = 1/2), and
# until another contradicts it.
SETTLED = math.sqrt(0.5)
LINES_OF_A_LESSON = 12
# A text has 2,000 characters, and the last line needs some.
LONGEST_LESSON = 1_950

Learned = tuple[Claim, Sequence[Observation]]


def pooled(observations: Iterable[Observation], now: datetime) -> tuple[float, tuple[float, float]] | None:
    """The mean effect and its 95 % interval, wider where effects differ more than chance (DerSimonian & Laird 1986)."""
    effects = [(o.effect, o.error**2, weight(o.at, now)) for o in observations if o.effect is not None and o.error]
    if not effects:
        return None
    precision = math.fsum(1 / v for _, v, _ in effects)
    mean = math.fsum(e / v for e, v, _ in effects) / precision
    spread = math.fsum((e - mean) ** 2 / v for e, v, _ in effects) - (len(effects) - 1)
    scale = precision - math.fsum(1 / v**2 for _, v, _ in effects) / precision
    between = max(0.0, spread / scale) if len(effects) > 1 else 0.0
    weighted = [(w / (v + between), e, v + between) for e, v, w in effects]
    total = math.fsum(w for w, _, _ in weighted)
    effect = math.fsum(w * e for w, e, _ in weighted) / total
    variance = math.fsum(w * w * v for w, _, v in weighted)
    half = Z95 * math.sqrt(variance) / total
    # A difference of rates is never more than everything.
    return effect, (max(-1.0, effect - half), min(1.0, effect + half))


# ---- what is learned


def remedy(end: "CycleEnd", design: "ExperimentDesign", symptom: Symptom, role: str = "") -> Learned | None:
    """What a finished cycle shows of its change; None where no experiment gave evidence.

    `role` is that of the parameter; empty where it is not known. A vote, a person's veto or a broken assignment is no
    evidence of what a change does.
    """
    from rules.design import breaks_something
    from schema.messages.cycle import Ending

    reading = end.reading
    support = 0
    against = 0
    match end.ending:
        case Ending.PROMOTED:
            support = 1
        case Ending.FUTILE | Ending.HARMFUL:
            against = 1
        case Ending.ROLLED_BACK:
            if end.watch is None or not breaks_something(design, end.watch):
                return None
            reading = end.watch
            against = 1
        case Ending.INCONCLUSIVE:
            pass
        case _:
            return None
    if reading is None:
        return None

    effect, error = None, None
    low, high = reading.interval or (0.0, 0.0)
    if reading.effect is not None and low < high:
        effect = reading.effect
        # The standard error that the always-valid interval stands for: too wide rather than too narrow.
        error = (high - low) / (2 * Z95)
    observation = Observation(
        source=end.cycle_id,
        at=end.at,
        support=support,
        against=against,
        effect=effect,
        error=error,
        ending=end.ending.value,
    )
    change = Change.of(design.parameter, design.control, design.treatment, role)
    return Claim(kind=PatternKind.REMEDY, symptom=symptom, change=change), [observation]


# ---- what is remembered


def merge(remembered: Mapping[str, Memory], learned: Iterable[Learned], now: datetime) -> dict[str, Memory]:
    """The memory with what was learned, without what is too old to count.

    An observation is known by its source: what was merged before changes nothing, and what was counted again later
    replaces its earlier count.
    """
    merged = dict(remembered)
    for claim, observations in learned:
        earlier = merged[claim.pattern_id].observations if claim.pattern_id in merged else ()
        by_source = {o.source: o for o in (*earlier, *observations)}
        newest = sorted(by_source.values(), key=lambda o: (o.at, o.source))[-MOST_OBSERVATIONS:]
        merged[claim.pattern_id] = Memory(claim=claim, observations=tuple(newest))
    return {key: memory for key, memory in merged.items() if weight(memory.observations[-1].at, now) >= NEGLIGIBLE}


def judge(remembered: Mapping[str, Memory], now: datetime) -> dict[str, Pattern]:
    """Every pattern as it stands `now`."""
    return {key: _pattern(key, memory, now) for key, memory in remembered.items()}


def _pattern(key: str, memory: Memory, now: datetime) -> Pattern:
    """What the observations of a claim add up to, each weighted by its age."""
    observations = memory.observations
    weights = [(weight(o.at, now), o) for o in observations]
    support = math.fsum(w * o.support for w, o in weights)
    against = math.fsum(w * o.against for w, o in weights)

    low, high = wilson(support, support + against, SETTLED)
    if low > 0.5:
        state = PatternState.SUPPORTED
    elif high < 0.5:
        state = PatternState.REFUTED
    else:
        state = PatternState.CONTESTED

    effect, effect_interval = pooled(observations, now) or (None, None)
    pattern = Pattern(
        pattern_id=key,
        claim=memory.claim,
        state=state,
        text="",
        successes=sum(o.support for o in observations),
        # What ended without a verdict was tried too.
        tries=sum(max(1, o.support + o.against) for o in observations),
        support=support,
        against=against,
        interval=(low, high),
        effect=effect,
        effect_interval=effect_interval,
        first_seen=observations[0].at,
        last_seen=observations[-1].at,
        judged_at=now,
    )
    return pattern.model_copy(update={"text": _sentence(pattern, observations)})


def _sentence(pattern: Pattern, observations: Sequence[Observation]) -> str:
    """The claim and its evidence; effects in points."""
    change = pattern.claim.change
    symptom = pattern.claim.symptom
    effect = ""
    if pattern.effect is not None and pattern.effect_interval is not None:
        low, high = pattern.effect_interval
        effect = f", {100 * pattern.effect:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"
    cause = f" failing by {symptom.cause}" if symptom.cause else ""
    failed = Counter(o.ending for o in observations if not o.support)
    endings = ", ".join(f"{count} {ending}" for ending, count in sorted(failed.items()))
    others = f" ({endings})" if endings else ""
    times = f"{pattern.successes} of {pattern.tries} times{others}"
    return f"{change.text} fixed {symptom.metric} of {symptom.task_type}{cause} {times}{effect}"


def lesson(before: Mapping[str, Pattern], after: Mapping[str, Pattern], at: datetime) -> Lesson:
    """What is new, what has changed and what is forgotten; what is settled first."""
    changes = [("forgotten", pattern) for key, pattern in before.items() if key not in after]
    for key, pattern in after.items():
        was = before.get(key)
        if was is None:
            changes.append((f"new, {pattern.state.value}", pattern))
        elif was.state is not pattern.state:
            changes.append((f"changed, {was.state.value} -> {pattern.state.value}", pattern))
        elif was.tries != pattern.tries:
            changes.append((f"tried again, {pattern.state.value}", pattern))

    def rank(change: tuple[str, Pattern]) -> tuple[bool, str, str]:
        what, pattern = change
        return pattern.state is PatternState.CONTESTED, what, pattern.text

    changes.sort(key=rank)
    lines = _fitting([f"{what}: {pattern.text}" for what, pattern in changes])
    if len(changes) > len(lines):
        lines.append(f"and {len(changes) - len(lines)} more")
    return Lesson(at=at, text="\n".join(lines) or "nothing new")


def _fitting(lines: Sequence[str]) -> list[str]:
    """The first lines, as many as a lesson has room for; how many are left is written after them."""
    room = LONGEST_LESSON
    for number, line in enumerate(lines[:LINES_OF_A_LESSON]):
        room -= len(line) + 1
        if room < 0:
            return list(lines[:number])
    return list(lines[:LINES_OF_A_LESSON])


def relevant(patterns: Iterable[Pattern], symptom: Symptom, most: int) -> tuple[Pattern, ...]:
    """What an investigator of a symptom ought to know, the nearest first; of equally near ones the weightiest.

    Near is first what counts for this symptom (`nearness`), then the task type, reason, kind and metric that it shares.
    Of other task types only what an experiment decided: what fixed them, and what was refuted.
    """

    def rank(pattern: Pattern) -> tuple[float, bool, bool, bool, bool, float, str]:
        learned = pattern.claim.symptom
        return (
            -nearness(learned, symptom),
            learned.task_type != symptom.task_type,
            learned.reason != symptom.reason,
            learned.failure != symptom.failure,
            learned.metric != symptom.metric,
            -(pattern.support + pattern.against),
            pattern.pattern_id,
        )

    worth_knowing = [p for p in patterns if p.claim.symptom.task_type == symptom.task_type or p.support + p.against > 0]
    return tuple(sorted(worth_knowing, key=rank)[:most])
