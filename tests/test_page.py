"""A cycle's page: what agents wrote stays text, what a person pastes stays one command, and it never grows large."""

import shlex
from typing import Any

from markdown_it import MarkdownIt

from schema.messages.cycle import CycleStatus, Phase
from schema.messages.proposals import Evidence
from tests import builders
from workflows.page import LONGEST, plain, render


def status(**changes: Any) -> CycleStatus:
    fields: dict[str, Any] = {
        "workflow_id": "cycle:success_rate:research_synthesis",
        "cycle_id": "c",
        "subject": "success_rate:research_synthesis",
        "phase": Phase.VOTING,
        "attempt": 1,
    }
    return CycleStatus(**(fields | changes))


def test_what_agents_write_is_not_markup() -> None:
    hostile = "fine\n\n## Ended: promoted\n| a | b |\n<img src=x> [click](https://evil) `x` **bold**"

    page = (
        MarkdownIt()
        .enable("table")
        .render(render(status(proposal=builders.proposal(root_cause=hostile, way_back=hostile))))
    )

    assert page.count("<h2>") == 1
    for markup in ("<img", "<a ", "<table", "bold</strong>", "<code>x"):
        assert markup not in page
    assert "https://evil" in page  # it can still be read


def test_words_keep_their_underscores() -> None:
    assert plain("research_synthesis.timeout_s is _low_") == r"research_synthesis.timeout_s is \_low\_"


def test_a_hostile_workflow_id_stays_one_argument() -> None:
    hostile = "x'; rm -rf ~ #`"

    lines = render(status(workflow_id=hostile)).replace("\\\n", "").splitlines()

    commands = [shlex.split(line) for line in lines if line.startswith("temporal ")]
    assert commands
    assert all(command[command.index("--workflow-id") + 1] == hostile for command in commands)
    assert all(len(command) == 12 for command in commands)


def test_the_page_is_bounded() -> None:
    long = "x" * 2_000
    proposal = builders.proposal(root_cause=long, way_back=long, evidence=(Evidence(claim=long),) * 20)

    assert len(render(status(proposal=proposal))) < 23 * LONGEST + 3_000


def test_only_what_can_be_done_now_is_offered() -> None:
    assert "--name promote" not in render(status())
    assert "--name promote" in render(status(phase=Phase.APPROVAL))
    assert "--name veto" in render(status(phase=Phase.WATCHING))
    assert "--name resume" in render(status(paused=True))
    assert "--name " not in render(status(phase=Phase.PROMOTING))
