"""Commands about `platform.toml`: write one, and check one."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer
from rich.progress import Progress

from schema.declaration import DeclarationError, Problem, read_platform
from schema.messages.base import format_value
from schema.messages.platform import CycleRules, Mode, Parameter, Platform, Risk
from schema.pace import Pace
from schema.settings import Settings
from starter.command import AsJson, CommandError, answer, emit, err, out

if TYPE_CHECKING:
    from starter.draft import TypeHistory

app = typer.Typer()
Choice = TypeVar("Choice", bound=StrEnum)

MODES = {
    Mode.OBSERVE: "observe: anomalies are recorded, nothing else",
    Mode.RECOMMEND: "recommend: a cycle runs, and a person promotes at its end",
    Mode.AUTONOMOUS: "autonomous: no person is needed",
}

# What a person does with a new file.
NEXT_STEPS = """
Next:
  1. read {file}, change what is not so, and then: nautilus check
  2. see a cycle of it soon: {trial}
  3. bring your history, so that day one is not blind: nautilus outcomes import {outcomes}
  4. record what your tasks do, and let them ask for their parameters: docs/adopting.md"""


@app.command(
    epilog="Example: nautilus init --task-type research --parameter research.timeout_s=90:10..600 --pace trial"
)
def init(
    task_type: Annotated[list[str] | None, typer.Option(help="A kind of task; again for another.")] = None,
    parameter: Annotated[list[str] | None, typer.Option(help="What may be tuned, as below; again for another.")] = None,
    outcomes: Annotated[
        Path | None,
        typer.Option("--from", help="Past outcomes (JSON lines, as for `outcomes import`) to derive it from."),
    ] = None,
    mode: Annotated[Mode | None, typer.Option(help="How far it goes by itself. Default: recommend.")] = None,
    pace: Annotated[Pace | None, typer.Option(help="How long everything waits. Default: production.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over the file that is there.")] = False,
) -> None:
    """Write a commented platform.toml for your own platform; without options it asks, where there is a terminal.

    A parameter is KEY=DEFAULT:MINIMUM..MAXIMUM, KEY=DEFAULT:ONE|OTHER, KEY=true or, for a prompt, KEY=FILE:text. It is
    of the task type that its key begins with, or of those after an @. TYPE.timeout_s is the limit at which tasks of the
    type are cut off. A parameter of two types: shared.batch=8:1..64@support,research. From past outcomes: --from
    outcomes.jsonl.
    """
    from starter import draft  # loads the sketches of durations

    file = Settings().platform
    _raise_if_unwritable(file, force)
    task_types = task_type or []
    parameters = parameter or []
    if not task_types and outcomes is None:
        if not sys.stdin.isatty():
            raise CommandError("expected --task-type NAME or --from OUTCOMES, because there is no terminal to ask on")
        question = "Kinds of task (names, as in: research summary)"
        task_types = typer.prompt(question, value_proc=_task_type_names, err=True)
        parameters = parameters + _prompted_limits(task_types)
        mode = mode or _prompted("How far may it go by itself (observe, recommend, autonomous)?", Mode.RECOMMEND)
        pace = pace or _prompted("How long does everything wait (production, trial)?", Pace.PRODUCTION)
    mode = mode or Mode.RECOMMEND
    pace = pace or Pace.PRODUCTION

    histories = _histories(outcomes) if outcomes is not None else {}
    drafted = draft.drafted(task_types, parameters, histories, pace)
    _write(file, draft.rendered(drafted, mode, pace))
    out.print(f"{file} is written", style="green")
    show(read_platform(file))

    trial = "nautilus up --pace trial"
    if draft.sets_windows(drafted):
        trial += "    # the file's [observatory] and [cycle] override the trial pace: comment them out for a trial"
    steps = NEXT_STEPS.format(file=file, trial=trial, outcomes=outcomes or "outcomes.jsonl")
    out.print(*steps.split("\n"), sep="\n", soft_wrap=True)


def _raise_if_unwritable(file: Path, force: bool) -> None:
    if file.exists() and not force:
        hint = "`nautilus check` reads it, --force writes over it"
        raise CommandError(f"expected no {file} yet, but there is one; {hint}")
    if not file.absolute().parent.is_dir():
        raise CommandError(f"expected a folder for {file}, but there is none; make it, or set NAUTILUS_PLATFORM")


def _prompted_limits(task_types: list[str]) -> list[str]:
    """The limit of each type that has one, as `--parameter` takes it; an invalid answer is asked for again."""
    limits = []
    for name in task_types:
        question = f"After how many seconds is a {name} task cut off? (Enter: never, or not to be tuned)"
        seconds = typer.prompt(question, default="", show_default=False, value_proc=_limit_s, err=True)
        if seconds is not None:
            limits.append(f"{name}.timeout_s={seconds:g}:{seconds / 10:g}..{seconds * 10:g}")
    return limits


def _prompted(question: str, default: Choice) -> Choice:
    choices = type(default)

    def chosen(text: str) -> Choice:
        try:
            return choices(text.strip().lower())
        except ValueError:
            raise typer.BadParameter(f"expected one of {', '.join(choices)}, but {text!r} came") from None

    choice: Choice = typer.prompt(question, default=default.value, value_proc=chosen, err=True)
    return choice


def _task_type_names(text: str) -> list[str]:
    """The names in an answer, separated by spaces or commas."""
    from starter import draft

    task_types = text.replace(",", " ").split()
    for name in task_types:
        try:
            draft.task_type(name)
        except draft.DraftError as error:
            raise typer.BadParameter(str(error).removeprefix("--task-type ")) from None
    return task_types


def _limit_s(text: str) -> float | None:
    """The seconds in an answer; None for an empty one."""
    if not text.strip():
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise typer.BadParameter(f"expected seconds, or nothing, but {text!r} came")
    return seconds


def _histories(file: Path) -> "dict[str, TypeHistory]":
    """The history of each task type in a file of outcomes, which is read line by line."""
    from starter.commands.outcomes import read_outcomes
    from starter.draft import TypeHistory

    histories: dict[str, TypeHistory] = {}
    with Progress(console=err) as progress:
        shown = progress.add_task(f"reading {file}", total=file.stat().st_size if file.is_file() else None)
        for outcome, size in read_outcomes(file):
            histories.setdefault(outcome.task_type, TypeHistory()).add(outcome)
            progress.advance(shown, size)
    if not histories:
        raise CommandError(f"{file}: expected outcomes, but the file has none")
    return histories


def _write(file: Path, text: str) -> None:
    """Write all of it or nothing, and nothing that could not be read back."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        new.write_text(text, encoding="utf-8")
        read_platform(new)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)


