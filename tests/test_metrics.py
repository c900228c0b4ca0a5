"""Metrics: what Prometheus scrapes is what is on record, and alerts and dashboard ask for nothing else."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from activities import events, monitoring
from activities.agents import register_agent
from activities.database import Database
from activities.experiment import ExperimentActivities
from activities.market import MarketActivities
from activities.observatory import ObservatoryActivities
from activities.parameters import declare_parameters, freeze
from activities.proposals import ProposalActivities
from activities.recording import record_outcomes
from rules import design as designs
from schema.messages.cycle import CycleEnd, CycleOpening, CycleRequest, Ending, VoteRecord
from schema.messages.experiment import Promotion
from schema.messages.market import AwardResult
from schema.tables.events import UndeliveredRow
from schema.tables.observatory import AnomalyRow
from schema.wire import EventType
from starter.exporter import served
from tests import builders
from tests.builders import NOW
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_verdict import design

ROOT = Path(__file__).parent.parent
PLATFORM = builders.platform()
MINUTE = timedelta(minutes=1)
Samples = dict[str, dict[str, float]]


def samples_of(text: str) -> Samples:
    """Each sample's value by its name and the values of its labels, in the order of the labels' names."""
    samples: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(sample.labels[name] for name in sorted(sample.labels))
            samples.setdefault(sample.name, {})[labels] = sample.value
    return samples


def scrape(read: Callable[[], list[monitoring.Metric]]) -> Samples:
    """What a Prometheus server gets, over HTTP."""
    port = free_port()
    with served(read, "127.0.0.1", port), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return samples_of(answer.read().decode())


def figures(database: Database, at: datetime = NOW) -> list[monitoring.Metric]:
    return monitoring.metrics(database, PLATFORM, at)


def scraped(database: Database) -> Samples:
    return scrape(lambda: figures(database))


class Cycle:
    """A cycle that is taken through its phases by the activities that record them, at instants of the test's choice."""

    def __init__(self, database: Database, name: str = "r1") -> None:
        declare_parameters(database, PLATFORM, NOW)
        register_agent(database, "ada", "op-ada", NOW)
        self._market = MarketActivities(database, PLATFORM)
        self._proposals = ProposalActivities(database)
        self._experiments = ExperimentActivities(database, PLATFORM)
        request = CycleRequest(request_id=name, anomaly=builders.anomaly())
        opening = CycleOpening(request=request, workflow_id="w", run_id=f"run-{name}", at=NOW)
        self.cycle_id = self._market.open_meta_task(opening).cycle_id
        self._design = design(
            experiment_id=self.cycle_id,
            cycle_id=self.cycle_id,
            parameter=builders.TIMEOUT,
            control=90.0,
            treatment=180.0,
        )

    def is_awarded(self, at: datetime) -> None:
        award = builders.event_data(EventType.META_TASK_AWARDED).award.model_copy(  # type: ignore[attr-defined]
            update={"cycle_id": self.cycle_id}
        )
        self._market.record_award(award, at)

    def comes_to_the_vote(self, at: datetime) -> None:
        self._proposals.open_vote(self.cycle_id, builders.proposal("ada"), at)

    def is_voted_on(self, at: datetime) -> None:
        tally = builders.event_data(EventType.PROPOSAL_ACCEPTED).tally  # type: ignore[attr-defined]
        vote = VoteRecord(cycle_id=self.cycle_id, proposal_id="p", ballots=(), tally=tally, at=at)
        self._proposals.record_vote(vote)

    def begins_its_experiment(self, at: datetime) -> None:
        assert self._experiments.open_experiment(self._design, at) is None

    def has_its_verdict(self, at: datetime) -> None:
        self._experiments.conclude_experiment(self._design, builders.reading(at=at))

    def is_promoted(self, at: datetime) -> None:
        promotion = Promotion(
            cycle_id=self.cycle_id, parameter=builders.TIMEOUT, expected_version=1, value=180.0, reason="94%"
        )
        assert self._experiments.promote(promotion, designs.watch(self._design, 0.1), at).swapped

    def ends(self, at: datetime) -> None:
        end = CycleEnd(
            cycle_id=self.cycle_id,
            subject="success_rate:research_synthesis",
            ending=Ending.PROMOTED,
            reason="it helped",
            at=at,
            agent_id="ada",
            result=AwardResult.PROMOTED,
            reward=40,
        )
        self._market.end_cycle(end)


