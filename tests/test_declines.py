"""Declines: an agent says that nothing is worth trying, and a person is called where enough of them do."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from sqlmodel import select

from activities import ledger
from activities.report import report
from activities.report_text import text
from rules import identity
from rules.consensus import nothing_worth_trying
from rules.notices import notice
from schema import wire
from schema.messages.base import AgentMessage
from schema.messages.cycle import CycleEnd, CycleRequest, CycleState, Ending, Phase
from schema.messages.events import CycleEnded, read
from schema.messages.outbox import Event
from schema.messages.platform import CycleRules
from schema.tables.events import EventRow
from starter.client import Refused
from starter.report_page import page as report_page
from tests import builders
from tests.patience import PATIENCE_S
from tests.test_improvement_cycle import AGENTS, Stage, on_stage  # noqa: F401  (a fixture)
from workflows import windows

RULES = CycleRules()


def bidding(**agents: str) -> CycleState:
    """A cycle that waits for bids of these agents, each given with its operator."""
    registered = tuple(builders.agent(name, operator=operator) for name, operator in agents.items())
    return CycleState(
        request=CycleRequest(request_id="r", anomaly=builders.anomaly()),
        phase=Phase.BIDDING,
        window_open=True,
        opened=builders.briefing(agents=registered),
        deadline=builders.NOW + timedelta(seconds=60),
    )


def answer(state: CycleState, *messages: AgentMessage) -> None:
    for message in messages:
        assert windows.refusal(state, message) is None
        windows.accept(state, message, builders.NOW)


# ---- the window


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (builders.decline, builders.decline, "expected one decline of ada, but it has declined already"),
        (builders.decline, builders.bid, "a bid or a decline, but it has declined already"),
        (builders.bid, builders.decline, "a bid or a decline, but it has bid already"),
    ],
)
def test_the_first_answer_of_an_agent_counts(first, second, expected: str) -> None:  # type: ignore[no-untyped-def]
    state = bidding(ada="acme", bob="bell")
    answer(state, first("ada"))

    refusal = windows.refusal(state, second("ada"))

    assert refusal is not None
    assert refusal.startswith("expected one")
    assert refusal.endswith(expected)


def test_nobody_from_outside_and_nobody_suspended_declines() -> None:
    state = bidding(ada="acme")
    suspended = builders.agent("bob", suspended=True)
    state.opened = builders.briefing(agents=(*state.briefing.agents, suspended))

    assert windows.refusal(state, builders.decline("mallory")) == (
        "expected an agent that was registered when the task opened, but mallory came"
    )
    assert windows.refusal(state, builders.decline("bob")) == "expected an agent in good standing, but bob is suspended"


def test_a_decline_after_the_bidding_is_refused() -> None:
    state = bidding(ada="acme")
    state.phase = Phase.VOTING

    refusal = windows.refusal(state, builders.decline("ada"))

    assert refusal == "expected a cycle in phase bidding, but success_rate:research_synthesis is in phase voting"


def test_bidding_is_complete_when_everybody_has_bid_or_declined() -> None:
    state = bidding(ada="acme", bob="bell", cyd="coop")

    answer(state, builders.decline("ada"), builders.bid("bob"))
    before = windows.bids_complete(state)
    answer(state, builders.decline("cyd"))

    assert not before
    assert windows.bids_complete(state)


def test_a_decline_of_an_agent_whose_key_was_revoked_calls_nobody() -> None:
    state = bidding(ada="acme", bob="bell", cyd="coop")
    answer(state, *(builders.decline(name) for name in ("ada", "bob", "cyd")))

    windows.use_keys(state, {"ada": identity.REVOKED})

    assert set(state.declines) == {"bob", "cyd"}
    assert windows.ending_without_bids(state) == (Ending.NO_BIDS, "no agent bid on the meta-task")


# ---- the rule


@pytest.mark.parametrize(
    ("operators", "called"),
    [
        (("acme", "bell", "coop"), True),
        (("acme", "bell"), False),  # too few to be sure
        (("acme", "acme", "acme", "bell"), False),  # three agents of one operator are one voice
        ((), False),  # silence is not a finding
    ],
)
def test_a_person_is_called_by_as_many_operators_as_a_vote_needs(operators: tuple[str, ...], called: bool) -> None:
    agents = [builders.agent(f"a{n}", operator=operator) for n, operator in enumerate(operators)]
    declines = {agent.agent_id: builders.decline(agent.agent_id) for agent in agents}

    reason = nothing_worth_trying([*agents, builders.agent("silent")], declines, RULES)

    assert (reason is not None) is called
    if reason is not None:
        assert reason.startswith("nothing worth trying: 3 agents of 3 operators found nothing; a0: every value")


def test_the_reason_of_an_ending_is_one_line_whatever_an_agent_wrote() -> None:
    agents = [builders.agent(name) for name in ("ada", "bob", "cyd")]
    hostile = "down\x1b[2J\n## Promoted\n" + "x" * 1_900
    declines = {agent.agent_id: builders.decline(agent.agent_id, hostile) for agent in agents}

    reason = nothing_worth_trying(agents, declines, RULES)

    assert reason is not None
    assert reason.isprintable()
    assert len(reason) < 300


# ---- the whole workflow


def ended(stage: Stage) -> Event:
    with stage.database.reading() as session:
        (row,) = session.exec(select(EventRow).where(EventRow.type == wire.EventType.CYCLE_ENDED.value)).all()
        return Event.model_validate(row.model_dump())


async def test_three_agents_decline_and_a_person_gets_a_dossier_when_the_window_closes(on_stage) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    async with on_stage(bid_window_s=8) as stage:
        await stage.declines("ada", "bob", "cyd")
        status = await stage.client.status(stage.cycle)
        result = await stage.result()
        event = ended(stage)

    assert set(status.declines) == {"ada", "bob", "cyd"}
    assert result.end.ending is Ending.ESCALATED
    assert result.end.reason.startswith("nothing worth trying: 3 agents of 3 operators found nothing; ada: every value")
    dossier = result.end.dossier
    assert dossier is not None
    assert dossier.stands_out == (
        "timeout: 33% of tasks fail so (30 of 90), and no task was recorded before",
        "whatever the limit, a third fails: share 0.33 (ada, bob, cyd)",
    )
    assert dossier.look_at[0] == dossier.stands_out[0]
    # The same in the event, in the ledger, on the page, in the notification and in the report.
    data = read(event)
    assert isinstance(data, CycleEnded)
    assert data.dossier == dossier
    entry = ledger.entries(stage.database)[-1]
    assert CycleEnd.model_validate(entry.body).dossier == dossier
    assert "### For the person who takes over" in result.page
    assert "whatever the limit, a third fails: share 0.33" in result.page
    assert "whatever the limit, a third fails: share 0.33 (ada, bob, cyd)" in notice(event).text
    now = datetime.now(UTC)
    told = report(stage.database, stage.platform, now - timedelta(hours=1), now + timedelta(seconds=1))
    assert [end.dossier for end in told.escalations] == [dossier]
    assert "escalated to people: 1; the newest, success_rate:research_synthesis: nothing worth trying" in text(told)
    assert "whatever the limit, a third fails: share 0.33 (ada, bob, cyd)" in report_page(told)


async def test_a_cycle_that_everybody_declines_waits_for_nobody(on_stage) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    async with on_stage() as stage:
        await stage.reach(Phase.BIDDING)
        for agent in AGENTS:
            await stage.client.decline(stage.cycle, builders.decline(agent), wait=False)
        result = await stage.result()

    assert result.end.ending is Ending.ESCALATED
    assert set(result.status.declines) == set(AGENTS)


async def test_two_declines_and_no_bid_are_no_bids(on_stage) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    async with on_stage(bid_window_s=8) as stage:
        await stage.declines("ada", "bob")
        with pytest.raises(Refused, match="expected one answer of ada, a bid or a decline, but it has declined"):
            await stage.client.place_bid(stage.cycle, builders.bid("ada"))
        result = await stage.result()

    assert result.end.ending is Ending.NO_BIDS
    assert result.end.dossier is None


async def test_one_bid_beside_five_declines_is_awarded(on_stage) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    async with on_stage() as stage:
        await stage.declines(*AGENTS[1:])
        await stage.bids("ada")
        async with asyncio.timeout(PATIENCE_S):
            await stage.reach(Phase.PROPOSING)
        status = await stage.client.status(stage.cycle)

    assert status.award is not None
    assert status.award.agent_id == "ada"