@app.command(epilog="Example: nautilus check platform.toml")
def check(
    file: Annotated[Path | None, typer.Argument(help="Default: platform.toml, or NAUTILUS_PLATFORM.")] = None,
    as_json: AsJson = False,
) -> None:
    """Report everything that is wrong in platform.toml, or what it declares; exit code 1 where something is wrong.

    Then the same of your own playbook, where NAUTILUS_PLAYBOOK names one.
    """
    settings = Settings()
    file = file or settings.platform
    try:
        platform = read_platform(file, settings.pace)
    except DeclarationError as error:
        _refuse(as_json, file, error)
    if settings.playbook is not None:
        from starter.agents.playbook import playbook  # loads the detector's rules, for which other files need not wait

        try:
            playbook(settings.playbook)
        except DeclarationError as error:
            _refuse(as_json, settings.playbook, error)
    if as_json:
        emit({"file": str(file), "ok": True, "problems": [], "warnings": list(warnings(platform))})
        return
    if settings.playbook is not None:
        out.print(f"{settings.playbook} is valid", style="green")
    out.print(f"{file} is valid", style="green")
    show(platform)


def _refuse(as_json: bool, file: Path, error: DeclarationError) -> NoReturn:
    """Print what is wrong in a file, and end with code 1."""
    problems = error.problems
    answer(as_json, {"file": str(file), "ok": False, "problems": problems}, lambda: _show_problems(file, problems))
    raise typer.Exit(1) from None