def test_a_cycle_is_in_the_phase_that_its_records_show_and_each_phase_is_timed_when_it_is_over(
    either_database: Database,
) -> None:
    cycle = Cycle(either_database)
    seen = []

    def phase() -> str:
        (by_phase,) = [metric for metric in figures(either_database) if metric.name == "nautilus_cycles_open"]
        return ",".join(labels[0] for labels, count in by_phase.samples.items() if count)

    seen.append(phase())
    for minutes, step in (
        (1, cycle.is_awarded),
        (3, cycle.comes_to_the_vote),
        (7, cycle.is_voted_on),
        (7, cycle.begins_its_experiment),
        (67, cycle.has_its_verdict),
        (70, cycle.is_promoted),
        (1_510, cycle.ends),
    ):
        step(NOW + minutes * MINUTE)
        seen.append(phase())

    assert seen == ["bidding", "proposing", "voting", "voting", "experiment", "promoting", "watching", ""]
    samples = scraped(either_database)
    assert samples["nautilus_phase_duration_seconds_sum"] == {
        "bidding": 60,
        "proposing": 120,
        "voting": 240,
        "queued": 0,
        "experiment": 3_600,
        "watching": 86_400,
        "cycle": 90_600,
    }
    assert set(samples["nautilus_phase_duration_seconds_count"].values()) == {1}
    assert samples["nautilus_phase_duration_seconds_bucket"]["60.0,voting"] == 0
    assert samples["nautilus_phase_duration_seconds_bucket"]["300.0,voting"] == 1
    assert samples["nautilus_phase_duration_seconds_bucket"]["+Inf,voting"] == 1
    assert samples["nautilus_cycles_ended_total"]["promoted"] == 1
    assert samples["nautilus_verdicts_total"]["promote"] == 1
    assert samples["nautilus_parameter_version"] == {builders.TIMEOUT: 2}
    assert "nautilus_oldest_open_cycle_timestamp_seconds" not in samples


def test_an_experiment_that_waits_for_another_is_queued(either_database: Database) -> None:
    first = Cycle(either_database)
    first.begins_its_experiment(NOW)
    second = Cycle(either_database, "r2")
    with pytest.raises(Exception, match="comes first"):
        second.begins_its_experiment(NOW + MINUTE)

    samples = scraped(either_database)

    assert samples["nautilus_cycles_open"]["experiment"] == 1
    assert samples["nautilus_cycles_open"]["queued"] == 1
    assert samples["nautilus_oldest_open_cycle_timestamp_seconds"][""] == NOW.timestamp()


def test_outcomes_a_minute_are_those_of_the_last_five_minutes(either_database: Database) -> None:
    with either_database.transaction() as session:
        old = [builders.outcome(f"old-{n}", at=NOW - 6 * MINUTE) for n in range(20)]
        new = [builders.outcome(f"new-{n}", n % 3 > 0, NOW - MINUTE) for n in range(30)]
        record_outcomes(session, [*old, *new], 1)

    rates = scraped(either_database)["nautilus_outcomes_per_minute"]

    assert rates["success,research_synthesis"] == 4
    assert rates["timeout,research_synthesis"] == 2
    assert sum(rates.values()) == 6


