"""Contracts: what outside agents, stored histories and the ledger depend on, pinned by golden values.

A change that breaks a test here breaks somebody's agent or a history that is replayed years later.
"""

import importlib
import inspect
import json
from enum import StrEnum
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from temporalio.contrib.pydantic import pydantic_data_converter

from schema import wire
from schema.failure_kinds import FailureKind
from schema.messages.base import AgentMessage, Message
from schema.messages.cycle import Ending, Phase
from schema.messages.experiment import Purpose, Variant
from schema.messages.ledger import EntryKind
from schema.messages.market import AwardResult, Bid
from schema.messages.observatory import TaskOutcome
from schema.messages.outbox import Event
from schema.messages.platform import JobClass, JobId, Mode, ParameterKind, Risk
from schema.messages.proposals import Ballot, Choice, Decline, Evidence, Proposal
from schema.messages.tasks import TaskEnding, TaskPhase
from schema.wire import EventType
from tests.builders import NOW, TIMEOUT

MODULES = (
    *(
        "cycle",
        "diagnosis",
        "events",
        "experiment",
        "ledger",
        "market",
        "memory",
        "observatory",
        "platform",
        "proposals",
    ),
    *("report", "schedules", "tasks"),
)

BID = Bid(message_id="bid-1", agent_id="ada", price=40, eta_s=600, pitch="I know timeouts")
PROPOSAL = Proposal(
    message_id="proposal-1",
    agent_id="ada",
    parameter=TIMEOUT,
    base_version=1,
    value=180.0,
    root_cause="tasks are cut off at the limit",
    evidence=(Evidence(claim="timeouts", figures={"share": 0.33}),),
    predicted_rate=0.94,
    rollback_plan="set it back to 90 s",
)
BALLOT = Ballot(
    message_id="ballot-1", agent_id="bob", proposal_id="7751fb05687bbfeb", choice=Choice.APPROVE, reason="so"
)
DECLINE = Decline(
    message_id="decline-1",
    agent_id="bob",
    reason="the upstream is down",
    findings=(Evidence(claim="every limit alike", figures={"share": 0.33}),),
)
EVENT = Event(
    key="cycle.ended:c#1",
    type=EventType.CYCLE_ENDED,
    subject="s",
    at=NOW,
    data={"cycle_id": "c#1", "ending": "futile", "reason": "no better"},
    sequence=3,
)

GOLDEN: list[tuple[Message, str]] = [
    (
        BID,
        '{"message_id":"bid-1","agent_id":"ada","signature":null,"price":40,"eta_s":600.0,"pitch":"I know timeouts"}',
    ),
    (
        PROPOSAL,
        '{"message_id":"proposal-1","agent_id":"ada","signature":null,"parameter":"research_synthesis.timeout_s",'
        '"base_version":1,"value":180.0,"root_cause":"tasks are cut off at the limit",'
        '"evidence":[{"claim":"timeouts","figures":{"share":0.33}}],"predicted_rate":0.94,'
        '"rollback_plan":"set it back to 90 s"}',
    ),
    (
        BALLOT,
        '{"message_id":"ballot-1","agent_id":"bob","signature":null,"proposal_id":"7751fb05687bbfeb",'
        '"choice":"approve","reason":"so"}',
    ),
    (
        DECLINE,
        '{"message_id":"decline-1","agent_id":"bob","signature":null,"reason":"the upstream is down",'
        '"findings":[{"claim":"every limit alike","figures":{"share":0.33}}]}',
    ),
    (
        EVENT,
        '{"key":"cycle.ended:c#1","type":"cycle.ended","subject":"s","at":"2026-11-22T12:00:00Z",'
        '"data":{"cycle_id":"c#1","ending":"futile","reason":"no better"},"sequence":3}',
    ),
]
named = pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=[type(m).__name__ for m, _ in GOLDEN])


@named
def test_a_message_has_one_json_text(message: Message, golden: str) -> None:
    assert message.model_dump_json() == golden


@named
def test_a_message_comes_back_from_its_json_as_it_was(message: Message, golden: str) -> None:
    assert type(message).model_validate_json(golden) == message


