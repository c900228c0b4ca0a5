"""Patterns: what can be learned from finished cycles, weeks and days, and how sure it is.

Evidence is kept one by one and weighed by age: counts decay, not truth. What contradicts a claim is counted against it;
it overwrites nothing, and a claim that grows old becomes unsure and not false. Nothing here decides anything: agents
read it beside the records, and only an experiment promotes.

Sources: Wilson, "Probable inference, the law of succession, and statistical inference", 1927 (intervals of shares);
DerSimonian & Laird, "Meta-analysis in clinical trials", 1986 (effects that differ between experiments); Dunn, "Multiple
comparisons among means", 1961, the correction after Bonferroni; Hoeffding, "On the distribution of the number of
successes in independent trials", 1956 (tails of trials with unequal chances).
"""

import math
from calendar import day_name
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

from rules.rates import smoothed, wilson
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
from schema.messages.observatory import Counts, Interval

# Only learning needs these: `nautilus memory list` starts faster without them.
if TYPE_CHECKING:
    from schema.messages.cycle import CycleEnd
    from schema.messages.experiment import ExperimentDesign

# A platform changes its work every few months; what was true two months ago is worth half.
HALF_LIFE = timedelta(days=60)
# Six half-lives: what has not been seen for a year is forgotten.
NEGLIGIBLE = 2.0**-6
# Older evidence than that of the last hundred nightly runs is dropped.
MOST_OBSERVATIONS = 100
Z95 = NormalDist().inv_cdf(0.975)
# A verdict is a whole experiment with error rates of its own, and an hour of the week has passed its own test: one
# settles a claim for a half-life (z^2 = 1/2), and until another contradicts it. Single tasks settle at 95 %.
SETTLED = {PatternKind.REMEDY: math.sqrt(0.5), PatternKind.WEEKLY_LOW: math.sqrt(0.5), PatternKind.SKILL: Z95}
HOURS_OF_WEEK = 168
WEEKLY_ALPHA = 0.05
LINES_OF_A_LESSON = 12

Learned = tuple[Claim, Sequence[Observation]]


def weight(at: datetime, now: datetime) -> float:
    """What evidence of `at` is worth `now`, 0 to 1."""
    return min(1.0, math.exp2((at - now) / HALF_LIFE))


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


def remedy(end: "CycleEnd", design: "ExperimentDesign", symptom: Symptom) -> Learned | None:
    """What a finished cycle shows of its change; None where no experiment gave evidence.

    A vote, a person's veto or a broken assignment is no evidence of what a change does.
    """
    from rules.design import breaks_something
    from schema.messages.cycle import Ending

    reading, support, against = end.reading, 0, 0
    match end.ending:
        case Ending.PROMOTED:
            support = 1
        case Ending.FUTILE | Ending.HARMFUL:
            against = 1
        case Ending.ROLLED_BACK:
            if end.watch is None or not breaks_something(design, end.watch):
                return None
            reading, against = end.watch, 1
        case Ending.INCONCLUSIVE:
            pass
        case _:
            return None
    if reading is None:
        return None
    # The standard error that the always-valid interval stands for: too wide rather than too narrow.
    low, high = reading.interval or (0.0, 0.0)
    is_measured = reading.effect is not None and low < high
    observation = Observation(
        source=end.cycle_id,
        at=end.at,
        support=support,
        against=against,
        effect=reading.effect if is_measured else None,
        error=(high - low) / (2 * Z95) if is_measured else None,
        ending=end.ending.value,
    )
    change = Change.of(design.parameter, design.control, design.treatment)
    return Claim(kind=PatternKind.REMEDY, symptom=symptom, change=change), [observation]


class _Hour(NamedTuple):
    """One hour of one week, and the rest of that week."""

    start: datetime
    counts: Counts
    rest: Counts

    @property
    def expected(self) -> float:
        return smoothed(self.rest.successes, self.rest.tasks)


