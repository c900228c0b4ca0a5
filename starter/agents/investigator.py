"""Investigator: what one agent concludes from a case. Pure; the figures it gives are its own.

It investigates before it bids, proposes what its own method supports, and votes by checking the claim against the same
records with that method. Two investigators disagree because they estimate differently and ask for different certainty.
"""

import math
from dataclasses import dataclass

from schema.messages.base import format_value
from schema.messages.cycle import Phase
from schema.messages.market import Bid
from schema.messages.memory import Pattern, PatternState
from schema.messages.proposals import Ballot, Choice, Evidence, Proposal

from .estimators import Estimate, Method, Model
from .evidence import FAILED, Case, Limit, is_limit

# A limit is the cause where at least half the failures, and more than a few, ended at it.
ENOUGH_EXPLAINED, FEWEST_AT_LIMIT = 0.5, 8
# The longest extrapolation that any records support, as a multiple of the longest duration that ended.
BEYOND_THE_RECORDS = 3.0
# No forecast is certain, and none is given to more than four digits.
CERTAIN, DIGITS = 0.9999, 4
# Figures are checked by name; others cannot be looked up. Windows differ by seconds, so some points of slack.
SLACK = 0.1
TIMES_FIXED = "times_mended"


@dataclass(frozen=True, kw_only=True)
class Investigator:
    """An agent's identity, method and temperament.

    `z_margin` is how many standard errors it takes off its own estimate. `content` is the share of the attainable gain
    at which it stops lengthening a limit, and `boldness` the factor it lengthens by at least. A proposal must hold, by
    its own estimate less its margin, the share `bar` of the gain that is claimed. `reach` is the longest extrapolation
    it judges, as a multiple of the longest duration that ended. Price and eta are what it asks where it is certain.
    """

    agent_id: str
    operator: str
    method: Method
    method_name: str
    price: int
    eta_s: float
    z_margin: float = 1.28
    content: float = 0.9
    boldness: float = 1.0
    bar: float = 0.0
    reach: float = BEYOND_THE_RECORDS
    fewest: int = 20

    def message(self, case: Case) -> Bid | Proposal | Ballot | None:
        """The message that the cycle's phase asks for; None where the agent has no explanation."""
        match case.status.phase:
            case Phase.BIDDING:
                return self.bid(case)
            case Phase.PROPOSING:
                return self.proposal(case)
            case Phase.VOTING:
                return self.ballot(case)
            case phase:
                raise ValueError(f"expected a cycle that waits for agents, but it is in phase {phase.value}")

    def bid(self, case: Case) -> Bid | None:
        """An offer, where the records point to a cause that this agent can remove."""
        finding = self._finding(case)
        if finding is None:
            return None
        certainty = finding.limit.explained * min(1.0, finding.gain_held / finding.gain)
        return Bid(
            message_id=f"bid:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            price=round(self.price / 100 * case.status.briefing.rules.reward * (1.5 - certainty / 2)),
            eta_s=self.eta_s,
            pitch=f"{finding.cause}; by {self.method_name} a longer limit gains {finding.gain:+.0%}",
        )

    def proposal(self, case: Case) -> Proposal | None:
        """The change that this agent's method supports best, or None where it supports none."""
        finding = self._finding(case)
        if finding is None:
            return None
        limit, now, before = finding.limit, case.baseline, case.before
        unit, present = limit.state.declaration.unit, limit.state.value
        rate, error = round(finding.estimate.rate, DIGITS), round(finding.estimate.error, DIGITS)
        since = f"{now.successes} of {now.tasks} tasks succeeded since the onset"
        earlier = f", {before.successes} of {before.tasks} before" if before.tasks else ""
        forecast = f"by {self.method_name} {rate:.1%} would succeed within {finding.value:g} {unit}"
        recalled = case.recalled(limit.key, finding.value)
        precedent = f"; {recalled.text}" if recalled and recalled.state is PatternState.SUPPORTED else ""
        return Proposal(
            message_id=f"proposal:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            parameter=limit.key,
            base_version=limit.state.version,
            value=finding.value,
            root_cause=f"{finding.cause} and were killed at {present:g} {unit}, before they could end{precedent}",
            evidence=(
                Evidence(claim=since + earlier, figures={"success_rate": round(finding.baseline, DIGITS)}),
                Evidence(claim=finding.cause, figures={"share_of_failures_at_limit": round(limit.explained, DIGITS)}),
                Evidence(claim=forecast, figures={"predicted_rate": rate, "standard_error": error}),
                *((memory_evidence(recalled),) if recalled else ()),
            ),
            predicted_rate=rate,
            rollback_plan=f"set {limit.key} back to {present:g} {unit}",
        )

    def ballot(self, case: Case) -> Ballot:
        """This agent's verdict on the open proposal, with the figures it rests on."""
        proposal = case.status.proposal
        assert proposal is not None
        choice, reason = self._verdict(case, proposal)
        return Ballot(
            message_id=f"ballot:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            proposal_id=proposal.proposal_id,
            choice=choice,
            reason=f"{self.method_name}: {reason}",
        )

    def _verdict(self, case: Case, proposal: Proposal) -> tuple[Choice, str]:
        state, baseline = case.state(proposal.parameter), case.baseline.rate
        if state is None or state.version != proposal.base_version:
            return Choice.REJECT, f"{proposal.parameter} has changed since version {proposal.base_version}"
        if baseline is None or len(case.samples) < self.fewest:
            return Choice.ABSTAIN, f"{len(case.samples)} tasks are recorded, too few to judge ({self.fewest})"
        limit = Limit(state, case.samples) if is_limit(state, case.task_type) else None
        objection = contradiction(proposal, case, limit) or case.against(proposal.parameter, proposal.value)
        if objection is not None:
            return Choice.REJECT, objection
        recalled = case.recalled(proposal.parameter, proposal.value)
        if limit is None:
            return verdict_from_memory(recalled, case, proposal, baseline)
        cause = explanation(limit)
        if cause is None:
            ended = f"{len(limit.at_limit)} of {limit.failures} failures"
            return Choice.REJECT, f"{ended} ended at {limit.key}: it is not the cause"
        model = self.method(case.samples)
        if model is None:
            return Choice.ABSTAIN, "it does not describe the durations on record"
        seconds = limit.in_seconds(proposal.value)
        choice, reason = self._judge(case, proposal, model(seconds), baseline, seconds / case.longest)
        if choice is Choice.APPROVE:
            reason += f"; {cause}" + (f"; I remember that {recalled.text}" if recalled else "")
        return choice, reason

    def _judge(
        self, case: Case, proposal: Proposal, estimate: Estimate, baseline: float, multiple: float
    ) -> tuple[Choice, str]:
        """The choice by this agent's own estimate; `multiple` is the proposed limit over the longest task on record."""
        minimum = case.status.briefing.rules.minimum_effect
        claimed = proposal.predicted_rate
        gain_held = estimate.lower(self.z_margin) - baseline
        forecast = f"{estimate.rate:.1%} +- {estimate.error:.1%} at {format_value(proposal.value)}"
        reason = f"{forecast} against {baseline:.1%} of {case.baseline.tasks} now"
        if estimate.rate - baseline < minimum:
            return Choice.REJECT, f"{reason}: less than the minimum effect"
        if multiple > self.reach:
            return Choice.ABSTAIN, f"{reason}, but that is {multiple:.1f} times the longest task on record: too far"
        if claimed > estimate.upper(2 * self.z_margin) + minimum:
            return Choice.REJECT, f"{reason}: the claimed {claimed:.1%} is exaggerated"
        if gain_held < minimum:
            return Choice.ABSTAIN, f"{reason}: too uncertain"
        if gain_held < self.bar * (claimed - baseline):
            return Choice.REJECT, f"{reason}: supports {gain_held:+.1%} of the claimed {claimed - baseline:+.1%}"
        return Choice.APPROVE, reason

    def _finding(self, case: Case) -> "Finding | None":
        """The cause that explains most, and the value this agent would try; None where no limit is a cause."""
        metric = case.status.anomaly.metric if case.status.anomaly else "success_rate"
        baseline = case.baseline.rate
        if metric != "success_rate" or baseline is None or len(case.samples) < self.fewest:
            return None
        model = self.method(case.samples)
        if model is None:
            return None
        for limit in case.limits():
            cause = explanation(limit)
            finding = self._choose(case, limit, model, cause, baseline) if cause is not None else None
            if finding is not None:
                return finding
        return None

    def _choose(self, case: Case, limit: Limit, model: Model, cause: str, baseline: float) -> "Finding | None":
        """The smallest change that brings enough of the attainable gain; None where no value brings any."""
        furthest = self.reach * case.longest
        in_reach = [value for value in limit.candidates() if limit.in_seconds(value) <= furthest]
        worthwhile: list[Finding] = []
        for value in in_reach:
            finding = Finding(limit, cause, value, model(limit.in_seconds(value)), baseline, self.z_margin)
            is_worth_it = finding.gain_held >= case.status.briefing.rules.minimum_effect
            if is_worth_it and finding.estimate.rate < CERTAIN and not case.against(limit.key, value, FAILED):
                worthwhile.append(finding)
        if not worthwhile:
            return None
        enough = self.content * max(finding.gain for finding in worthwhile)
        bold = [finding for finding in worthwhile if limit.in_seconds(finding.value) >= self.boldness * limit.seconds]
        return next((finding for finding in bold if finding.gain >= enough), worthwhile[-1])


