"""A simulated platform: real workflows on a server whose time skips, judged by a truth that its agents never see."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from activities.track_record import Call, CycleRecord, Swap, TrackRecord
from schema.declaration import DeclarationError, read_platform
from schema.messages.base import Value
from schema.messages.experiment import ExperimentDesign, Promotion
from schema.messages.observatory import Anomaly, Counts, TaskOutcome
from simulation.practice import agent_of, scenario_of
from simulation.result import Course, FaultVerdict, Judge
from simulation.run import LEARNING_H
from simulation.world import World, instant
from starter.agents.evidence import Case
from starter.agents.investigator import Investigator
from starter.agents.roster import ROSTER
from tests.patience import PATIENCE_S

FAULT_H = LEARNING_H + 4
# One task type, one fault that strikes at once, and one parameter that mends it.
SCENARIO = f"""
mode = "autonomous"
[[task_types]]
name = "invoice"
[[parameters]]
key = "invoice.retries"
kind = "integer"
default = 1
minimum = 0
maximum = 8
task_types = ["invoice"]
[cycle]
bake_window_s = 14400
[simulation]
seed = 5
days = 5
tasks_per_hour = 60
[[simulation.work]]
task_type = "invoice"
duration = {{ median_s = 30.0, sigma = 0.3 }}
[[simulation.work.failures]]
reason = "upstream_503"
probability = 0.03
response = {{ parameter = "invoice.retries", points = [[0, 2.0], [1, 1.0], [3, 0.1], [8, 0.0]] }}
[[simulation.faults]]
name = "a flaky upstream"
at_hour = {FAULT_H}
change = {{ failure = {{ reason = "upstream_503", probability = 0.5 }} }}
remedy = ["invoice.retries"]
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenario") / "invoices.toml"
    path.write_text(SCENARIO, encoding="utf-8")
    return path


