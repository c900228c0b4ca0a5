"""The language-model agent: an investigator whose ideas come from a model, and whose claims come from the records.

It takes the place of a built-in Investigator (`message`). What stands in a case was written by platforms, tasks and
other agents, and a model may obey any of it; so a model only ever narrows what the built-in check, which reads no
words, allows:

- a bid or a proposal is a draft that the check would itself vote for, with the check's evidence and no higher forecast
  (`drafts`); price and time are the agent's own;
- a ballot is the stricter of the check's choice and the model's. Where the check rejects or abstains, the model is not
  even asked: nothing that anybody writes can turn a failed check into an approval. A model that is talked into
  rejecting costs at most an experiment, and one voter among several; one that is talked into approving approves what
  the six built-in agents would approve too.

Everything costs tokens, so each question of a cycle is asked once (again only after a failure), and a run has a budget.
Must never: block a visit for long, raise for what a model does, or send what the check does not support.
"""

import os
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import infer_model

from schema.display import one_line
from schema.messages.cycle import Phase
from schema.messages.market import Bid
from schema.messages.proposals import Ballot, Choice, Decline, Proposal
from schema.settings import Settings

from .briefing_text import DRAFTING, VOTING, drafting_question, refused_drafts, voting_question
from .declines import findings
from .drafts import Checked, Drafts, Opinion, best, unfit, words
from .evidence import Case
from .investigator import Investigator
from .model_calls import REQUESTS, Answer, Asked, Budget, ModelCalls
from .playbook import playbook
from .roster import ROSTER
from .search import ideas

# A visit is given up after half a minute: an answer that takes longer is handed in at a later one.
WAIT_S = 20.0
TIMEOUT_S = 90.0
# Tokens of one run: some sixty answers about a case of usual size.
BUDGET = 1_000_000
# How often one question is asked, where a time-out or an error of the provider came.
ATTEMPTS = 3
# The newest questions; older cycles have ended.
REMEMBERED = 200
LONGEST_REASON = 1_500
STRICTNESS = (Choice.APPROVE, Choice.ABSTAIN, Choice.REJECT)


@dataclass
class _Question:
    """A question that was asked, its answer to come, and how often it was asked."""

    answer: "Future[Any]"
    attempts: int = 1

    @property
    def is_worth_repeating(self) -> bool:
        """Whether it has failed, which may pass."""
        has_ended = self.answer.done() and not self.answer.cancelled()
        return self.attempts < ATTEMPTS and has_ended and self.answer.result() is None