def _show_problems(file: Path, problems: Sequence[Problem]) -> None:
    for problem in problems:
        where = f"{file}:{problem.line}" if problem.line else str(file)
        out.print(f"{where}: {problem}", soft_wrap=True)
    several = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    out.print(f"{several}; nothing runs with this file before it is fixed", style="red")


def show(platform: Platform) -> None:
    """Print what a valid file declares, and warnings."""
    rows = [
        ("task types", ", ".join(declared.name for declared in platform.task_types) or "none"),
        *(("parameter", _line(parameter)) for parameter in platform.parameters),
        ("pace", _pace(platform)),
        ("mode", MODES[platform.mode]),
        ("cycles", _cycles(platform)),
        *(("warning", warning) for warning in warnings(platform)),
    ]
    for name, text in rows:
        out.print(f"  {name:<10}  {text}", style="yellow" if name == "warning" else None, soft_wrap=True)


def warnings(platform: Platform) -> Iterator[str]:
    """What is valid, and probably not meant."""
    if not platform.task_types:
        yield "no task type is declared, so there is nothing to watch"
    tunable = {name for parameter in platform.parameters for name in parameter.task_types}
    for declared in platform.task_types:
        if declared.name not in tunable:
            yield f"task type {declared.name} has no parameter, so no cycle can fix it"
    for parameter in platform.parameters:
        if parameter.risk is Risk.HIGH:
            yield _slow(parameter, platform.cycle)
    for hook in platform.webhooks:
        if hook.secret_env not in os.environ:
            yield f"webhook {hook.name}: {hook.secret_env} is not set in this shell; `nautilus up` needs it"
    for target in platform.notifications:
        if target.url_env not in os.environ:
            yield f"notification {target.name}: {target.url_env} is not set in this shell; `nautilus up` needs it"
    if platform.traffic is not None:
        from activities.task_types import installed  # looks for plug-ins, for which other files need not wait

        missing = platform.traffic.per_second.keys() - installed().keys()
        for name in missing:
            yield f"traffic.per_second names {name}, which is not installed here, so `nautilus up` cannot run it"


def _slow(parameter: Parameter, rules: CycleRules) -> str:
    share = rules.high_risk_exposure
    least, most = 2 * rules.minimum_tasks / share, rules.max_tasks / share
    return (
        f"parameter {parameter.key} is of high risk: {share:.0%} of its tasks take part in an experiment, "
        f"so a verdict takes {least:,.0f} to {most:,.0f} tasks"
    )


def _line(parameter: Parameter) -> str:
    value = f"{parameter.key} = {format_value(parameter.default)} {parameter.unit}".rstrip()
    return f"{value} ({parameter.bounds}), {parameter.risk} risk, of {', '.join(parameter.task_types)}"


def _pace(platform: Platform) -> str:
    observatory = platform.observatory
    cycle = platform.cycle
    return (
        f"{platform.pace}: intervals of {_span(observatory.interval_s)}, "
        f"a baseline of {_span(observatory.baseline_s)}, "
        f"voting for {_span(cycle.voting_window_s)}, experiments of up to {_span(cycle.experiment_window_s)}"
        + (" (not for production)" if platform.pace is Pace.TRIAL else "")
    )


def _cycles(platform: Platform) -> str:
    if platform.mode is Mode.OBSERVE:
        return "no cycle is opened"
    metrics = ["the success rate", "silence", *platform.observatory.opens_cycles]
    if platform.pace is Pace.TRIAL:
        metrics.remove("silence")  # it compares with the same hour of yesterday, which this pace does not read
    floor = f"success under {platform.observatory.success_floor:.0%} is always one"
    return f"opened by anomalies of {', '.join(metrics)}; {floor}"


def _span(seconds: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s or seconds == length_s:
            return f"{seconds / length_s:g} {unit}"
    return f"{seconds:g} s"
