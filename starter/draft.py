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
from schema.messages.base import LONGEST_VALUE
from schema.messages.observatory import FailureKind, TaskOutcome
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


class Draft(NamedTuple):
    """What the file will declare. `reasons` are comments, by parameter key or `section.key`."""

    task_types: tuple[TaskTypeDeclaration, ...]
    parameters: tuple[Parameter, ...] = ()
    observatory: Mapping[str, Any] = {}
    cycle: Mapping[str, Any] = {}
    reasons: Mapping[str, str] = {}


def drafted(
    task_types: Sequence[str], parameters: Sequence[str], histories: Mapping[str, TypeHistory], pace: Pace
) -> Draft:
    """A draft of what the operator declared; past outcomes fill in the rest. Raises DraftError."""
    for name in task_types:
        if task_types.count(name) > 1:
            raise DraftError(f"--task-type {name}: expected every task type once, but it came twice")
    names = [*histories, *(name for name in task_types if name not in histories)]
    by_key: dict[str, Parameter] = {}
    for text in parameters:
        declared = parameter(text, names)
        if declared.key in by_key:
            raise DraftError(f"--parameter {text}: expected every parameter once, but {declared.key} came twice")
        by_key[declared.key] = declared
    reasons = dict[str, str]()
    for name, history in histories.items():
        derived = _limit(name, history)
        if derived is None:
            continue
        limit, reason = derived
        if limit.key not in by_key:
            by_key[limit.key], reasons[limit.key] = limit, reason
    observatory, cycle, rule_reasons = _rules_for(histories, pace)
    types = tuple(task_type(name, by_key) for name in names)
    return Draft(types, tuple(by_key.values()), observatory, cycle, reasons | rule_reasons)


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
    key, default, bounds = match["key"], match["default"].strip(), match["bounds"] or ""
    types = [name.strip() for name in match["types"].split(",")] if match["types"] else [key.partition(".")[0]]
    if unknown := [name for name in types if name not in task_types]:
        known = ", ".join(task_types) or "none"
        raise DraftError(
            f"--parameter {text}: expected a task type before the point or after an @ ({known}), but {unknown[0]} came"
        )
    unit = next((unit for suffix, unit in UNITS.items() if key.endswith(suffix)), "")
    fields = {"key": key, "task_types": types, "unit": unit}
    try:
        return Parameter.model_validate(fields | _values(key, default, bounds))
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