class LanguageModelAgent:
    """An agent on a model. It checks as `check` does, under its own name."""

    def __init__(self, calls: ModelCalls, check: Investigator, wait_s: float = WAIT_S) -> None:
        self.agent_id, self.operator = check.agent_id, check.operator
        self.check = check
        self.calls = calls
        self.wait_s = wait_s
        self._questions: OrderedDict[tuple[str, ...], _Question] = OrderedDict()
        self._lock = Lock()

    def message(self, case: Case) -> Bid | Decline | Proposal | Ballot | None:
        """The message that the cycle's phase asks for; None where there is nothing to say, or nothing yet."""
        match case.status.phase:
            case Phase.BIDDING:
                return self._bid(case)
            case Phase.PROPOSING:
                found = self._found(case)
                return self.check.proposed(case, found.plan) if found is not None and found.plan is not None else None
            case Phase.VOTING:
                return self._ballot(case)
            case phase:
                raise ValueError(f"expected a cycle that waits for agents, but it is in phase {phase.value}")

    def close(self) -> None:
        self.calls.close()

    # ---- drafting

    def _bid(self, case: Case) -> Bid | Decline | None:
        drafts = self._drafts(case)
        if drafts is None:
            return None
        found = self._checked(case, drafts)
        return self.check.offer(case, found.plan) if found.plan is not None else self._decline(case, drafts, found)

    def _found(self, case: Case) -> Checked | None:
        """The best draft, checked against the records as they are now."""
        drafts = self._drafts(case)
        return self._checked(case, drafts) if drafts is not None else None

    def _drafts(self, case: Case) -> Drafts | None:
        """What the model drafts on a cycle: once, for its bid and its proposal."""
        if not self.check.can_tell(case):
            return None
        question = drafting_question(case, self.check)
        if question is None:
            return None

        def objection(answer: Drafts) -> str | None:
            found = best(case, answer.drafts, self.check, question.readable)
            return refused_drafts(found.refusals) if found.refusals and found.plan is None else None

        return self._answer((case.status.cycle_id,), Asked(DRAFTING, question.text, Drafts, objection))

    def _checked(self, case: Case, drafts: Drafts) -> Checked:
        question = drafting_question(case, self.check)
        readable: Collection[str] = question.readable if question is not None else ()
        return best(case, drafts.drafts, self.check, readable)

    def _decline(self, case: Case, drafts: Drafts, found: Checked) -> Decline:
        if found.refusals:
            reason = f"no draft of {self.calls.name} holds: {'; '.join(found.refusals)}"
        else:
            reason = f"{self.calls.name} drafts nothing: {words(drafts.nothing_because) or 'it gives no reason'}"
        possible = ideas(case, self.check.playbook, self.check.trust, self.check.step)
        return Decline(
            message_id=f"decline:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            reason=one_line(reason, LONGEST_REASON),
            findings=findings(case, possible),
        )

    # ---- voting

    def _ballot(self, case: Case) -> Ballot | None:
        proposal = case.status.proposal
        assert proposal is not None
        checked, why = allowed(case, self.check, proposal)
        if checked is not Choice.APPROVE:
            return self._cast(case, proposal, checked, f"{self.check.method_name}: {why}")
        question = voting_question(case, self.check, proposal, why)
        if question is None:
            return self._cast(case, proposal, Choice.ABSTAIN, "the proposal is too long for me to read as a whole")
        opinion = self._answer((case.status.cycle_id, proposal.proposal_id), Asked(VOTING, question.text, Opinion))
        if opinion is None:
            return None
        choice = stricter(checked, opinion.choice)
        said = words(opinion.reason) or "it gives no reason"
        return self._cast(case, proposal, choice, f"{self.calls.name}: {said}; {self.check.method_name}: {why}")

    def _cast(self, case: Case, proposal: Proposal, choice: Choice, reason: str) -> Ballot:
        return Ballot(
            message_id=f"ballot:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            proposal_id=proposal.proposal_id,
            choice=choice,
            reason=one_line(reason, LONGEST_REASON),
        )

    # ---- asking

    def _answer(self, key: tuple[str, ...], asked: Asked[Answer]) -> Answer | None:
        """The answer to a question of a cycle, asked at the first visit; None where there is none, or none yet."""
        with self._lock:
            question = self._questions.get(key)
            if question is None or question.is_worth_repeating:
                attempts = question.attempts + 1 if question is not None else 1
                answer = self.calls.ask(asked, agent_id=self.agent_id, cycle_id=key[0])
                question = self._questions[key] = _Question(answer, attempts)
            while len(self._questions) > REMEMBERED:
                self._questions.popitem(last=False)
        try:
            answered: Answer | None = question.answer.result(timeout=self.wait_s)
        except (TimeoutError, CancelledError):  # it comes at a later visit; or the agent is being stopped
            return None
        return answered


def allowed(case: Case, check: Investigator, proposal: Proposal) -> tuple[Choice, str]:
    """The check's choice, and why; rejected is also a value that is illegal, or a text that brings something along."""
    state = case.state(proposal.parameter)
    refusal = unfit(case, state, proposal.value) if state is not None else None
    return (Choice.REJECT, refusal) if refusal is not None else check.verdict(case, proposal)


def stricter(checked: Choice, opinion: Choice) -> Choice:
    """The choice that lets less through."""
    return max(checked, opinion, key=STRICTNESS.index)


def on_model(
    model: str,
    agent_id: str,
    operator: str = "",
    own_playbook: Path | None = None,
    budget: int = BUDGET,
    timeout_s: float = TIMEOUT_S,
    wait_s: float = WAIT_S,
) -> LanguageModelAgent:
    """An agent on the model that a string of pydantic-ai names. Raises ValueError where it cannot be used.

    It checks with the method of the built-in agent that chooses no model, but averages those that fit.
    """
    try:
        infer_model(model)
    except (UserError, ImportError, ValueError) as error:
        raise ValueError(f"expected a model such as openai:gpt-5.2, but {model}: {error}") from None
    statistician = next(agent for agent in ROSTER if agent.agent_id == "vega")
    check = replace(statistician, agent_id=agent_id, operator=operator or agent_id, playbook=playbook(own_playbook))
    calls = ModelCalls(partial(infer_model, model), model, Budget(budget), timeout_s)
    return LanguageModelAgent(calls, check, wait_s)


def from_environment() -> LanguageModelAgent:
    """The agent on the model that NAUTILUS_MODEL names, for `nautilus simulate --agent`: time waits for its answers."""
    model = os.environ.get("NAUTILUS_MODEL")
    if not model:
        raise ValueError("expected NAUTILUS_MODEL, such as openai:gpt-5.2, but it is not set")
    settings = Settings()
    return on_model(model, "language_model", own_playbook=settings.playbook, wait_s=REQUESTS * TIMEOUT_S + 10)
