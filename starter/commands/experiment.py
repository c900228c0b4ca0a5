"""Commands about experiments: their evidence for an operator, their replay for an auditor."""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from starter import completion
from starter.command import NO_DATA, AsJson, Columns, CommandError, answer_rows, emit, open_database, open_to_read, out

if TYPE_CHECKING:
    from activities.reading import ListedExperiment
    from schema.messages.experiment import Reading

app = typer.Typer(
    no_args_is_help=True, help="Experiments: evidence and replays.", epilog="Example: nautilus experiment list"
)

BLOCKS = " ▁▂▃▄▅▆▇█"
Id = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="`nautilus experiment list` shows the ids.", autocompletion=completion.experiments
    ),
]


@app.command("list", epilog="Example: nautilus experiment list")
def show_all(as_json: AsJson = False) -> None:
    """Every experiment, oldest first."""
    from activities import reading

    columns: Columns[ListedExperiment] = {
        "experiment": lambda experiment: experiment.experiment_id,
        "parameter": lambda experiment: experiment.parameter,
        "state": lambda experiment: experiment.state,
    }
    answer_rows(as_json, reading.experiments(open_to_read()), columns, "no experiment was opened yet")


@app.command(epilog="Example: nautilus experiment show success_rate:research_synthesis#1")
def show(experiment_id: Id, as_json: AsJson = False) -> None:
    """The running evidence, task by task, and where the experiment stands. Exit code 3 where no task has finished."""
    from activities import experiment_audit

    database = open_database()
    readings = experiment_audit.trajectory(database, experiment_id)
    now = experiment_audit.replay(database, experiment_id).computed
    if as_json:
        steps = [{"tasks": r.control.tasks + r.treatment.tasks, "log_e": r.log_e, "effect": r.effect} for r in readings]
        emit({"reading": now, "evidence": steps})
    elif not readings:
        out.print(f"no task of it has finished, so there is no evidence; {now.reason}", soft_wrap=True)
    else:
        _show(now, [reading.log_e for reading in readings])
    if not readings:
        raise typer.Exit(NO_DATA)


def _show(now: "Reading", evidence: list[float]) -> None:
    from workflows.page import percent

    for name, counts in (("control", now.control), ("treatment", now.treatment)):
        out.print(f"{name:>10}  {counts.successes} of {counts.tasks} = {percent(counts)}")
    if now.interval is not None and now.effect is not None:
        low, high = now.interval
        out.print(f"    effect  {now.effect:+.1%}, always-valid interval {low:+.1%} to {high:+.1%}")
    highest = max(*evidence, 0.1)
    heights = [math.ceil(8 * log_e / highest) for log_e in evidence]
    bars = "".join(BLOCKS[max(0, min(8, height))] for height in heights)
    out.print(f"  evidence  {bars}  log e {evidence[-1]:+.2f} (highest {highest:.2f})")
    out.print(f"            {now.reason}")


@app.command(epilog="Example: nautilus experiment replay success_rate:research_synthesis#1")
def replay(experiment_id: Id, as_json: AsJson = False) -> None:
    """Compute the verdict again from the stored design and counts; exit code 1 where it differs."""
    from activities import experiment_audit

    result = experiment_audit.replay(open_database(), experiment_id)
    is_confirmed = result.same and result.recount
    if as_json:
        emit(result)
    elif result.recorded is None:
        out.print(f"no verdict yet; by the counts now: {result.computed.reason}")
    elif is_confirmed:
        out.print(f"the same verdict, to the last digit: {result.computed.reason}")
    if result.recorded is not None and not is_confirmed:
        differs = "the counters differ from the tasks" if result.same else f"now: {result.computed.reason}"
        raise CommandError(f"expected the recorded verdict ({result.recorded.reason}), but {differs}")