@dataclass(frozen=True)
class Finding:
    """A limit that is the cause, a value for it, and what one method expects of that value."""

    limit: Limit
    cause: str
    value: int | float
    estimate: Estimate
    baseline: float
    z_margin: float

    @property
    def gain(self) -> float:
        return self.estimate.rate - self.baseline

    @property
    def gain_held(self) -> float:
        """The gain that remains when the margin is taken off."""
        return self.estimate.lower(self.z_margin) - self.baseline


def explanation(limit: Limit) -> str | None:
    """How the limit causes the failures, or None where it does not."""
    if len(limit.at_limit) < FEWEST_AT_LIMIT or limit.explained < ENOUGH_EXPLAINED:
        return None
    return f"{len(limit.at_limit)} of {limit.failures} failed tasks ran into {limit.key}"


def memory_evidence(pattern: Pattern) -> Evidence:
    """What the memory holds of a change; voters look the figures up in it."""
    return Evidence(claim=pattern.text, figures={TIMES_FIXED: pattern.successes, "times_tried": pattern.tries})


def verdict_from_memory(
    recalled: Pattern | None, case: Case, proposal: Proposal, baseline: float
) -> tuple[Choice, str]:
    """A verdict by what experiments measured before, on a change whose effect the records cannot show."""
    change = case.change(proposal.parameter, proposal.value)
    is_same = recalled is not None and recalled.claim.symptom == case.symptom and recalled.claim.change == change
    if recalled is None or recalled.effect_interval is None or not is_same:
        return Choice.ABSTAIN, f"nothing on record shows what {proposal.parameter} does to {case.task_type}"
    low, high = recalled.effect_interval
    minimum, claimed = case.status.briefing.rules.minimum_effect, proposal.predicted_rate - baseline
    if recalled.state is not PatternState.SUPPORTED or low < minimum:
        return Choice.ABSTAIN, f"I remember only that {recalled.text}"
    if claimed > high + minimum:
        return Choice.REJECT, f"the claimed {claimed:+.1%} is exaggerated: I remember that {recalled.text}"
    return Choice.APPROVE, f"I remember that {recalled.text}"


def contradiction(proposal: Proposal, case: Case, limit: Limit | None) -> str | None:
    """Which figure of the proposal contradicts the records, or None. Figures are matched by name."""
    recalled = case.recalled(proposal.parameter, proposal.value)
    fixes = recalled.successes if recalled else 0
    recorded = {"good_share" if case.status.briefing.objectives else "success_rate": case.baseline.rate}
    if limit is not None:
        recorded["share_of_failures_at_limit"] = limit.explained
    for evidence in proposal.evidence:
        for name, claimed in evidence.figures.items():
            # Memory only grows between a proposal and its vote, so that it can hold more than is claimed.
            if name == TIMES_FIXED and claimed > fixes:
                return f"the proposal claims {claimed:g} fixes by similar changes, the memory holds {fixes:g}"
            figure = recorded.get(name)
            if figure is not None and abs(claimed - figure) > SLACK + 1.5 / math.sqrt(len(case.samples)):
                return f"the proposal claims {name} {claimed:.3g}, the records show {figure:.3g}"
    return None
