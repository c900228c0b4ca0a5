"""Search: what could be tried on a case, and how likely each is to help. Pure.

Every legal kind of change is a hypothesis about the cause. Its weight is what the playbook gives it, times what the
records and memory say of it; undoing the last change and successes in memory add to that, and earlier attempts on the
case multiply the whole. One more hypothesis is that no parameter is the cause. A chance is the hypothesis' weight among
all of them, so each attempt that fails makes the others likelier, and giving up likelier than before. Agents differ in
how far they trust each source.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from schema.experience import posterior
from schema.messages.base import Value
from schema.messages.diagnosis import Contrast, ParameterChange, PastEnding
from schema.messages.memory import PatternState
from schema.messages.platform import SECONDS, ParameterKind, ParameterState
from schema.parameter_roles import Role, role_of

from .entries import Entry, entry_for, way_of_choice
from .evidence import Case, Limit, is_limit
from .legal import legal_value
from .playbook import Direction, Failure, Play, Playbook

# The weight of "no parameter is the cause", where nothing is known yet.
NO_CAUSE = 4.0
# What makes it so much likelier: of so many tasks, most of which succeeded before, nearly none does.
OUTAGE = 100.0
FEWEST_OF_OUTAGE, OUTAGE_RATE, HEALTHY_RATE = 30, 0.05, 0.5
# From this weight on an entry is what fixes a symptom as a rule; but where all fails, more tries fix nothing.
USUAL, MORE_TRIES = 6.0, (Role.RETRIES, Role.BACKOFF)
# From so many times as likely on, the records show a cause.
TELLING_TIMES = 2.0
# What an attempt that failed leaves of its hypothesis, by how it ended; what was only voted down was not tried.
LEFT_AFTER = {
    "futile": 0.1,
    "harmful": 0.05,
    "rolled_back": 0.05,
    "inconclusive": 0.3,
    "rejected": 0.25,
    "invalid": 0.8,
}
# What harm says of the opposite direction, what no effect says of it, and a gain that was not enough of going on.
OPPOSITE_OF_HARM, OPPOSITE_OF_NOTHING, FURTHER = 4.0, 0.5, 6.0
# The weight of undoing a change of shortly before the onset: the first suspect is the last change.
SUSPECT = 20.0
# One success that memory holds of the same symptom, against all that a playbook can say.
REMEMBERED = 20.0
# Successes and failures of the prior: Beta(1, 1).
PRIOR, PRIOR_MEAN = 1.0, 0.5
# How many times the slowest good tasks a limit must be to cut off nothing but tasks that hang.
HANGS_FROM = 3.0
# Pauses differ by orders of magnitude, and a temperature matters near zero: a step of theirs is so many times larger.
LARGER_STEPS = {Role.BACKOFF: 2.0, Role.TEMPERATURE: 1.5}
# Few of something, such as retries, grow by this many at least: a factor of one or two goes nowhere.
LEAST_MORE = 3
# The width of an interval from which on "no difference" says something.
TELLING_WIDTH = 0.4
# Attributes that say how much ran at the time, or how large a task was.
LOAD_WORDS = ("running", "flight", "load", "queue", "concurren", "parallel")
SIZE_WORDS = ("batch", "items", "size", "tokens", "length", "rows")
NOTHING_WRITTEN: Mapping[str, Value] = MappingProxyType({})


class Trust(NamedTuple):
    """How far an agent follows each source: an exponent, 1 as it is, 0 not at all."""

    playbook: float = 1.0
    records: float = 1.0
    experience: float = 1.0


@dataclass(frozen=True)
class Idea:
    """A change worth a trial: its chance to help, 0 to 1, and why it is thought of."""

    state: ParameterState
    value: Value
    play: Play
    chance: float
    why: str

    @property
    def key(self) -> str:
        return self.state.declaration.key


class _Factor(NamedTuple):
    """What one source says of a hypothesis: times as likely, and in what words."""

    times: float
    why: str = ""


NEUTRAL = _Factor(1.0)


class _Hypothesis(NamedTuple):
    """A change that may be the remedy, and the weight that all sources give it together.

    `is_shown` is whether the case itself speaks for it: the records, the last change, an attempt, a like one before, or
    an entry of the playbook for what fixes such failures as a rule.
    """

    weight: float
    state: ParameterState
    value: Value
    play: Play
    why: str
    is_shown: bool


def ideas(
    case: Case, playbook: Playbook, trust: Trust, step: float, written: Mapping[str, Value] = NOTHING_WRITTEN
) -> list[Idea]:
    """What could be tried, the likeliest first. `step` is the factor by which numbers change at least.

    `written` are texts that somebody wrote, by parameter: each is one more text that could be tried.
    """
    weights = playbook.weights(case.metric, failures(case))
    unknown = sum(role_of(state.declaration) is Role.OTHER for state in case.touching)
    hypotheses: list[_Hypothesis] = []
    for state in case.touching:
        for play, values in _plays(case, state, step, written.get(state.declaration.key)).items():
            entries = {value: entry_for(weights, play, state.value, value, unknown) for value in values}
            sharing = Counter(entries.values())
            for value, entry in entries.items():
                if not case.against(state.declaration.key, value):
                    shared = entry._replace(shared_by=sharing[entry])
                    hypotheses.append(_hypothesis(case, state, play, value, shared, trust))
    is_cause_shown = any(h.is_shown for h in hypotheses)
    total = math.fsum(h.weight for h in hypotheses) + NO_CAUSE * _helplessness(case, is_cause_shown)
    possible = [Idea(h.state, h.value, h.play, h.weight / total, h.why) for h in hypotheses]
    return sorted(possible, key=lambda idea: (-idea.chance, idea.key, str(idea.value)))


def idea_of(possible: Sequence[Idea], state: ParameterState, value: Value) -> Idea | None:
    """The likeliest idea that a change is an instance of: of a number any in its direction, else of this very value."""
    way = direction(state.value, value)
    alike = [idea for idea in possible if idea.key == state.declaration.key and idea.play.direction is way]
    if way is Direction.SET:
        alike = [idea for idea in alike if idea.value == value]
    return next(iter(alike), None)


def _hypothesis(case: Case, state: ParameterState, play: Play, value: Value, entry: Entry, trust: Trust) -> _Hypothesis:
    """What each source says of one change. A last change and memory add: what they know needs no playbook."""
    records, attempts = _records(case, state, play), _attempts(case, state, play, value)
    suspected, memory = _going_back(case, state, play, value), _remembered(case, state, play, value)
    prior = entry.weight / entry.shared_by
    weight = prior**trust.playbook * records.times**trust.records * memory.times**trust.experience
    weight += trust.records * suspected + trust.experience * memory.added
    weight *= attempts.times**trust.experience
    undoing = f"{state.declaration.key} was changed shortly before the onset" if suspected >= 1 else ""
    why = "; ".join(reason for reason in (undoing, records.why, attempts.why) if reason)
    recalled = case.recalled(state.declaration.key, value)
    has_helped = attempts.times > 1 or (recalled is not None and recalled.state is PatternState.SUPPORTED)
    is_usual = entry.weight >= USUAL and records.times >= 1 and play.role not in MORE_TRIES
    is_shown = suspected >= 1 or records.times >= TELLING_TIMES or has_helped or is_usual
    return _Hypothesis(weight, state, value, play, why or _by_the_playbook(case, state, play, value, entry), is_shown)


def failures(case: Case) -> list[Failure]:
    """The ways tasks fail since the onset beyond what was usual before it, as shares of all such failures."""
    records = case.records
    if records is None or not case.samples:
        return []
    seen = Counter((s.failure, s.reason) for s in case.samples if s.failure is not None)
    usual = {r.reason: r.before / records.before.tasks for r in records.reasons if records.before.tasks}
    reasons = Counter(reason for _, reason in seen.elements())
    excess = {}
    for (kind, reason), count in seen.items():
        expected = usual.get(reason or kind.value, 0.0) * len(case.samples) * count / reasons[reason]
        excess[kind, reason] = max(0.0, count - expected)
    total = math.fsum(excess.values())
    if not total:
        return []
    return [Failure(kind, reason, count / total) for (kind, reason), count in excess.items() if count]


# ---- what can be changed


def _plays(case: Case, state: ParameterState, step: float, written: Value | None = None) -> dict[Play, list[Value]]:
    """The kinds of change of one parameter, with the values to try: one where a number goes up or down."""
    role, declared = role_of(state.declaration), state.declaration
    match declared.kind:
        case ParameterKind.FLOAT | ParameterKind.INTEGER:
            sized = {
                Play(role, way): _sized(case, state, Play(role, way), step) for way in (Direction.UP, Direction.DOWN)
            }
            return {play: [value] for play, value in sized.items() if value is not None}
        case ParameterKind.BOOLEAN:
            values: list[Value] = [not state.value]
        case ParameterKind.CHOICE:
            values = [choice for choice in declared.choices if choice != state.value]
        case ParameterKind.TEXT:  # the built-in agents write none: they can go back to one that was in use
            earlier = dict.fromkeys((*(change.before for change in _changes(case, state)), written))
            texts = [text for text in earlier if text is not None and text != state.value]
            values = [text for text in texts if declared.refusal(text) is None]  # the declaration may have changed
    return {Play(role, Direction.SET): values} if values else {}


def _sized(case: Case, state: ParameterState, play: Play, step: float) -> Value | None:
    """How far to go: to what the records or the last change say, else a step."""
    undone = _undone(case, state, play)
    if undone is not None:
        return legal_value(state, undone)
    if play.role is Role.LIMIT and play.direction is Direction.DOWN and state.declaration.unit in SECONDS:
        wanted = 1.5 * case.slowest_good_s / SECONDS[state.declaration.unit]
        if 0 < wanted < float(state.value) / 1.2:
            return legal_value(state, wanted)
    return legal_value(state, _stepped(state, play.direction, step * LARGER_STEPS.get(play.role, 1.0)))


def _stepped(state: ParameterState, way: Direction, step: float) -> float:
    """A number that goes up or down by a factor; where negative ones are legal, by tenths of the range."""
    declared, current = state.declaration, float(state.value)
    least, most = declared.minimum or 0.0, declared.maximum or 0.0
    if least < 0:
        distance = (step - 1) * (most - least) / 10
        higher, lower = current + distance, current - distance
    else:
        higher = step * current if current else most / 100
        lower = current / step
    if declared.kind is ParameterKind.INTEGER:
        higher, lower = max(higher, current + LEAST_MORE), min(lower, current - 1)
    return lower if way is Direction.DOWN else higher


def _undone(case: Case, state: ParameterState, play: Play) -> float | None:
    """The value before the change that is suspected, where that lies in the direction."""
    suspected = _suspected(case, state)
    if suspected is None:
        return None
    before, current = suspected[0].before, state.value
    if isinstance(before, bool | str) or isinstance(current, bool | str) or before is None:
        return None
    is_higher = before > current
    return float(before) if is_higher is (play.direction is Direction.UP) else None


# ---- what the records say


def _records(case: Case, state: ParameterState, play: Play) -> _Factor:
    match play.role:
        case Role.LIMIT if is_limit(state, case.task_type) and case.metric == "success_rate":
            return _of_limit(case, Limit(state, case.samples), play.direction)
        case Role.CONCURRENCY:
            return _of_contrast(case, LOAD_WORDS, play.direction)
        case Role.BATCH_SIZE:
            return _of_contrast(case, SIZE_WORDS, play.direction)
        case Role.BACKOFF | Role.RETRIES:
            load = _contrast(case, LOAD_WORDS)
            # What depends on how much runs at once is no matter of waiting.
            if load is not None and load.stands_out:
                return _Factor(0.5)
            return _Factor(1.5) if load is not None and _is_telling(load) else NEUTRAL
    return NEUTRAL


def _of_limit(case: Case, limit: Limit, direction: Direction) -> _Factor:
    """A limit that cuts tasks off is too short, or, far beyond the slowest good ones, cuts off what hangs."""
    cut = len(limit.at_limit)
    if cut < 3:
        return _Factor(0.15) if direction is Direction.UP else NEUTRAL
    hangs = case.slowest_good_s > 0 and limit.seconds > HANGS_FROM * case.slowest_good_s
    seen = f"{cut} of {limit.failures} failed tasks ran into {limit.key}"
    if hangs:
        why = f"{seen}, {limit.seconds / case.slowest_good_s:.1f} times what the slowest good ones take: they hang"
        return _Factor(3.0, why) if direction is Direction.DOWN else _Factor(0.1)
    return _Factor(1 + 2 * limit.explained, seen) if direction is Direction.UP else _Factor(0.3)


def _of_contrast(case: Case, words: Sequence[str], direction: Direction) -> _Factor:
    """Whether tasks fare worse where more ran, or was asked of them, at once."""
    contrast = _contrast(case, words)
    if contrast is None:
        return NEUTRAL
    worse_when_high = contrast.difference < 0 if contrast.value.startswith("over") else contrast.difference > 0
    if not contrast.stands_out:
        return _Factor(0.6) if _is_telling(contrast) else NEUTRAL
    share = f"{_share(contrast.counts.successes, contrast.counts.tasks)} of those with {contrast.attribute}"
    why = f"{share} {contrast.value} are good, {_share(contrast.rest.successes, contrast.rest.tasks)} of the others"
    return _Factor(4.0, why) if worse_when_high is (direction is Direction.DOWN) else _Factor(0.2)


def _contrast(case: Case, words: Sequence[str]) -> Contrast | None:
    """The strongest contrast of an attribute that one of the words names."""
    contrasts = case.records.contrasts if case.records else ()
    named = [c for c in contrasts if any(word in c.attribute for word in words) and c.value.startswith(("over", "up"))]
    return max(named, key=lambda c: (c.stands_out, abs(c.difference)), default=None)


def _is_telling(contrast: Contrast) -> bool:
    """Whether enough tasks were compared for a difference that matters to show."""
    low, high = contrast.interval
    return high - low < TELLING_WIDTH


def _share(successes: int, tasks: int) -> str:
    return f"{successes / tasks:.0%}" if tasks else "none"


def _helplessness(case: Case, is_cause_shown: bool) -> float:
    """How much likelier than usual it is that no parameter is the cause.

    Nearly every task fails in one way, whatever its attributes: something that all of them need is down. All the more
    where nearly none succeeds any more, and neither the record nor a rule for such failures shows a parameter as the
    cause.
    """
    contrasts = case.records.contrasts if case.records else ()
    rate, ways = case.baseline.rate, failures(case)
    if rate is None or not ways or any(contrast.stands_out for contrast in contrasts):
        return 1.0
    if _is_outage(case, rate) and not is_cause_shown:
        return OUTAGE
    return 4.0 if rate < 0.1 and max(way.share for way in ways) > 0.9 else 1.0


def _is_outage(case: Case, rate: float) -> bool:
    """Whether tasks, most of which succeeded, suddenly nearly all fail."""
    healthy = case.before if case.before.tasks else case.status.briefing.healthy
    was_healthy = healthy is not None and healthy.rate is not None and healthy.rate >= HEALTHY_RATE
    is_down = rate < OUTAGE_RATE and case.baseline.tasks >= FEWEST_OF_OUTAGE
    return case.metric == "success_rate" and was_healthy and is_down


# ---- what was changed and tried


def _changes(case: Case, state: ParameterState) -> list[ParameterChange]:
    """The changes of a parameter, the newest first."""
    return [change for change in case.recent.changes if change.parameter == state.declaration.key]


def _suspected(case: Case, state: ParameterState) -> tuple[ParameterChange, float] | None:
    """The last change of a parameter, if it is in force and came before the onset, with how suspect it is.

    Half as much with every length of the time since the onset that lies between the two.
    """
    newest = next(iter(_changes(case, state)), None)
    if newest is None or newest.before is None or newest.kind == "declared" or newest.value != state.value:
        return None
    onset = case.status.anomaly.onset if case.status.anomaly else case.recent.window_start
    since_onset = case.recent.at - onset
    # An onset is known to within some intervals.
    if newest.at > onset + since_onset / 4 or not since_onset:
        return None
    return newest, SUSPECT * 2.0 ** -max(0.0, (onset - newest.at) / since_onset)


def _going_back(case: Case, state: ParameterState, play: Play, value: Value) -> float:
    """The weight of undoing a change of shortly before the onset: a number goes back as near as is legal."""
    suspected = _suspected(case, state)
    if suspected is None:
        return 0.0
    change, weight = suspected
    goes_back = change.before == value or _undone(case, state, play) is not None
    return weight if goes_back else 0.0


def _attempts(case: Case, state: ParameterState, play: Play, value: Value) -> _Factor:
    """What earlier attempts on this case say of going in a direction."""
    times, why = 1.0, ""
    least = case.status.briefing.rules.minimum_effect
    for past in case.endings:
        if past.parameter != state.declaration.key or past.value is None:
            continue
        way = direction(state.value if past.before is None else past.before, past.value)
        if play.direction is Direction.SET:
            times *= LEFT_AFTER.get(past.ending, 1.0) if past.value == value else 1.0
        elif way is play.direction:
            times *= LEFT_AFTER.get(past.ending, 1.0)
            if past.ending == "promoted" and (past.effect is None or past.effect > 0):
                times, why = times * FURTHER, f"going {way.value} has helped, and not enough"
        elif _did_harm(past, least):
            times *= OPPOSITE_OF_HARM
        elif past.ending == "futile" and past.effect is not None and past.effect < least:
            times *= OPPOSITE_OF_NOTHING
    return _Factor(times, why)


def _did_harm(past: PastEnding, least: float) -> bool:
    """Whether a change made it worse, by its ending or, where its experiment counts, by an effect of `least`."""
    measured = past.effect if past.ending in ("futile", "inconclusive") else None
    return past.ending in ("harmful", "rolled_back") or (measured is not None and measured <= -least)


def direction(current: Value, value: Value) -> Direction:
    """Which way a change goes."""
    if isinstance(current, bool | str) or isinstance(value, bool | str):
        return Direction.SET
    return Direction.UP if value > current else Direction.DOWN


class _Memory(NamedTuple):
    """What memory says of a change: times as likely, and what its successes add."""

    times: float
    added: float


def _remembered(case: Case, state: ParameterState, play: Play, value: Value) -> _Memory:
    """The posterior mean of success over the prior's; successes that outweigh the failures add, whatever the playbook.

    Another choice that failed says nothing of this one; one that helped shows that the role matters.
    """
    change = case.change(state.declaration.key, value)
    assert change is not None
    memory, at = case.recent.memory, case.recent.at
    successes, _ = posterior(memory, case.symptom, play.role, change.verb, at, name=change.name)
    _, failed = posterior(memory, case.symptom, play.role, change.verb, at, name=change.name, value=change.value)
    mean = (successes + PRIOR) / (successes + failed + 2 * PRIOR)
    return _Memory(mean / PRIOR_MEAN, REMEMBERED * max(0.0, successes - failed))


def _by_the_playbook(case: Case, state: ParameterState, play: Play, value: Value, entry: Entry) -> str:
    failure = f" failing by {case.symptom.cause}" if case.symptom.cause else ""
    if entry.play is None:
        play = Play(play.role, way_of_choice(state.value, value) or play.direction)
        return f"no entry of the playbook names {_in_words(play, state)} for {case.metric}{failure}"
    return f"{_in_words(entry.play, state)} is what helps as a rule with {case.metric}{failure}"


def _in_words(play: Play, state: ParameterState) -> str:
    way = {Direction.UP: "a higher", Direction.DOWN: "a lower", Direction.SET: "another"}[play.direction]
    what = state.declaration.key.rpartition(".")[2] if play.role is Role.OTHER else play.role.value
    return f"{way} {what.replace('_', ' ')}"
