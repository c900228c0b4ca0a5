"""The draft of a `platform.toml` for an operator's own platform: from their options, or from past outcomes.

A draft never guesses quietly: what it derives stands in the file with the numbers that it was derived from. Rates and
durations set windows, bounds and the floor; how sure a verdict must be is never derived.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from activities.sketches import Sketch, quantile, sketch, value
from schema.failure_kinds import FailureKind
from schema.messages.base import LONGEST_VALUE
from schema.messages.observatory import TaskOutcome
from schema.messages.platform import (
    CycleRules,
    JobId,
    Mode,
    ObservatoryRules,
    Parameter,
    ParameterKind,
    TaskTypeDeclaration,
)
from schema.pace import TRIAL, Pace

DAY_S, WEEK_S = 86_400, 604_800
PARAMETER = re.compile(r"(?P<key>[^=:@\s]+)=(?P<default>[^:@]+)(:(?P<bounds>[^@]+))?(@(?P<types>.+))?")
SYNTAX = (
    "KEY=DEFAULT:MINIMUM..MAXIMUM, KEY=DEFAULT:ONE|OTHER, KEY=true or KEY=FILE:text, "
    "each with @TYPE,TYPE where no type begins KEY"
)
UNITS = {"_s": "s", "_ms": "ms"}
# One proposal may go a fifth of the way from bound to bound: some steps to anywhere, none across everything.
STEPS = 5
PLACEHOLDER = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
# A prompt of one sentence may grow to some paragraphs.
SHORTEST_LONGEST = 2_000
# The fewest tasks from which a type's rate or durations can be estimated.
ENOUGH_TASKS = 50
# Tasks that take next to no time must not round the limit to zero, which no task meets.
SHORTEST_LIMIT_S = 0.001
# With this many tasks an interval, a drop to two thirds is detected within some intervals.
TASKS_PER_INTERVAL = 20
# Shorter intervals would be many to read and to keep: roll-ups are kept for more than a year.
INTERVALS_S = (300, 900, 3_600)


class DraftError(ValueError):
    """What a draft cannot be made from; one line."""


@dataclass
class TypeHistory:
    """The past outcomes of one task type; durations are counted, not kept, however long the file is."""

    tasks: int = 0
    successes: int = 0
    first: datetime | None = None
    last: datetime | None = None
    durations: Sketch = field(default_factory=Sketch)  # of those that succeeded
    cut_off_s: Counter[float] = field(default_factory=Counter)  # to three digits: what is cut off ends a little late

    def add(self, outcome: TaskOutcome) -> None:
        self.tasks += 1
        self.successes += outcome.failure is None
        self.first = min(self.first or outcome.finished_at, outcome.finished_at)
        self.last = max(self.last or outcome.finished_at, outcome.finished_at)
        if outcome.failure is None:
            self.durations.update(sketch([outcome.duration_s]))
        elif outcome.failure is FailureKind.TIMEOUT:
            self.cut_off_s[float(f"{outcome.duration_s:.3g}")] += 1

    @property
    def rate(self) -> float:
        return self.successes / self.tasks

    @property
    def is_mostly_cut_off(self) -> bool:
        """Whether most failures are of the limit: a fault that a cycle can fix, and no reason for a lower floor."""
        return 2 * self.cut_off_s.total() >= self.tasks - self.successes

    @property
    def longest_s(self) -> float:
        return max((*map(value, self.durations), *self.cut_off_s), default=0.0)


@dataclass
class DerivedRules:
    """The rules that differ from the defaults, and why, by `section.key`."""

    observatory: dict[str, Any] = field(default_factory=dict)
    cycle: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def observe(self, key: str, setting: float, reason: str) -> None:
        self.observatory[key] = setting
        self.reasons[f"observatory.{key}"] = reason

    def run_cycles(self, key: str, setting: float, reason: str) -> None:
        self.cycle[key] = setting
        self.reasons[f"cycle.{key}"] = reason


class Draft(NamedTuple):
    """What the file will declare. `reasons` say, by key, why parameters are declared that nobody has asked for."""

    task_types: tuple[TaskTypeDeclaration, ...]
    parameters: tuple[Parameter, ...]
    rules: DerivedRules
    reasons: Mapping[str, str]


def drafted(
    task_types: Sequence[str], parameters: Sequence[str], histories: Mapping[str, TypeHistory], pace: Pace
) -> Draft:
    """A draft of what the operator declared; past outcomes fill in the rest. Raises DraftError."""
    for name in task_types:
        if task_types.count(name) > 1:
            raise DraftError(f"--task-type {name}: expected every task type once, but it came twice")
    names = list(histories)
    names += [name for name in task_types if name not in histories]
    declared = _declared_parameters(parameters, names)
    derived = _derived_limits(histories, declared)
    by_key = declared | {key: limit.parameter for key, limit in derived.items()}
    return Draft(
        task_types=tuple(task_type(name, by_key) for name in names),
        parameters=tuple(by_key.values()),
        rules=_rules_for(histories, pace),
        reasons={key: limit.reason for key, limit in derived.items()},
    )


def _declared_parameters(texts: Iterable[str], task_types: Sequence[str]) -> dict[str, Parameter]:
    by_key: dict[str, Parameter] = {}
    for text in texts:
        declared = parameter(text, task_types)
        if declared.key in by_key:
            raise DraftError(f"--parameter {text}: expected every parameter once, but {declared.key} came twice")
        by_key[declared.key] = declared
    return by_key


def task_type(name: str, keys: Iterable[str] = ()) -> TaskTypeDeclaration:
    """A task type, with its limit where one is declared under the usual key."""
    limit = f"{name}.timeout_s"
    try:
        return TaskTypeDeclaration(name=name, timeout_parameter=limit if limit in keys else None)
    except ValidationError:
        raise DraftError(
            f"--task-type {name}: expected small letters, digits and underscores, as in research_synthesis"
        ) from None


def parameter(text: str, task_types: Sequence[str]) -> Parameter:
    """A parameter in the compact form of the command line; raises DraftError."""
    match = PARAMETER.fullmatch(text.strip())
    if match is None:
        raise DraftError(f"--parameter {text}: expected {SYNTAX}")
    key = match["key"]
    affected = _affected(text, match, task_types)
    default = match["default"].strip()
    try:
        fields = _values(key, default, match["bounds"] or "")
        fields["key"] = key
        fields["task_types"] = affected
        fields["unit"] = next((unit for suffix, unit in UNITS.items() if key.endswith(suffix)), "")
        return Parameter.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        reason = first["msg"].removeprefix("Value error, ")
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise DraftError(f"--parameter {text}: {where}{reason}") from None
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise DraftError(f"--parameter {text}: expected a file of text at {default}, but {what}") from None
    except (ValueError, KeyError):
        raise DraftError(f"--parameter {text}: expected {SYNTAX}") from None


def _affected(text: str, match: re.Match[str], task_types: Sequence[str]) -> list[str]:
    """The task types after the @, else the one that the key begins with; raises DraftError for an unknown one."""
    affected = [match["key"].partition(".")[0]]
    if match["types"]:
        affected = [name.strip() for name in match["types"].split(",")]
    unknown = [name for name in affected if name not in task_types]
    if unknown:
        place = f"before the point or after an @ ({', '.join(task_types) or 'none'})"
        raise DraftError(f"--parameter {text}: expected a task type {place}, but {unknown[0]} came")
    return affected


def _values(key: str, default: str, bounds: str) -> dict[str, Any]:
    """Kind, default and bounds; raises ValueError or KeyError for another form. Durations need not be whole numbers."""
    if not bounds:
        truth = {"true": True, "false": False}
        return {"kind": ParameterKind.BOOLEAN, "default": truth[default.lower()]}
    if bounds.strip() == ParameterKind.TEXT:
        return _text(Path(default))
    if ".." not in bounds:
        choices = [choice.strip() for choice in bounds.split("|")]
        return {"kind": ParameterKind.CHOICE, "default": default, "choices": choices}
    minimum, _, maximum = bounds.partition("..")
    is_whole = all(re.fullmatch(r"[+-]?\d+", number.strip()) for number in (default, minimum, maximum))
    if is_whole and not key.endswith(tuple(UNITS)):
        return _integer(int(default), int(minimum), int(maximum))
    return _float(float(default), float(minimum), float(maximum))


def _integer(default: int, minimum: int, maximum: int) -> dict[str, Any]:
    return {
        "kind": ParameterKind.INTEGER,
        "default": default,
        "minimum": minimum,
        "maximum": maximum,
        "largest_change": max(1, round((maximum - minimum) / STEPS)),
    }


def _float(default: float, minimum: float, maximum: float) -> dict[str, Any]:
    return {
        "kind": ParameterKind.FLOAT,
        "default": default,
        "minimum": minimum,
        "maximum": maximum,
        "largest_change": _rounded((maximum - minimum) / STEPS) if maximum > minimum else None,
    }


def _text(file: Path) -> dict[str, Any]:
    """A text whose default is a file's content: it may double, and keeps its names in braces.

    Raises OSError or UnicodeDecodeError where the file cannot be read.
    """
    content = file.read_text(encoding="utf-8-sig")
    return {
        "kind": ParameterKind.TEXT,
        "default": content,
        "longest": min(max(2 * len(content), SHORTEST_LONGEST), LONGEST_VALUE),
        "placeholders": tuple(dict.fromkeys(PLACEHOLDER.findall(content))),
    }


class _Limit(NamedTuple):
    parameter: Parameter
    reason: str


def _derived_limits(histories: Mapping[str, TypeHistory], declared: Mapping[str, Parameter]) -> dict[str, _Limit]:
    """The limits that past outcomes show, by key; what is declared stands."""
    limits = [_limit(name, history) for name, history in histories.items()]
    by_key = {limit.parameter.key: limit for limit in limits if limit is not None}
    return {key: limit for key, limit in by_key.items() if key not in declared}


def _limit(name: str, history: TypeHistory) -> _Limit | None:
    """The limit of a type, as its outcomes show it; None where too few succeeded."""
    middle = quantile(history.durations, 0.5)
    late = quantile(history.durations, 0.99)
    if middle is None or late is None or history.successes < ENOUGH_TASKS:
        return None
    usual_s = value(middle)
    slow_s = value(late)
    successes = f"half of the successes took under {usual_s:.3g} s, 99% under {slow_s:.3g} s"
    if history.cut_off_s:
        default = max(history.cut_off_s, key=lambda seconds: history.cut_off_s[seconds])
        known = f"{history.cut_off_s.total():,} of {history.tasks:,} were cut off, most of them at {default:g} s"
    else:
        default = _rounded(3 * slow_s)
        known = "none was cut off: three times that, because your limit is not known"
    default = max(default, SHORTEST_LIMIT_S)
    # Room for experiments: from what half of the tasks take to ten times the limit.
    limit = Parameter(
        key=f"{name}.timeout_s",
        kind=ParameterKind.FLOAT,
        default=default,
        minimum=min(_rounded(usual_s), default / 2),
        maximum=max(10 * default, _rounded(10 * slow_s)),
        largest_change=_rounded(2 * default),
        unit="s",
        description=f"a {name} task is cut off after this long",
        task_types=(name,),
    )
    return _Limit(limit, f"{successes}; {known}")


def _rules_for(histories: Mapping[str, TypeHistory], pace: Pace) -> DerivedRules:
    """The rules of detection and experiments that past outcomes call for.

    At trial pace the windows are the pace's: derived ones would override them.
    """
    derived = DerivedRules()
    # A type with hardly any tasks must not set the windows of all.
    frequent = {name: history for name, history in histories.items() if history.tasks >= ENOUGH_TASKS} or histories
    if not frequent:
        return derived
    per_day = {name: _per_day(history) for name, history in frequent.items()}
    if pace is not Pace.TRIAL:
        _derive_interval(derived, sum(per_day.values()))
        _derive_windows(derived, per_day)
    _derive_floor(derived, frequent, per_day)
    _derive_patience(derived, frequent.values(), pace)
    return derived


def _derive_interval(derived: DerivedRules, tasks_a_day: float) -> None:
    """The shortest interval with enough tasks in each."""
    fits = [seconds for seconds in INTERVALS_S if tasks_a_day * seconds / DAY_S >= TASKS_PER_INTERVAL]
    if fits and fits[0] != ObservatoryRules().interval_s:
        derived.observe("interval_s", fits[0], f"{tasks_a_day:,.0f} tasks a day: {TASKS_PER_INTERVAL} or more in each")


def _derive_windows(derived: DerivedRules, per_day: Mapping[str, float]) -> None:
    """A longer baseline, and experiments of fewer tasks, where the rarest type has too few for the defaults."""
    defaults = ObservatoryRules()
    rules = CycleRules()
    rarest, few = _rarest(per_day)
    if per_day[rarest] * defaults.baseline_s / DAY_S < 4 * ENOUGH_TASKS:
        derived.observe("baseline_s", 4 * WEEK_S, f"{few}: a week of it says little")
    within = per_day[rarest] * rules.experiment_window_s / DAY_S
    if within < rules.max_tasks:
        max_tasks = max(4 * rules.minimum_tasks, int(within))
        derived.run_cycles("max_tasks", max_tasks, f"{few}: {within:,.0f} in an experiment's window")


def _derive_floor(derived: DerivedRules, histories: Mapping[str, TypeHistory], per_day: Mapping[str, float]) -> None:
    """A floor that the worst type can meet, over a window that the rarest fills within a day."""
    defaults = ObservatoryRules()
    rarest, few = _rarest(per_day)
    if per_day[rarest] < defaults.floor_window_tasks:
        derived.observe("floor_window_tasks", 20, f"{few}: {defaults.floor_window_tasks} would be more than a day")
    worst = min(histories, key=lambda name: histories[name].rate)
    history = histories[worst]
    if history.rate < defaults.success_floor + 0.05 and not history.is_mostly_cut_off:
        floor = max(0.05, round(history.rate - 0.1, 2))
        standing = f"{defaults.success_floor:.0%} would be a standing anomaly"
        derived.observe("success_floor", floor, f"{worst} succeeds at {history.rate:.0%}, and {standing}")


def _derive_patience(derived: DerivedRules, histories: Iterable[TypeHistory], pace: Pace) -> None:
    """A later cut-off for tasks that are pending, where one took so long that it would be counted as failed."""
    longest_s = max(history.longest_s for history in histories)
    patience_s = TRIAL["cycle"]["pending_cutoff_s"] if pace is Pace.TRIAL else CycleRules().pending_cutoff_s
    if 3 * longest_s > patience_s:
        reason = f"a task took {longest_s:,.0f} s; one that is later than this counts as failed"
        derived.run_cycles("pending_cutoff_s", _rounded(3 * longest_s), reason)


def _rarest(per_day: Mapping[str, float]) -> tuple[str, str]:
    """The type with the fewest tasks a day, and that in words."""
    rarest = min(per_day, key=lambda name: per_day[name])
    return rarest, f"{rarest} has {per_day[rarest]:,.3g} tasks a day"


def _per_day(history: TypeHistory) -> float:
    assert history.first is not None
    assert history.last is not None
    # The span is taken to be an hour at least: a rate of a shorter file would say little of a day.
    return history.tasks * DAY_S / max((history.last - history.first).total_seconds(), 3_600)


def _rounded(number: float) -> float:
    """Two significant digits: more would suggest a precision that there is not."""
    return float(f"{number:.2g}")


MODES = "observe (only record), recommend (a person promotes) or autonomous"
EXAMPLE = """\
# [[parameters]]
# key = "{name}.timeout_s"
# kind = "float"            # or integer, boolean, choice (with choices = ["one", "other"]),
#                           # text (a prompt, with longest = 4000, placeholders = ["{{question}}"])
# unit = "s"
# default = 90.0            # what production runs on now
# minimum = 10.0
# maximum = 600.0
# largest_change = 120.0    # per proposal
# risk = "low"              # at high risk, fewer tasks take part, and two thirds of the votes are needed
# task_types = ["{name}"]
"""


def rendered(draft: Draft, mode: Mode, pace: Pace) -> str:
    """The file, with a comment on each section and the reason beside each value that was derived."""
    lines = [
        "# What Nautilus watches and may tune on this platform. Agents can tune nothing else, and never this file.",
        "# `nautilus check` says what is wrong in it; `nautilus person keygen`, how people's acts are signed.",
        "",
        f"# How far the platform goes by itself: {MODES}.",
        f'mode = "{mode}"',
        "",
        "# How long everything waits: production (hours, a baseline of a week) or trial (minutes, to see a cycle).",
        f'pace = "{pace}"',
        "",
        "# Kinds of task, one table each; timeout_parameter is the limit that tasks are cut off at.",
        "# OpenTelemetry: spans of the agent or tool of that name are its tasks; [[task_types.spans]] maps others.",
    ]
    for declaration in draft.task_types:
        lines += ["[[task_types]]", *_pairs(declaration.model_dump(mode="json", exclude_defaults=True)), ""]
    lines.append("# What agents may tune: within the bounds, and by no more than largest_change per proposal.")
    for declared in draft.parameters:
        lines += _parameter_lines(declared, draft.reasons.get(declared.key))
    if not draft.parameters:
        lines.append(EXAMPLE.format(name=draft.task_types[0].name))
    rules = draft.rules
    lines += _section("observatory", "When it measures, and what it calls bad", rules.observatory, rules.reasons)
    interval_s = rules.observatory.get("interval_s")
    if interval_s is not None:
        schedule = _pairs({"id": JobId.METRICS_SNAPSHOT.value, "every_s": interval_s, "budget_s": 30})
        lines += ["# Each interval is judged when it has ended.", "[[schedules]]", *schedule, ""]
    lines += _section("cycle", "Windows of a cycle, and what its experiment may take", rules.cycle, rules.reasons)
    return "\n".join(lines).rstrip("\n") + "\n"


def _parameter_lines(declared: Parameter, reason: str | None) -> list[str]:
    comment = [f"# {reason}."] if reason is not None else []
    fields = declared.model_dump(mode="json", exclude_defaults=True) | {"risk": declared.risk.value}
    if declared.kind is ParameterKind.INTEGER:
        fields |= {key: int(fields[key]) for key in ("minimum", "maximum", "largest_change")}
    return [*comment, "[[parameters]]", *_pairs(fields), ""]


def _section(name: str, what: str, values: Mapping[str, Any], reasons: Mapping[str, str]) -> list[str]:
    if not values:
        return [f"# {what}: the defaults of the pace, unless they are set here.", f"# [{name}]", ""]
    pairs = [f"{_pair(key, item)}  # {reasons[f'{name}.{key}']}" for key, item in values.items()]
    return [f"# {what}.", f"[{name}]", *pairs, ""]


def _pairs(fields: Mapping[str, Any]) -> list[str]:
    return [_pair(key, item) for key, item in fields.items()]


def _pair(key: str, item: Any) -> str:
    # Text, numbers, truth and lists of text are written alike in JSON and in TOML.
    if isinstance(item, str) and "\n" in item:  # people read a text line by line
        lines = [json.dumps(line, ensure_ascii=False)[1:-1] for line in item.split("\n")]
        return "\n".join([f'{key} = """', *lines]) + '"""'
    return f"{key} = {json.dumps(item, ensure_ascii=False)}"


def sets_windows(draft: Draft) -> bool:
    """Whether the file sets windows itself, which override those of the trial pace."""
    return any(draft.rules.observatory.keys() & TRIAL["observatory"].keys()) or "max_tasks" in draft.rules.cycle