@named
async def test_temporal_carries_the_same_json(message: Message, golden: str) -> None:
    (payload,) = await pydantic_data_converter.encode([message])
    (back,) = await pydantic_data_converter.decode([payload], [type(message)])

    assert json.loads(payload.data) == json.loads(golden)
    assert back == message


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        (Bid, {"message_id": "m", "agent_id": "a", "price": 1, "eta_s": 1}),
        (Ballot, {"message_id": "m", "agent_id": "a", "proposal_id": "p", "choice": "abstain"}),
        (Decline, {"message_id": "m", "agent_id": "a", "reason": "r"}),
        (Event, {"key": "k", "type": "cycle.ended", "subject": "s", "at": "2026-11-22T12:00:00Z"}),
        (
            Proposal,
            {
                "message_id": "m",
                "agent_id": "a",
                "parameter": "a.b",
                "base_version": 1,
                "value": 1,
                "root_cause": "",
                "evidence": [{"claim": "c"}],
                "predicted_rate": 0.9,
                "rollback_plan": "",
            },
        ),
    ],
)
def test_the_first_fields_are_still_enough(kind: type[Message], least: dict[str, Any]) -> None:
    # A field that is added later must have a default, or what was stored before cannot be read any more.
    kind.model_validate(least)


@pytest.mark.parametrize("message", [BID, PROPOSAL, BALLOT, DECLINE], ids=lambda message: type(message).__name__)
def test_a_misspelt_field_of_an_agent_is_refused_and_not_lost(message: AgentMessage) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(message).model_validate(message.model_dump() | {"pirce": 1})


def test_an_older_reader_ignores_the_fields_of_a_newer_event() -> None:
    assert Event.model_validate(EVENT.model_dump() | {"colour": "red"}) == EVENT


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Bid, {"price": -1}),
        (Bid, {"price": 1_000_001}),
        (Bid, {"eta_s": 0}),
        (Bid, {"eta_s": float("nan")}),
        (Bid, {"eta_s": float("inf")}),
        (Bid, {"agent_id": ""}),
        (Bid, {"agent_id": "ada\n"}),
        (Bid, {"pitch": "x" * 2_001}),
        (Proposal, {"parameter": "Cycle Alpha"}),
        (Proposal, {"evidence": []}),
        (Proposal, {"evidence": [{"claim": "c"}] * 21}),
        (Proposal, {"predicted_rate": 1.0}),
        (Proposal, {"predicted_rate": float("nan")}),
        (Ballot, {"choice": "yes"}),
        (Ballot, {"choice": "APPROVE"}),
        (Decline, {"reason": ""}),
        (Decline, {"reason": "x" * 2_001}),
        (Decline, {"findings": [{"claim": "c"}] * 21}),
        (Decline, {"findings": [{"claim": "c", "figures": {str(n): n for n in range(2_000)}}]}),
    ],
)
def test_what_an_agent_may_send_has_a_limit_on_everything(kind: type[AgentMessage], fields: dict[str, Any]) -> None:
    good = next(message for message, _ in GOLDEN if type(message) is kind)

    with pytest.raises(ValidationError):
        kind.model_validate(good.model_dump() | fields)


def test_any_edit_of_a_proposal_is_another_proposal_and_a_resent_one_is_not() -> None:
    assert PROPOSAL.proposal_id == "5a9ac52c53572026"
    assert PROPOSAL.model_copy(update={"message_id": "again", "signature": "s"}).proposal_id == PROPOSAL.proposal_id
    for edit in ({"value": 181.0}, {"predicted_rate": 0.95}, {"root_cause": "x"}, {"agent_id": "bob"}):
        assert PROPOSAL.model_copy(update=edit).proposal_id != PROPOSAL.proposal_id


@pytest.mark.parametrize("value", [True, False, 3, 3.0, "deep"])
def test_a_value_keeps_its_kind_on_the_wire(value: Any) -> None:
    sent = PROPOSAL.model_copy(update={"value": value})
    back = Proposal.model_validate_json(sent.model_dump_json())

    assert (back.value, type(back.value)) == (value, type(value))


def messages() -> list[type[BaseModel]]:
    found = {
        kind
        for module in MODULES
        for _, kind in inspect.getmembers(importlib.import_module(f"schema.messages.{module}"), inspect.isclass)
        if issubclass(kind, Message) and kind not in (Message, AgentMessage)
    }
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", messages(), ids=lambda kind: kind.__name__)
def test_every_message_has_a_json_schema_that_agents_can_read(kind: type[BaseModel]) -> None:
    for mode in ("validation", "serialization"):
        schema = TypeAdapter(kind).json_schema(mode=mode)
        assert schema["type"] == "object"
        assert json.loads(json.dumps(schema, allow_nan=False)) == schema


