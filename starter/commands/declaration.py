"""Commands about `platform.toml`: write one, and check one."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from schema.declaration import DeclarationError, read_platform
from schema.messages.platform import CycleRules, Mode, Parameter, Platform, Risk
from schema.pace import Pace
from schema.settings import Settings
from starter.command import AsJson, emit, out

app = typer.Typer()

MODES = {
    Mode.OBSERVE: "observe: anomalies are recorded, nothing else",
    Mode.RECOMMEND: "recommend: a cycle runs, and a person promotes at its end",
    Mode.AUTONOMOUS: "autonomous: no person is needed",
}


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(help="Default: platform.toml, or NAUTILUS_PLATFORM.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong in platform.toml, or what it declares; exit code 1 where something is wrong.

    Example: nautilus check platform.toml
    """
    settings = Settings()
    file = file or settings.platform
    try:
        platform = read_platform(file, settings.pace)
    except DeclarationError as error:
        if as_json:
            emit({"file": str(file), "ok": False, "problems": [problem._asdict() for problem in error.problems]})
        else:
            for problem in error.problems:
                where = f"{file}:{problem.line}" if problem.line else str(file)
                out.print(f"{where}: {problem}", soft_wrap=True)
            several = f"{len(error.problems)} problems" if len(error.problems) > 1 else "1 problem"
            out.print(f"{several}; nothing runs with this file before it is mended", style="red")
        raise typer.Exit(1) from None
    if as_json:
        emit({"file": str(file), "ok": True, "problems": [], "warnings": list(warnings(platform))})
    else:
        show(file, platform)


def show(file: Path, platform: Platform) -> None:
    """What a valid file declares, and what is worth a second thought."""
    out.print(f"{file} is valid", style="green")
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
    """What is no mistake, and probably not meant."""
    if not platform.task_types:
        yield "no task type is declared, so there is nothing to watch"
    tunable = {name for parameter in platform.parameters for name in parameter.task_types}
    for declared in platform.task_types:
        if declared.name not in tunable:
            yield f"task type {declared.name} has no parameter, so no cycle can mend it"
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

        for name in platform.traffic.per_second.keys() - installed().keys():
            yield f"traffic.per_second names {name}, which is not installed here, so `nautilus up` cannot run it"


def _slow(parameter: Parameter, rules: CycleRules) -> str:
    share = rules.high_risk_exposure
    least, most = 2 * rules.minimum_tasks / share, rules.max_tasks / share
    return (
        f"parameter {parameter.key} is of high risk: {share:.0%} of its tasks take part in an experiment, "
        f"so a verdict takes {least:,.0f} to {most:,.0f} tasks"
    )


def _line(parameter: Parameter) -> str:
    bounds = " | ".join(parameter.choices)
    if parameter.minimum is not None and parameter.maximum is not None:
        bounds = f"{parameter.minimum:g} to {parameter.maximum:g}"
    value = f"{parameter.key} = {parameter.default} {parameter.unit}".rstrip()
    return f"{value} ({bounds or 'true or false'}), {parameter.risk} risk, of {', '.join(parameter.task_types)}"


def _pace(platform: Platform) -> str:
    observatory, cycle = platform.observatory, platform.cycle
    return (
        f"{platform.pace}: intervals of {_span(observatory.interval_s)}, "
        f"a baseline of {_span(observatory.baseline_s)}, "
        f"voting for {_span(cycle.voting_window_s)}, experiments of up to {_span(cycle.experiment_window_s)}"
        + (" (not for production)" if platform.pace is Pace.TRIAL else "")
    )


def _cycles(platform: Platform) -> str:
    if platform.mode is Mode.OBSERVE:
        return "none is opened"
    metrics = ["the success rate", "silence", *platform.observatory.opens_cycles]
    if platform.pace is Pace.TRIAL:
        metrics.remove("silence")  # it takes the same hour of yesterday, and at this pace nobody reads so far back
    floor = f"success under {platform.observatory.success_floor:.0%} is always one"
    return f"opened by anomalies of {', '.join(metrics)}; {floor}"


def _span(seconds: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s or seconds == length_s:
            return f"{seconds / length_s:g} {unit}"
    return f"{seconds:g} s"