def simulate(scenario: Path, *options: str) -> dict[str, Any]:
    """What the command prints with --json; without the seconds that it took."""
    command = [sys.executable, "-m", "starter", "simulate", str(scenario), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result.pop("wall_s") > 0
    return result


class OwnAgent(Investigator):
    """An author's agent: cheap, and otherwise like a built-in one."""

    def __init__(self) -> None:
        super().__init__(**{**vars(ROSTER[0]), "agent_id": "own", "operator": "author", "price": 1})

    def message(self, case: Case) -> Any:
        return super().message(case)


def test_a_fault_is_found_mended_and_judged_and_the_same_seed_gives_the_same(scenario: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    own = "tests.test_simulate:OwnAgent"

    first = simulate(scenario, "--agent", own, "--html", str(page))
    second = simulate(scenario, "--agent", own)

    assert first == second
    (fault,) = first["faults"]
    assert fault["detected_hour"] - FAULT_H <= 3
    assert fault["cycles"][0] == "success_rate:invoice#1"
    (promotion,) = first["promotions"]
    assert promotion["parameter"] == "invoice.retries"
    assert (promotion["from"], promotion["to"] > 1) == (1, True)
    assert promotion["true_effect"] > 0.2
    assert not promotion["rolled_back"]
    # A day of mended tasks does not fit into what is left of the five days: the verdict is an honest one.
    assert fault["verdict"] == "untouched"
    assert first["success_rate"]["healthy"] == pytest.approx(0.97, abs=0.01)
    # Less than a day is left since the fault: it is the worst, and the last day has some hours of before.
    assert first["success_rate"]["worst"] < first["success_rate"]["final"] < first["success_rate"]["healthy"]
    assert (first["hours"], first["false_alarms"], first["human_actions"]) == (120, 0, 0)
    assert first["tasks"] == pytest.approx(120 * 60, abs=4 * (120 * 60) ** 0.5)
    assert first["agent"]["agent_id"] == "own"
    assert first["agent"]["first_proposals"] <= 1
    assert "a flaky upstream" in page.read_text(encoding="utf-8")


def test_a_platform_without_a_world_cannot_be_simulated(tmp_path: Path) -> None:
    path = tmp_path / "platform.toml"
    path.write_text(SCENARIO.partition("[simulation]")[0], encoding="utf-8")

    with pytest.raises(DeclarationError, match=r"simulation: expected \[\[simulation.work\]\]"):
        scenario_of(path)


@pytest.mark.parametrize(
    ("reference", "line"),
    [
        ("nowhere:Agent", "No module named 'nowhere'"),
        ("tests.test_simulate:Nobody", "has no attribute 'Nobody'"),
        ("tests.test_simulate", "module:Class"),
        ("pathlib:Path", "has no agent_id"),
    ],
)
def test_what_is_no_agent_is_one_line(reference: str, line: str) -> None:
    with pytest.raises(ValueError, match="expected module:Class of an agent") as refused:
        agent_of(reference)

    assert line in str(refused.value)


# ---- the verdicts

HOURS, CYCLE = 240, "success_rate:invoice#1"


def outcomes(world: World, mended_at: float | None) -> list[TaskOutcome]:
    """What tasks came to, with the remedy from one hour on."""
    found = []
    for hour in range(HOURS):
        for task in world.arrivals(hour):
            is_mended = mended_at is not None and task.hour >= mended_at
            found.append(world.outcome(task, {"invoice.retries": 6 if is_mended else 1}))
    return [outcome for outcome in found if outcome.finished_at <= instant(HOURS)]


def anomaly(hour: float) -> Anomaly:
    return Anomaly(
        anomaly_id=f"a{hour}",
        metric="success_rate",
        task_type="invoice",
        onset=instant(hour),
        detected_at=instant(hour),
        observed=Counts(),
        baseline=None,
        reason="",
    )


def swap(hour: float, value: Value, is_rollback: bool = False) -> Swap:
    change = Promotion(cycle_id=CYCLE, parameter="invoice.retries", expected_version=1, value=value, reason="")
    return Swap(instant(hour), change, is_rollback)


def cycle(hour: float, ending: str) -> CycleRecord:
    return CycleRecord(CYCLE, "success_rate:invoice", instant(hour), ending, instant(hour + 1))


DESIGN = ExperimentDesign(
    baseline_rate=0.5,
    predicted_rate=0.9,
    minimum_effect=0.05,
    experiment_id=CYCLE,
    cycle_id=CYCLE,
    parameter="invoice.retries",
    task_types=("invoice",),
    metric="success_rate",
    control=1,
    treatment=4,
    base_version=1,
    baseline=Counts(tasks=100, successes=50),
    treatment_share=0.5,
    minimum_run_s=0,
    pending_cutoff_s=3_600,
)
NOTHING = TrackRecord(
    anomalies=(), cycles=(), designs={}, swaps=(), proposals=(), agents={}, ledger_entries=0, human_actions=0
)
FOUND, FIXED = FAULT_H + 2, FAULT_H + 14


@pytest.mark.parametrize(
    ("mended_at", "anomalies", "cycles", "swaps", "verdict"),
    [
        # Found, and a remedy was promoted that mends it.
        (FIXED, [anomaly(FOUND)], [cycle(FOUND, "promoted")], [swap(FIXED, 6)], FaultVerdict.MENDED),
        # The remedy was promoted and taken back.
        (None, [anomaly(FOUND)], [cycle(FOUND, "promoted")], [swap(FIXED, 4), swap(FIXED + 1, 1, True)], "untouched"),
        # A remedy that mends nothing.
        (None, [anomaly(FOUND)], [cycle(FOUND, "promoted")], [swap(FIXED, 2)], FaultVerdict.UNTOUCHED),
        # Mended by itself: nothing was promoted.
        (FIXED, [anomaly(FOUND)], [cycle(FOUND, "futile")], [], FaultVerdict.UNTOUCHED),
        # A person was called.
        (None, [anomaly(FOUND)], [cycle(FOUND, "escalated")], [], FaultVerdict.ESCALATED),
        # A remedy that was promoted before the fault began keeps it from taking anything.
        (FAULT_H - 10, [anomaly(FAULT_H - 20)], [], [swap(FAULT_H - 10, 6)], FaultVerdict.MENDED),
        # Nothing noticed it; an alarm of before it is no detection.
        (None, [], [], [], FaultVerdict.MISSED),
        (None, [anomaly(FAULT_H - 10)], [], [], FaultVerdict.MISSED),
    ],
)
def test_the_verdict_on_a_fault_is_by_what_the_record_shows_and_the_truth_expects(
    scenario: Path,
    mended_at: float | None,
    anomalies: list[Anomaly],
    cycles: list[CycleRecord],
    swaps: list[Swap],
    verdict: FaultVerdict,
) -> None:
    world = World(read_platform(scenario))
    record = NOTHING._replace(
        anomalies=tuple(anomalies), cycles=tuple(cycles), designs={CYCLE: DESIGN}, swaps=tuple(swaps)
    )
    judge = Judge(world, Course(outcomes(world, mended_at), HOURS), record, {"invoice.retries": 1})

    fault = judge.fault(world.faults[0])

    assert fault.verdict == verdict
    assert (fault.restored_hour is not None) == (verdict == FaultVerdict.MENDED)
    if verdict == FaultVerdict.MENDED:
        assert fault.remedied_by == "invoice.retries"
        assert fault.restored_hour is not None
        assert FAULT_H <= fault.restored_hour <= FIXED + 12
        if mended_at == FIXED:
            # Six retries leave .04 of the failures of one: between .1 for three and none for eight.
            assert judge.promotions[0].true_effect == pytest.approx(0.5 - 0.5 * 0.04, abs=0.04)


@pytest.mark.parametrize(
    ("called_at", "verdict"),
    [(FAULT_H - 1, FaultVerdict.UNTOUCHED), (FAULT_H + 48, FaultVerdict.ESCALATED), (None, FaultVerdict.UNTOUCHED)],
)
def test_a_call_counts_while_the_fault_lasts(scenario: Path, called_at: float | None, verdict: FaultVerdict) -> None:
    world = World(read_platform(scenario))
    calls = (Call("success_rate:invoice", instant(called_at)),) if called_at else ()
    record = NOTHING._replace(anomalies=(anomaly(FOUND),), calls=calls)

    fault = Judge(world, Course([], HOURS), record, {"invoice.retries": 1}).fault(world.faults[0])

    assert fault.verdict == verdict


def test_an_alarm_is_false_where_no_fault_is_active_nor_was_within_a_day(scenario: Path) -> None:
    world = World(read_platform(scenario))
    record = NOTHING._replace(anomalies=(anomaly(FAULT_H - 1), anomaly(FAULT_H), anomaly(FAULT_H + 50)))

    assert Judge(world, Course([], HOURS), record, {"invoice.retries": 1}).false_alarms() == 1


def test_a_folder_that_is_not_there_is_said_before_the_weeks_pass(scenario: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "starter", "simulate", str(scenario), "--html", str(tmp_path / "none" / "r.html")]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)

    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"{tmp_path / 'none'} is none")
