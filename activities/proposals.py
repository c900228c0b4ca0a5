"""Proposals: records proposals, freezes electorates, records votes."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import delete
from sqlmodel import col
from temporalio import activity

from activities.agents import roster
from activities.database import Database, insert_new
from activities.events import emit
from rules.standing import vote_weight
from schema.messages.cycle import VoteRecord
from schema.messages.events import ProposalAccepted, ProposalRejected, ProposalSubmitted
from schema.messages.market import Agent
from schema.messages.proposals import Electorate, Proposal, Voter
from schema.tables.proposals import BallotRow, ElectorateRow, ProposalRow


class ProposalActivities:
    """Records what was proposed and how it was voted on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @activity.defn
    def open_vote(self, cycle_id: str, proposal: Proposal, at: datetime) -> Electorate:
        """Record the proposal and freeze who may vote with which weight; a retry reads the frozen one back."""
        with self._database.transaction() as session:
            voters = _voters(roster(session), proposal)
            electorate = Electorate(
                proposal_id=proposal.proposal_id, opened_at=at, voters=voters, abstentions_count=False
            )
            row: dict[str, Any] = {"cycle_id": cycle_id, "opened_at": at, "body": electorate.model_dump(mode="json")}
            if insert_new(session, ElectorateRow, [row], returning="cycle_id"):
                session.add(_row_of(proposal, cycle_id, at))
                emit(session, ProposalSubmitted(proposal=proposal), cycle_id, cycle_id, at)
                return electorate
            earlier = Electorate.model_validate(session.get_one(ElectorateRow, cycle_id).body)
            if earlier.proposal_id == proposal.proposal_id:
                return earlier
            # A cycle that was set back has come to another proposal: what was voted on before counts no more.
            session.merge(ElectorateRow(**row))
            session.merge(_row_of(proposal, cycle_id, at))
            session.execute(delete(BallotRow).where(col(BallotRow.cycle_id) == cycle_id))
            again = f"{cycle_id}:{proposal.proposal_id}"
            emit(session, ProposalSubmitted(proposal=proposal), cycle_id, again, at)
        return electorate

    @activity.defn
    def record_vote(self, record: VoteRecord) -> None:
        """Record the ballots and announce what they decided."""
        decision = ProposalAccepted if record.tally.accepted else ProposalRejected
        with self._database.transaction() as session:
            rows = [
                {"cycle_id": record.cycle_id, "agent_id": ballot.agent_id, "body": ballot.model_dump(mode="json")}
                for ballot in record.ballots
            ]
            insert_new(session, BallotRow, rows, returning="agent_id")
            decided = decision(proposal_id=record.proposal_id, tally=record.tally)
            # By proposal: a cycle that was set back may come to a second vote.
            emit(session, decided, record.cycle_id, f"{record.cycle_id}:{record.proposal_id}", record.at)


def _row_of(proposal: Proposal, cycle_id: str, at: datetime) -> ProposalRow:
    body = proposal.model_dump(mode="json")
    proposal_id = proposal.proposal_id
    return ProposalRow(cycle_id=cycle_id, proposal_id=proposal_id, agent_id=proposal.agent_id, at=at, body=body)


def _voters(agents: Iterable[Agent], proposal: Proposal) -> tuple[Voter, ...]:
    """Every agent that may vote: not the proposer, and none that is suspended."""
    return tuple(
        Voter(agent_id=a.agent_id, operator=a.operator, weight=vote_weight(a), public_key=a.public_key)
        for a in agents
        if a.agent_id != proposal.agent_id and not a.suspended
    )