def weekly_lows(
    metric: str, task_type: str, intervals: Iterable[Interval], known_hours: Collection[int] = ()
) -> list[Learned]:
    """The hours of the week (UTC) whose success rate lies below the rest of their weeks beyond chance.

    All 168 are tested, so each is tested at alpha / 168. An hour must pass without its worst week too: an incident is
    not a habit. `known_hours` are reported whatever they show, so that they can be contradicted.
    """
    hours: dict[datetime, list[Counts]] = defaultdict(list)
    weeks: dict[datetime, list[Counts]] = defaultdict(list)
    for interval in intervals:
        start = interval.start.replace(minute=0, second=0, microsecond=0)
        hours[start].append(interval.counts)
        weeks[_week(start)].append(interval.counts)
    totals = {start: Counts.total(counts) for start, counts in weeks.items()}
    table: dict[int, list[_Hour]] = defaultdict(list)
    for start, parts in sorted(hours.items()):
        counts, week = Counts.total(parts), totals[_week(start)]
        rest = Counts(tasks=week.tasks - counts.tasks, successes=week.successes - counts.successes)
        if counts.tasks and rest.tasks:
            table[start.weekday() * 24 + start.hour].append(_Hour(start, counts, rest))
    symptom = Symptom(metric=metric, task_type=task_type)
    lows: list[Learned] = []
    for hour, samples in sorted(table.items()):
        if hour in known_hours or _is_low(samples):
            claim = Claim(kind=PatternKind.WEEKLY_LOW, symptom=symptom, hour=hour)
            lows.append((claim, [_in_one_week(sample) for sample in samples]))
    return lows


def _week(at: datetime) -> datetime:
    return at.replace(hour=0) - timedelta(days=at.weekday())


def _is_low(samples: Sequence[_Hour]) -> bool:
    """Whether an hour is low beyond chance, its worst week left out.

    The weeks' rates differ; below its mean their sum has a lighter tail than the binomial of their mean rate (Hoeffding
    1956), so the test is on the safe side.
    """
    from rules.series import binomial_tail

    rest = sorted(samples, key=lambda hour: hour.counts.successes - hour.counts.tasks * hour.expected)[1:]
    counts = Counts.total(hour.counts for hour in rest)
    if not counts.tasks:
        return False
    rate = math.fsum(hour.counts.tasks * hour.expected for hour in rest) / counts.tasks
    return binomial_tail(counts.successes, counts.tasks, rate) <= WEEKLY_ALPHA / HOURS_OF_WEEK


def _in_one_week(hour: _Hour) -> Observation:
    counts, rest = hour.counts, hour.rest
    rate, usual = smoothed(counts.successes, counts.tasks), hour.expected
    below = counts.successes * rest.tasks < counts.tasks * rest.successes
    variance = rate * (1 - rate) / counts.tasks + usual * (1 - usual) / rest.tasks
    return Observation(
        source=hour.start.isoformat(),
        at=hour.start,
        support=int(below),
        against=int(not below),
        effect=rate - usual,
        error=math.sqrt(variance),
    )


def skill(metric: str, task_type: str, agent_id: str, source: str, at: datetime, counts: Counts) -> Learned:
    """An agent's successes in some of its tasks of one type."""
    claim = Claim(kind=PatternKind.SKILL, symptom=Symptom(metric=metric, task_type=task_type), agent_id=agent_id)
    return claim, [Observation(source=source, at=at, support=counts.successes, against=counts.tasks - counts.successes)]


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


class _Weighed(NamedTuple):
    """The observations of a memory, counted by what they are worth now."""

    support: float
    against: float


def judge(remembered: Mapping[str, Memory], now: datetime) -> dict[str, Pattern]:
    """Every pattern as it stands `now`. An agent is compared with the others on its task type."""
    counts = {key: _weighed(memory, now) for key, memory in remembered.items()}
    skills: dict[Symptom, list[_Weighed]] = defaultdict(list)
    for key, memory in remembered.items():
        if memory.claim.kind is PatternKind.SKILL:
            skills[memory.claim.symptom].append(counts[key])
    judged = {}
    for key, memory in remembered.items():
        reference: float | None = 0.5
        if memory.claim.kind is PatternKind.SKILL:
            reference = _share_of_others(skills[memory.claim.symptom], counts[key])
        judged[key] = _pattern(key, memory, counts[key], reference, now)
    return judged


def _weighed(memory: Memory, now: datetime) -> _Weighed:
    weights = [(weight(o.at, now), o) for o in memory.observations]
    return _Weighed(math.fsum(w * o.support for w, o in weights), math.fsum(w * o.against for w, o in weights))


def _share_of_others(agents: Sequence[_Weighed], own: _Weighed) -> float | None:
    """The success rate of all agents but one; None where no other did any."""
    support = math.fsum(agent.support for agent in agents) - own.support
    against = math.fsum(agent.against for agent in agents) - own.against
    return support / (support + against) if support + against > 1e-9 else None


