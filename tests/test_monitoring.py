"""Alert rules and dashboard ask for what is exposed, and their runbooks for commands that there are."""

import asyncio
import json
import re
import urllib.request
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities import events
from activities.database import Database
from activities.observatory import ObservatoryActivities
from activities.recording import record_outcomes
from schema.tables.observatory import AnomalyRow
from starter.cli import COMMANDS, load
from starter.telemetry import runtime
from tests import builders
from tests.builders import NOW
from tests.conftest import stop
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.test_metrics import PLATFORM, Cycle, Samples, samples_of, scraped

FOLDER = Path(__file__).parent.parent / "docs" / "monitoring"
(GROUP,) = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
RULES = GROUP["rules"]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
EXPRESSIONS = {rule["alert"]: rule["expr"] for rule in RULES} | {
    f"panel {panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
# Functions and operators of PromQL that we use.
PROMQL = {"absent", "and", "by", "deriv", "histogram_quantile", "increase", "or", "rate", "sum", "time", "vector"}
DURATION = re.compile(r"\d+[smhdw]")


class Asked:
    """What an expression asks for: its metrics, the labels that it groups by, and its selectors."""

    def __init__(self, expression: str) -> None:
        self.selectors = re.findall(r'(\w+)\{(\w+)(!?=)"([^"]*)"\}', expression)
        groups = re.findall(r"by \(([^)]*)\)", expression)
        self.labels = {label.strip() for group in groups for label in group.split(",")}
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)", " ", expression)
        words = set(re.findall(r"[a-zA-Z_]\w*", bare))
        self.metrics = words - PROMQL


@activity.defn
async def nothing() -> None:
    """Something to measure."""


@workflow.defn
class DoesNotReplay:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(nothing, start_to_close_timeout=timedelta(seconds=10))
        raise LookupError("as a deploy that does not replay: an error that fails the task and not the workflow")


def of_the_sdk(address: str, wanted: set[str]) -> tuple[Samples, set[str]]:
    """What the SDK exposes, with its labels, as soon as it exposes all that is wanted."""
    samples: Samples = {}
    deadline = monotonic() + PATIENCE_S
    while monotonic() < deadline:
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            text = answer.read().decode()
        samples = samples_of(text)
        if wanted <= set(samples):
            return samples, set(re.findall(r'(\w+)="', text))
    raise AssertionError(f"expected {sorted(wanted - set(samples))} of the SDK, but it exposes {sorted(samples)}")


@pytest.fixture(scope="module")
def names() -> set[str]:
    return set().union(*(Asked(expression).metrics for expression in EXPRESSIONS.values()))


@pytest.fixture
def full(either_database: Database) -> Database:
    """A platform that has a value for every metric."""
    cycle = Cycle(either_database)
    cycle.is_awarded(NOW)
    with either_database.transaction() as session:
        record_outcomes(session, [builders.outcome(f"t-{n}") for n in range(30)], 1)
        anomaly = builders.anomaly()
        body = anomaly.model_dump(mode="json")
        session.add(AnomalyRow(anomaly_id="a", subject=anomaly.subject, detected_at=NOW, body=body))
    events.subscribe(either_database, "cycles")
    ObservatoryActivities(either_database, PLATFORM).take_snapshot(NOW + timedelta(seconds=2))
    return either_database


async def test_alerts_and_dashboard_ask_only_for_what_is_exposed(
    full: Database, temporal: Client, task_queue: str, names: set[str]
) -> None:
    exposed = scraped(full)
    address = f"127.0.0.1:{free_port()}"
    target = temporal.service_client.config.target_host
    client = await Client.connect(target, namespace=temporal.namespace, runtime=runtime(address))
    async with Worker(
        client,
        task_queue=task_queue,
        workflows=[DoesNotReplay],
        activities=[nothing],
        workflow_runner=UnsandboxedWorkflowRunner(),
    ):
        handle = await client.start_workflow(DoesNotReplay.run, id=task_queue, task_queue=task_queue)
        asked_of_the_sdk = {name for name in names if name.startswith("temporal_")}
        measured, labels = await asyncio.to_thread(of_the_sdk, address, asked_of_the_sdk)
        await stop(client, handle.id)

    assert asked_of_the_sdk
    assert names <= set(exposed) | set(measured)
    # Every metric of ours is of use to somebody.
    parts = ("_bucket", "_sum", "_count")
    ours = {name for name in exposed if not name.endswith(parts)}
    assert ours <= names
    for expression in EXPRESSIONS.values():
        asked = Asked(expression)
        assert asked.labels <= labels | {"task_type", "result"}
        for name, _, compared, value in asked.selectors:
            values = {part for key in exposed[name] for part in key.split(",")}
            assert value in values, f"{name} has no {value} ({compared})"


def test_a_metric_that_nobody_exposes_would_be_noticed() -> None:
    asked = Asked(
        'sum by (le, phase) (rate(nautilus_phases_bucket{phase="voting"}[5m])) > 3 and time() - nautilus_x > 5'
    )

    assert asked.metrics == {"nautilus_phases_bucket", "nautilus_x"}
    assert asked.labels == {"le", "phase"}
    assert asked.selectors == [("nautilus_phases_bucket", "phase", "=", "voting")]


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_is_complete_and_its_runbook_names_commands_that_there_are(rule: dict[str, Any]) -> None:
    assert rule["expr"].count("(") == rule["expr"].count(")")
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert DURATION.fullmatch(rule.get("for", "1m"))
    assert rule["annotations"]["summary"].strip()
    assert rule["annotations"]["runbook"].strip()
    for line in re.findall(r"`nautilus ([^`]+)`", rule["annotations"]["runbook"]):
        command, *words = line.split()
        assert command in COMMANDS
        subcommands = getattr(load(command), "commands", {})
        if subcommands:
            assert not words or words[0] in subcommands, line


def test_alert_names_are_unique() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) > 10


def test_the_dashboard_s_panels_have_places_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_the_example_scrapes_the_ports_that_the_page_names() -> None:
    scrape = yaml.safe_load((FOLDER / "scrape.yml").read_text(encoding="utf-8"))
    page = (FOLDER.parent / "operators.md").read_text(encoding="utf-8")

    configs = [job["static_configs"][0] for job in scrape["scrape_configs"]]
    targets = [config["targets"][0] for config in configs]

    assert scrape["rule_files"] == ["alerts.yml"]
    for target in targets:
        assert target.rpartition(":")[2] in page