def _values(key: str, default: str, bounds: str) -> dict[str, Any]:
    """Kind, default and bounds; raises ValueError or KeyError for another form. Durations need not be whole numbers."""
    if not bounds:
        return {"kind": ParameterKind.BOOLEAN, "default": {"true": True, "false": False}[default.lower()]}
    if bounds.strip() == ParameterKind.TEXT:
        return _text(Path(default))
    if ".." not in bounds:
        choices = [choice.strip() for choice in bounds.split("|")]
        return {"kind": ParameterKind.CHOICE, "default": default, "choices": choices}
    minimum, _, maximum = bounds.partition("..")
    numbers = (default, minimum, maximum)
    is_whole = all(re.fullmatch(r"[+-]?\d+", number.strip()) for number in numbers)
    if is_whole and not key.endswith(tuple(UNITS)):
        low, high = int(minimum), int(maximum)
        change = max(1, round((high - low) / STEPS))
        return {
            "kind": ParameterKind.INTEGER,
            "default": int(default),
            "minimum": low,
            "maximum": high,
            "largest_change": change,
        }
    least, most = float(minimum), float(maximum)
    return {
        "kind": ParameterKind.FLOAT,
        "default": float(default),
        "minimum": least,
        "maximum": most,
        "largest_change": _rounded((most - least) / STEPS) if most > least else None,
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


def _limit(name: str, history: TypeHistory) -> tuple[Parameter, str] | None:
    """The limit of a type, as its outcomes show it, and the reason; None where too few succeeded."""
    middle, late = (quantile(history.durations, share) for share in (0.5, 0.99))
    if middle is None or late is None or history.successes < ENOUGH_TASKS:
        return None
    usual_s, slow_s = value(middle), value(late)
    reason = f"half of the successes took under {usual_s:.3g} s, 99% under {slow_s:.3g} s"
    if history.cut_off_s:
        [(default, _)] = history.cut_off_s.most_common(1)
        reason += f"; {history.cut_off_s.total():,} of {history.tasks:,} were cut off, most of them at {default:g} s"
    else:
        default = _rounded(3 * slow_s)
        reason += "; none was cut off: three times that, because your limit is not known"
    default = max(default, 0.001)
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
    return limit, reason


def _rules_for(
    histories: Mapping[str, TypeHistory], pace: Pace
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """The rules of detection and experiments that differ from the defaults, with their reasons by `section.key`.

    At trial pace the windows are the pace's: derived ones would override them.
    """
    observatory, cycle, reasons = dict[str, Any](), dict[str, Any](), dict[str, str]()
    # A type with hardly any tasks must not set the windows of all.
    frequent = {name: history for name, history in histories.items() if history.tasks >= ENOUGH_TASKS} or histories
    if not frequent:
        return observatory, cycle, reasons
    defaults, rules = ObservatoryRules(), CycleRules()
    per_day = {name: _per_day(history) for name, history in frequent.items()}
    everything, rarest = sum(per_day.values()), min(per_day, key=lambda name: per_day[name])
    few = f"{rarest} has {per_day[rarest]:,.3g} tasks a day"
    if pace is not Pace.TRIAL:
        fits = [seconds for seconds in INTERVALS_S if everything * seconds / DAY_S >= TASKS_PER_INTERVAL]
        if fits and fits[0] != defaults.interval_s:
            observatory["interval_s"] = fits[0]
            reasons["observatory.interval_s"] = f"{everything:,.0f} tasks a day: {TASKS_PER_INTERVAL} or more in each"
        if per_day[rarest] * defaults.baseline_s / DAY_S < 4 * ENOUGH_TASKS:
            observatory["baseline_s"] = 4 * WEEK_S
            reasons["observatory.baseline_s"] = f"{few}: a week of it says little"
        within = per_day[rarest] * rules.experiment_window_s / DAY_S
        if within < rules.max_tasks:
            cycle["max_tasks"] = max(4 * rules.minimum_tasks, int(within))
            reasons["cycle.max_tasks"] = f"{few}: {within:,.0f} in an experiment's window"
    if per_day[rarest] < defaults.floor_window_tasks:
        observatory["floor_window_tasks"] = 20
        reasons["observatory.floor_window_tasks"] = f"{few}: {defaults.floor_window_tasks} would be more than a day"
    worst = min(frequent, key=lambda name: frequent[name].rate)
    history = frequent[worst]
    if history.rate < defaults.success_floor + 0.05 and not history.is_mostly_cut_off:
        observatory["success_floor"] = max(0.05, round(history.rate - 0.1, 2))
        reasons["observatory.success_floor"] = (
            f"{worst} succeeds at {history.rate:.0%}, and {defaults.success_floor:.0%} would be a standing anomaly"
        )
    longest_s = max(history.longest_s for history in frequent.values())
    patience_s = TRIAL["cycle"]["pending_cutoff_s"] if pace is Pace.TRIAL else rules.pending_cutoff_s
    if 3 * longest_s > patience_s:
        cycle["pending_cutoff_s"] = _rounded(3 * longest_s)
        reasons["cycle.pending_cutoff_s"] = (
            f"a task took {longest_s:,.0f} s; one that is later than this counts as failed"
        )
    return observatory, cycle, reasons


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
        "# `nautilus check` reports what is wrong in it, and what it declares.",
        "",
        f"# How far the platform goes by itself: {MODES}.",
        f'mode = "{mode}"',
        "",
        "# How long everything waits: production (hours, a baseline of a week) or trial (minutes, to see a cycle).",
        f'pace = "{pace}"',
        "",
        "# Kinds of task, one table each; timeout_parameter is the limit that tasks are cut off at.",
    ]
    for declaration in draft.task_types:
        lines += ["[[task_types]]", *_pairs(declaration.model_dump(mode="json", exclude_defaults=True)), ""]
    lines += ["# What agents may tune: within the bounds, and by no more than largest_change per proposal."]
    for parameter in draft.parameters:
        lines += [f"# {draft.reasons[parameter.key]}."] if parameter.key in draft.reasons else []
        fields = parameter.model_dump(mode="json", exclude_defaults=True) | {"risk": parameter.risk.value}
        if parameter.kind is ParameterKind.INTEGER:
            fields |= {key: int(fields[key]) for key in ("minimum", "maximum", "largest_change")}
        lines += ["[[parameters]]", *_pairs(fields), ""]
    if not draft.parameters:
        lines += [EXAMPLE.format(name=draft.task_types[0].name)]
    lines += _section("observatory", "When it measures, and what it calls bad", draft.observatory, draft.reasons)
    if (interval_s := draft.observatory.get("interval_s")) is not None:
        lines += ["# Each interval is judged when it has ended.", "[[schedules]]"]
        lines += [*_pairs({"id": JobId.METRICS_SNAPSHOT.value, "every_s": interval_s, "budget_s": 30}), ""]
    lines += _section("cycle", "Windows of a cycle, and what its experiment may take", draft.cycle, draft.reasons)
    return "\n".join(lines).rstrip("\n") + "\n"


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
    return any(draft.observatory.keys() & TRIAL["observatory"].keys()) or "max_tasks" in draft.cycle