def _pattern(key: str, memory: Memory, counts: _Weighed, reference: float | None, now: datetime) -> Pattern:
    claim, observations, (support, against) = memory.claim, memory.observations, counts
    low, high = wilson(support, support + against, SETTLED[claim.kind])
    state = PatternState.CONTESTED
    if reference is not None and not low <= reference <= high:
        state = PatternState.SUPPORTED if low > reference else PatternState.REFUTED
    effect, effect_interval = pooled(observations, now) or (None, None)
    pattern = Pattern(
        pattern_id=key,
        claim=claim,
        state=state,
        text="",
        successes=sum(o.support for o in observations),
        # What ended without a verdict was tried too.
        tries=sum(max(1, o.support + o.against) for o in observations),
        support=support,
        against=against,
        interval=(low, high),
        reference=reference,
        effect=effect,
        effect_interval=effect_interval,
        first_seen=observations[0].at,
        last_seen=observations[-1].at,
    )
    return pattern.model_copy(update={"text": _sentence(pattern, observations)})


def _sentence(pattern: Pattern, observations: Sequence[Observation]) -> str:
    """The claim and its evidence; effects in points."""
    claim, times = pattern.claim, f"{pattern.successes} of {pattern.tries}"
    symptom = f"{claim.symptom.metric} of {claim.symptom.task_type}"
    effect = ""
    if pattern.effect is not None and pattern.effect_interval is not None:
        low, high = pattern.effect_interval
        effect = f", {100 * pattern.effect:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"
    match claim.kind:
        case PatternKind.REMEDY:
            assert claim.change is not None
            cause = f" failing by {claim.symptom.failure}" if claim.symptom.failure else ""
            failed = Counter(o.ending for o in observations if not o.support)
            endings = ", ".join(f"{count} {ending}" for ending, count in sorted(failed.items()))
            others = f" ({endings})" if endings else ""
            return f"{claim.change.text} fixed {symptom}{cause} {times} times{others}{effect}"
        case PatternKind.WEEKLY_LOW:
            assert claim.hour is not None
            day = f"{day_name[claim.hour // 24]} {claim.hour % 24:02d}:00"
            return f"{symptom} lay below the rest of the week on {day} UTC {times} times{effect}"
        case PatternKind.SKILL:
            low, high = pattern.interval
            others = "no other agent did any" if pattern.reference is None else f"the others in {pattern.reference:.0%}"
            tasks = f"{times} tasks of {claim.symptom.task_type} [{low:.0%}, {high:.0%}]"
            return f"{claim.agent_id} succeeded in {tasks}, {others}"


def lesson(before: Mapping[str, Pattern], after: Mapping[str, Pattern], at: datetime) -> Lesson:
    """What is new, what has changed and what is forgotten; what can be done first, then what is settled.

    Single tasks and weeks move counts with every nightly run: of them only another state is news.
    """
    changes = [("forgotten", pattern) for key, pattern in before.items() if key not in after]
    for key, pattern in after.items():
        was = before.get(key)
        if was is None:
            changes.append((f"new, {pattern.state.value}", pattern))
        elif was.state is not pattern.state:
            changes.append((f"changed, {was.state.value} -> {pattern.state.value}", pattern))
        elif pattern.claim.kind is PatternKind.REMEDY and was.tries != pattern.tries:
            changes.append((f"tried again, {pattern.state.value}", pattern))

    def rank(change: tuple[str, Pattern]) -> tuple[bool, bool, str, str]:
        what, p = change
        return p.claim.kind is not PatternKind.REMEDY, p.state is PatternState.CONTESTED, what, p.text

    changes.sort(key=rank)
    lines = [f"{what}: {pattern.text}" for what, pattern in changes[:LINES_OF_A_LESSON]]
    if len(changes) > len(lines):
        lines.append(f"and {len(changes) - len(lines)} more")
    return Lesson(at=at, text="\n".join(lines)[:2_000] or "nothing new")


def relevant(patterns: Iterable[Pattern], metric: str, task_type: str, most: int) -> tuple[Pattern, ...]:
    """What an investigator ought to know: of the same metric, of its own task type first, then the weightiest.

    Of other task types only what fixed them. Skills of agents go last: many agents must not hide what can be done.
    """

    def rank(p: Pattern) -> tuple[bool, bool, bool, float, str]:
        kind, own = p.claim.kind, p.claim.symptom.task_type == task_type
        is_skill, is_remedy = kind is PatternKind.SKILL, kind is PatternKind.REMEDY
        return is_skill, not own, not is_remedy, -(p.support + p.against), p.pattern_id

    about = [p for p in patterns if p.claim.symptom.metric == metric]
    about = [p for p in about if p.claim.kind is PatternKind.REMEDY or p.claim.symptom.task_type == task_type]
    return tuple(sorted(about, key=rank)[:most])
