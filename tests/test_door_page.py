"""The door's page: its requests, as they are printed, get the answers that are printed below them."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from openfeature import api
from sqlmodel import select

from activities import door_keys
from activities.database import Database
from activities.experiment import ExperimentActivities
from activities.parameters import declare_parameters
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.platform import TaskTypeDeclaration
from schema.tables.experiment import AssignmentRow
from starter.door.app import application
from tests import builders
from tests.patience import PATIENCE_S
from tests.serving import serving
from tests.test_store import experiment

PAGE = (Path(__file__).parent.parent / "docs" / "door.md").read_text(encoding="utf-8")
LIMIT = "support.timeout_s"
# Before the page's task began.
BEGIN = datetime(2026, 11, 2, 9, tzinfo=UTC)


class Example(NamedTuple):
    """A command of the page, and what it says the answer is."""

    path: str
    body: str
    answer: Any


def examples() -> list[Example]:
    command = re.compile(r"curl -H \"Authorization: Bearer \$KEY\" -d '([^']+)'[\s\\]+http://127.0.0.1:8484(\S+)\n")
    found = []
    for match in command.finditer(PAGE):
        answer, _ = json.JSONDecoder().raw_decode(PAGE[match.end() :].lstrip())
        found.append(Example(match[2], match[1], answer))
    return found


@pytest.fixture
def caller(database: Database) -> Iterator[httpx.Client]:
    """A platform of support tasks, with the experiment that the page shows."""
    platform = builders.platform(
        task_types=(TaskTypeDeclaration(name="support", timeout_parameter=LIMIT),),
        parameters=(builders.parameter(key=LIMIT, default=1.0, minimum=0.2, maximum=10.0, task_types=("support",)),),
    )
    declare_parameters(database, platform, BEGIN)
    of_the_page = {"parameter": LIMIT, "task_types": ("support",), "control": 1.0, "treatment": 2.0}
    design = experiment("success_rate:support#1", **of_the_page)
    ExperimentActivities(database, platform).open_experiment(design, BEGIN)
    _, key = door_keys.create_platform_key(database, "web", PLATFORM_SCOPES, "maria", BEGIN)
    headers = {"Authorization": f"Bearer {key}"}
    with (
        serving(application(database, platform)) as url,
        httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as client,
    ):
        yield client


def test_the_page_s_requests_are_answered_as_it_says(caller: httpx.Client) -> None:
    printed = examples()
    answers = [caller.post(example.path, content=example.body).json() for example in printed]

    assert [example.path for example in printed] == ["/ofrep/v1/evaluate/flags", "/v1/outcomes"]
    assert answers == [example.answer for example in printed]


def test_the_page_s_provider_resolves_and_records_that_its_task_begins(
    caller: httpx.Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.setenv("NAUTILUS_DOOR_URL", str(caller.base_url))
    monkeypatch.setenv("NAUTILUS_DOOR_KEY", caller.headers["authorization"].removeprefix("Bearer "))
    names: dict[str, Any] = {}

    # The wheel's own list of names; `test_wheels` builds and installs it.
    exec(program.replace("from nautilus_platform", "from starter.wheels.nautilus_platform"), names)
    api.shutdown()

    assert names["limit_s"] == 2.0
    with database.reading() as session:
        (assigned,) = session.exec(select(AssignmentRow)).all()
    assert (assigned.task_id, assigned.variant) == ("task-18", "treatment")
