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
from typing import TYPE_CHECKING, NamedTuple

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
    from schema.messages.experiment import ExperimentDesign, Reading

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

# A claim, and the evidence that one source adds to it.
Learned = tuple[Claim, Sequence[Observation]]


class PooledEffect(NamedTuple):
    """The mean of an effect, and its 95 % interval."""

    mean: float
    interval: tuple[float, float]


def pooled(observations: Iterable[Observation], now: datetime) -> PooledEffect | None:
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
    return PooledEffect(effect, (max(-1.0, effect - half), min(1.0, effect + half)))


# ---- what is learned


def remedy(end: "CycleEnd", design: "ExperimentDesign", symptom: Symptom, role: str = "") -> Learned | None:
    """What a finished cycle teaches about the change it tried: a claim, and this cycle as its one observation.

    None where no experiment gave evidence: a vote, a veto or a broken assignment shows nothing of what a change does.
    `role` is that of the parameter; empty where it is not known.
    """
    from schema.messages.cycle import Ending

    reading = _telling_reading(end, design)
    if reading is None:
        return None

    is_success = end.ending is Ending.PROMOTED
    is_failure = end.ending in (Ending.FUTILE, Ending.HARMFUL, Ending.ROLLED_BACK)
    standard_error = _standard_error(reading)
    observation = Observation(
        source=end.cycle_id,
        at=end.at,
        support=int(is_success),
        against=int(is_failure),
        effect=reading.effect if standard_error is not None else None,  # without an error it cannot be weighed
        error=standard_error,
        ending=end.ending.value,
    )

    change = Change.of(design.parameter, design.control, design.treatment, role)
    return Claim(kind=PatternKind.REMEDY, symptom=symptom, change=change), [observation]


def _telling_reading(end: "CycleEnd", design: "ExperimentDesign") -> "Reading | None":
    """The reading that shows what the change does: the experiment's, or that of the watch which undid it."""
    from rules.design import breaks_something
    from schema.messages.cycle import Ending

    match end.ending:
        case Ending.PROMOTED | Ending.FUTILE | Ending.HARMFUL | Ending.INCONCLUSIVE:
            return end.reading
        case Ending.ROLLED_BACK if end.watch is not None and breaks_something(design, end.watch):
            return end.watch
        case _:
            return None


def _standard_error(reading: "Reading") -> float | None:
    """What the always-valid interval of the effect stands for: too wide rather than too narrow. None without one."""
    if reading.effect is None or reading.interval is None:
        return None
    low, high = reading.interval
    return (high - low) / (2 * Z95) if low < high else None


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
    """What the observations of a claim add up to: support and against weighted by age, successes and tries counted."""
    observations = memory.observations
    support = math.fsum(weight(o.at, now) * o.support for o in observations)
    against = math.fsum(weight(o.at, now) * o.against for o in observations)
    interval = wilson(support, support + against, SETTLED)
    effect = pooled(observations, now)
    successes = sum(o.support for o in observations)
    tries = sum(max(1, o.support + o.against) for o in observations)  # what ended without a verdict was tried too
    return Pattern(
        pattern_id=key,
        claim=memory.claim,
        state=_state(interval),
        text=_sentence(memory, f"{successes} of {tries} times", effect),
        successes=successes,
        tries=tries,
        support=support,
        against=against,
        interval=interval,
        effect=effect.mean if effect else None,
        effect_interval=effect.interval if effect else None,
        first_seen=observations[0].at,
        last_seen=observations[-1].at,
        judged_at=now,
    )


def _state(interval: tuple[float, float]) -> PatternState:
    low, high = interval
    if low > 0.5:
        return PatternState.SUPPORTED
    if high < 0.5:
        return PatternState.REFUTED
    return PatternState.CONTESTED


def _sentence(memory: Memory, times: str, effect: PooledEffect | None) -> str:
    """The claim and its evidence; effects in points."""
    change = memory.claim.change
    symptom = memory.claim.symptom
    cause = f" failing by {symptom.cause}" if symptom.cause else ""
    failed = Counter(o.ending for o in memory.observations if not o.support)
    endings = ", ".join(f"{count} {ending}" for ending, count in sorted(failed.items()))
    others = f" ({endings})" if endings else ""
    claim = f"{change.text} fixed {symptom.metric} of {symptom.task_type}{cause} {times}{others}"
    if effect is None:
        return claim
    low, high = effect.interval
    return f"{claim}, {100 * effect.mean:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"


class _News(NamedTuple):
    """What became of a pattern since the last lesson."""

    what: str
    pattern: Pattern


def lesson(before: Mapping[str, Pattern], after: Mapping[str, Pattern], at: datetime) -> Lesson:
    """What is new, what has changed and what is forgotten; what is settled first."""
    news = [_News("forgotten", pattern) for key, pattern in before.items() if key not in after]
    for key, pattern in after.items():
        what = _what_is_new(before.get(key), pattern)
        if what is not None:
            news.append(_News(what, pattern))
    news.sort(key=lambda item: (item.pattern.state is PatternState.CONTESTED, item.what, item.pattern.text))
    lines = _fitting([f"{item.what}: {item.pattern.text}" for item in news])
    if len(news) > len(lines):
        lines.append(f"and {len(news) - len(lines)} more")
    return Lesson(at=at, text="\n".join(lines) or "nothing new")


def _what_is_new(before: Pattern | None, pattern: Pattern) -> str | None:
    if before is None:
        return f"new, {pattern.state.value}"
    if before.state is not pattern.state:
        return f"changed, {before.state.value} -> {pattern.state.value}"
    if before.tries != pattern.tries:
        return f"tried again, {pattern.state.value}"
    return None


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