@pytest.mark.parametrize("kind", messages(), ids=lambda kind: kind.__name__)
def test_every_message_is_frozen(kind: type[BaseModel]) -> None:
    assert kind.model_config["frozen"] is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAMESPACE", "nautilus"),
        ("TASK_QUEUE", "nautilus"),
        ("IMPROVEMENT_CYCLE", "ImprovementCycle"),
        ("OBSERVATORY", "Observatory"),
        ("EVENT_BUS", "EventBus"),
        ("DIAGNOSTICS", "Diagnostics"),
        ("AUTONOMY_SCAN", "AutonomyScan"),
        ("AWARD_DUE_BIDS", "AwardDueBids"),
        ("STANDING_DECAY", "StandingDecay"),
        ("CONSOLIDATION", "Consolidation"),
        ("AGENTS_QUEUE", "nautilus-agents"),
        ("SCAN_MARKET", "scan_the_market"),
        ("NUDGE", "nudge"),
        ("PLACE_BID", "place_bid"),
        ("SUBMIT_PROPOSAL", "submit_proposal"),
        ("CAST_BALLOT", "cast_ballot"),
        ("DECLINE", "decline"),
        ("PAUSE", "pause"),
        ("RESUME", "resume"),
        ("ABORT", "abort"),
        ("VETO", "veto"),
        ("EXTEND", "extend"),
        ("PROMOTE", "promote"),
        ("STATUS", "status"),
        ("RECEIPTS", "receipts"),
        (
            "SEARCH_ATTRIBUTES",
            (
                *("NautilusMetric", "NautilusPhase", "NautilusParameter", "NautilusOutcome"),
                *("NautilusTaskType", "NautilusAgent"),
            ),
        ),
        ("MARKET_TASK", "MarketTask"),
        ("TYPE_REGISTRATION", "TypeRegistration"),
        ("TASKS_QUEUE", "nautilus-tasks"),
        ("HEARTBEAT", "heartbeat"),
        ("SUBMIT_RESULT", "submit_result"),
    ],
)
def test_a_name_on_the_wire_is_never_renamed(name: str, value: object) -> None:
    assert getattr(wire, name) == value


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Choice, "approve reject abstain"),
        (AwardResult, "promoted useless harmful missed done failed"),
        (TaskPhase, "opening bidding awarding executing settling ended"),
        (TaskEnding, "done failed no_bids no_result refused aborted"),
        (FailureKind, "timeout invalid_result error lost"),
        (Variant, "control treatment"),
        (Purpose, "experiment watch"),
        (Risk, "low medium high"),
        (ParameterKind, "float integer boolean choice"),
        (Mode, "observe recommend autonomous"),
        (Phase, "opening bidding proposing voting queued experiment approval promoting watching ended"),
        (
            Ending,
            "promoted rejected no_bids no_proposal futile harmful inconclusive invalid rolled_back aborted escalated",
        ),
        (
            EntryKind,
            "experiment.designed parameter.promoted parameter.rolled_back person.acted cycle.ended",
        ),
        (
            EventType,
            "anomaly.detected anomaly.closed meta_task.opened meta_task.awarded award.missed proposal.submitted "
            "proposal.accepted proposal.rejected experiment.started experiment.concluded parameter.promoted "
            "parameter.rolled_back person.acted cycle.ended task.opened task.awarded task.settled agent.suspended "
            "agent.restored",
        ),
        (EventType, "schedules.elevated schedules.restored budget.exceeded"),
        (JobId, "metrics_snapshot autonomy_scan award_due_bids standing_decay consolidation"),
        (JobClass, "diagnostic market memory"),
    ],
)
def test_a_word_once_written_stays_readable(kind: type[StrEnum], words: str) -> None:
    # New words may come; one that is gone makes stored rows and histories unreadable.
    assert set(words.split()) <= {member.value for member in kind}


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": 1.5},  # read as health
        {"quality": float("nan")},
        {"duration_s": float("nan")},  # PostgreSQL keeps it, and the interval's sum is NaN for ever
        {"duration_s": float("inf")},
        {"duration_s": -1.0},
        {"cost": float("nan")},
        {"finished_at": "2026-11-22T12:00:00"},  # no zone: the store refuses it, together with its batch
        {"agent_id": "a\x00b"},  # PostgreSQL refuses it, together with its batch
    ],
)
def test_an_outcome_that_cannot_be_is_refused_at_the_door(fields: dict[str, Any]) -> None:
    good = {
        "task_id": "t",
        "task_type": "research_synthesis",
        "started_at": NOW,
        "finished_at": NOW,
        "duration_s": 1.0,
    }
    with pytest.raises(ValidationError):
        TaskOutcome.model_validate(good | fields)
