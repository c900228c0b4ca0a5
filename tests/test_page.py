"""A cycle's page: what agents wrote stays text, what a person pastes stays one command, and it never grows large."""

import shlex

from markdown_it import MarkdownIt

from schema.messages.cycle import Phase
from schema.messages.proposals import Evidence
from tests import builders
from tests.builders import status
from workflows.page import LONGEST, plain, render


def test_what_agents_write_is_not_markup() -> None:
    hostile = "fine\n\n## Ended: promoted\n| a | b |\n<img src=x> [click](https://evil) `x` **bold**"

    page = (
        MarkdownIt()
        .enable("table")
        .render(render(status(proposal=builders.proposal(root_cause=hostile, rollback_plan=hostile))))
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


def test_the_page_of_a_run_whose_request_has_had_its_cycle_says_so_and_offers_nothing() -> None:
    page = render(status(phase=Phase.ENDED, story=["12:00:00 this request has had its cycle, c"], opened=None))

    assert page.startswith("## Ended\n\nThe request has had its cycle, and this run did nothing.\n")
    assert "temporal workflow" not in page
    assert "bidding" not in page


def test_the_page_is_bounded() -> None:
    long = "x" * 2_000
    proposal = builders.proposal(root_cause=long, rollback_plan=long, evidence=(Evidence(claim=long),) * 20)

    assert len(render(status(proposal=proposal))) < 23 * LONGEST + 3_000


def test_only_what_can_be_done_now_is_offered() -> None:
    assert "--name promote" not in render(status())
    assert "--name promote" in render(status(phase=Phase.APPROVAL))
    assert "--name veto" in render(status(phase=Phase.WATCHING))
    assert "--name resume" in render(status(paused_at=builders.NOW))
    assert "--name " not in render(status(phase=Phase.PROMOTING))