def test_the_last_snapshot_and_what_is_open_are_those_on_record(either_database: Database) -> None:
    before = scraped(either_database)
    declare_parameters(either_database, PLATFORM, NOW)
    with either_database.transaction() as session:
        record_outcomes(session, [builders.outcome(f"t-{n}", n % 3 > 0) for n in range(30)], 1)
        for number, closed_at in enumerate((None, None, NOW)):
            anomaly = builders.anomaly(NOW + number * MINUTE)
            row = AnomalyRow(
                anomaly_id=anomaly.anomaly_id,
                subject=anomaly.subject,
                detected_at=anomaly.detected_at,
                closed_at=closed_at,
                body=anomaly.model_dump(mode="json"),
            )
            session.add(row)
    snapshot = ObservatoryActivities(either_database, PLATFORM).take_snapshot(NOW + timedelta(seconds=2))
    freeze(either_database, builders.TIMEOUT, "olga", "holidays", NOW)

    samples = scraped(either_database)

    assert "nautilus_last_snapshot_timestamp_seconds" not in before
    assert before["nautilus_anomalies_open"] == {"": 0}
    assert before["nautilus_frozen"] == {"*": 0}
    assert samples["nautilus_last_snapshot_timestamp_seconds"][""] == NOW.timestamp() + 2
    assert samples["nautilus_health_score"][""] == snapshot.health
    assert samples["nautilus_anomalies_open"][""] == 2
    assert samples["nautilus_oldest_open_anomaly_timestamp_seconds"][""] == NOW.timestamp()
    assert samples["nautilus_frozen"] == {"*": 0, builders.TIMEOUT: 1}
    assert samples["nautilus_ledger_entries_total"][""] == 2  # a declaration and a freeze


def test_a_backlog_is_what_a_subscriber_has_not_had_and_dead_letters_are_apart(either_database: Database) -> None:
    events.subscribe(either_database, "cycles")
    detected = builders.event_data(EventType.ANOMALY_DETECTED)
    opened = builders.event_data(EventType.META_TASK_OPENED)
    with either_database.transaction() as session:
        for number in range(3):
            events.emit(session, detected, "s", f"k{number}", NOW)
        events.emit(session, opened, "s", "k", NOW)  # which it does not get
        for number, dead_at in enumerate((NOW, None)):
            waits = UndeliveredRow(subscriber="cycles", sequence=-number, subject="s", due_at=NOW, dead_at=dead_at)
            session.add(waits)

    samples = scraped(either_database)

    assert samples["nautilus_event_backlog"] == {"cycles": 4}
    assert samples["nautilus_dead_letters"] == {"cycles": 1}


def test_a_database_that_is_away_is_said_to_be_and_no_figure_of_before_is_repeated() -> None:
    away = Database(f"postgresql://nobody@127.0.0.1:{free_port()}/nowhere")

    samples = scraped(away)

    assert samples["nautilus_database_up"] == {"": 0}
    assert set(samples) == {"nautilus_database_up", "nautilus_reading_duration_seconds"}


def command(home: Path, port: int) -> subprocess.Popen[str]:
    (home / "platform.toml").write_text("")
    places = {"NAUTILUS_HOME": str(home), "NAUTILUS_PLATFORM": str(home / "platform.toml")}
    return subprocess.Popen(
        [sys.executable, "-m", "starter", "metrics", "--port", str(port)],
        cwd=ROOT,
        env=os.environ | places,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_serves_the_metrics_until_it_is_stopped(tmp_path: Path, database: Database) -> None:
    port = free_port()
    with command(tmp_path, port) as process:
        assert process.stderr is not None
        line = json.loads(process.stderr.readline())
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            samples = samples_of(answer.read().decode())
        process.terminate()
        code = process.wait(PATIENCE_S)

    assert (line["event"], line["url"]) == ("metrics.served", f"http://127.0.0.1:{port}/metrics")
    assert samples["nautilus_database_up"] == {"": 1}
    assert samples["nautilus_cycles_open"]["voting"] == 0
    assert code == 143


def test_the_command_says_in_one_line_that_its_port_is_taken(tmp_path: Path, database: Database) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = command(tmp_path, port)
        _, said = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 1
    assert said == f"nautilus: expected a free address for the metrics, but 127.0.0.1:{port}: Address already in use\n"
