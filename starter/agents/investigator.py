"""Investigator: what one agent concludes from a case. Pure; the figures it gives are its own.

It proposes what it expects most of for the tasks of one experiment: a limit that its own method supports, or the trial
that it thinks likeliest to help. It votes by checking the claim against the same records with that method; a claim that
the records cannot show is judged as a trial. Two investigators disagree because they estimate differently, ask for
different certainty and trust different sources.
"""

import math
from dataclasses import dataclass, field
from statistics import NormalDist

from schema.messages.base import Value, format_value
from schema.messages.cycle import Phase
from schema.messages.market import Bid
from schema.messages.memory import Pattern, PatternState
from schema.messages.platform import ParameterKind, ParameterState, Risk
from schema.messages.proposals import Ballot, Choice, Decline, Evidence, Proposal

from .declines import DIGITS, described, findings
from .estimators import Estimate, Method, Model, observed_tail
from .evidence import FAILED, Case, Limit, is_limit
from .playbook import Direction, Playbook, playbook
from .search import Idea, Trust, direction, idea_of, ideas

# A limit is the cause where at least half the failures, and more than a few, ended at it.
ENOUGH_EXPLAINED, FEWEST_AT_LIMIT = 0.5, 8
# The longest extrapolation that any records support, as a multiple of the longest duration that ended.
BEYOND_THE_RECORDS = 3.0
# No forecast is certain.
CERTAIN = 0.9999
# Figures are checked by name; others cannot be looked up. Windows differ by seconds, so some points of slack.
SLACK = 0.1
TIMES_FIXED = "times_mended"
# Below this chance nothing is worth the tasks of an experiment.
WORTH_TRYING = 0.12
# A trial needs no estimate. Who bids early would otherwise be voted down by all who wait for more tasks.
FEWEST_FOR_A_TRIAL = 10
# A trial is plausible to a voter whose own weights give it this share of the best chance, and this chance.
PLAUSIBLE, PLAUSIBLE_CHANCE = 0.1, WORTH_TRYING / 2
# What of the missing gain a trial promises: causes come in twos, and no change restores everything.
PROMISED = 0.7
NEUTRAL_TRUST = Trust()


@dataclass(frozen=True, kw_only=True)
class Investigator:
    """An agent's identity, method and temperament.

    `z_margin` is how many standard errors it takes off its own estimate. `content` is the share of the attainable gain
    at which it stops lengthening a limit, and `boldness` the factor it lengthens by at least. A proposal must hold, by
    its own estimate less its margin, the share `bar` of the gain that is claimed. `reach` is the longest extrapolation
    it judges, as a multiple of the longest duration that ended. Price and eta are what it asks where it is certain.
    `trust` is how far it follows each source where no method can tell, `step` the factor by which it changes numbers.
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
    trust: Trust = NEUTRAL_TRUST
    step: float = 2.0
    playbook: Playbook = field(default_factory=playbook)

    def message(self, case: Case) -> Bid | Decline | Proposal | Ballot | None:
        """The message that the cycle's phase asks for; None where the agent knows too little to say anything."""
        match case.status.phase:
            case Phase.BIDDING:
                return self.bid(case) or self.decline(case)
            case Phase.PROPOSING:
                return self.proposal(case)
            case Phase.VOTING:
                return self.ballot(case)
            case phase:
                raise ValueError(f"expected a cycle that waits for agents, but it is in phase {phase.value}")

    def bid(self, case: Case) -> Bid | None:
        """An offer, where there is something worth trying."""
        plan = self.plan(case)
        return self.offer(case, plan) if plan is not None else None

    def offer(self, case: Case, plan: "Plan") -> Bid:
        """The bid on a plan, at this agent's price."""
        return Bid(
            message_id=f"bid:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            price=round(self.price / 100 * case.status.briefing.rules.reward * (1.5 - plan.chance / 2)),
            eta_s=self.eta_s,
            pitch=plan.pitch,
        )

    def decline(self, case: Case) -> Decline | None:
        """That nothing is worth trying, with what was considered; None where there is too little to tell."""
        if not self.can_tell(case):
            return None
        possible = ideas(case, self.playbook, self.trust, self.step)
        likeliest = f"the likeliest change, to {described(possible[0])}," if possible else "no legal change"
        chance = possible[0].chance if possible else 0.0
        return Decline(
            message_id=f"decline:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            reason=f"{likeliest} has a chance of {chance:.1%}, and less than {WORTH_TRYING:.0%} is not worth the tasks",
            findings=findings(case, possible),
        )

    def proposal(self, case: Case) -> Proposal | None:
        """The change that this agent expects most of, with the evidence for it; None where nothing is worth trying."""
        plan = self.plan(case)
        return self.proposed(case, plan) if plan is not None else None

    def proposed(self, case: Case, plan: "Plan") -> Proposal:
        """The proposal of a plan, with what the records and memory hold of it."""
        root_cause = plan.cause
        evidence = [share_evidence(case), *plan.evidence]
        remembered = case.recalled(plan.key, plan.value)
        if remembered is not None:
            evidence.append(memory_evidence(remembered))
            # A remedy that experiments contest or refute is evidence to weigh, but speaks for no cause.
            if remembered.state is PatternState.SUPPORTED:
                root_cause += f"; {remembered.text}"

        return Proposal(
            message_id=f"proposal:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            parameter=plan.key,
            base_version=plan.state.version,
            value=plan.value,
            root_cause=root_cause,
            evidence=tuple(evidence),
            predicted_rate=plan.rate,
            rollback_plan=f"set {plan.key} back to {format_value(plan.state.value)}",
        )

    def plan(self, case: Case) -> "Plan | None":
        """What this agent would do: of a limit that its method supports and of the trials, what gains most in the mean.

        Every experiment costs about the same number of tasks, so that is what gains most for each of them.
        """
        baseline = case.baseline.rate
        if baseline is None or not self.can_tell(case):
            return None
        possible = ideas(case, self.playbook, self.trust, self.step)
        plans = [self._trial(case, idea, baseline) for idea in possible if idea.chance >= WORTH_TRYING]
        finding = self._finding(case)
        if finding is not None:
            likely = [
                idea for idea in possible if idea.key == finding.limit.key and idea.play.direction is Direction.UP
            ]
            plans = [plan for plan in plans if plan.key != finding.limit.key]
            if likely or not possible:
                plans.append(self._lengthening(case, finding))
        return max(plans, key=lambda plan: (plan.chance * (plan.rate - baseline), plan.key), default=None)

    def can_tell(self, case: Case) -> bool:
        """Whether enough tasks are recorded, and enough of them still go wrong, to say anything of remedies."""
        baseline = case.baseline.rate
        if baseline is None or len(case.samples) < self.fewest:
            return False
        return baseline + case.status.briefing.rules.minimum_effect <= CERTAIN

    def _trial(self, case: Case, idea: Idea, baseline: float) -> "Plan":
        rate = round(baseline + promised_gain(case, baseline), DIGITS)
        change = f"{idea.key} from {format_value(idea.state.value)} to {format_value(idea.value)}"
        chance = Evidence(claim=f"a trial: {idea.why}", figures={"chance": round(idea.chance, DIGITS)})
        pitch = f"{idea.why}; a trial of {change} has a chance of {idea.chance:.0%}"
        return Plan(idea.state, idea.value, idea.chance, rate, idea.why, (chance,), pitch)

    def _lengthening(self, case: Case, finding: "Finding") -> "Plan":
        limit, estimate = finding.limit, finding.estimate
        unit, present = limit.state.declaration.unit, limit.state.value
        rate, error = round(estimate.rate, DIGITS), round(estimate.error, DIGITS)
        forecast = f"by {self.method_name} {rate:.1%} would succeed within {finding.value:g} {unit}"
        minimum = case.status.briefing.rules.minimum_effect
        margin = (finding.gain - minimum) / max(estimate.error, 1e-6)
        evidence = (
            Evidence(claim=finding.cause, figures={"share_of_failures_at_limit": round(limit.explained, DIGITS)}),
            Evidence(claim=forecast, figures={"predicted_rate": rate, "standard_error": error}),
        )
        cause = f"{finding.cause} and were killed at {present:g} {unit}, before they could end"
        pitch = f"{finding.cause}; by {self.method_name} a longer limit gains {finding.gain:+.0%}"
        return Plan(
            limit.state, finding.value, limit.explained * NormalDist().cdf(margin), rate, cause, evidence, pitch
        )

    def ballot(self, case: Case) -> Ballot:
        """This agent's verdict on the open proposal, with the figures it rests on."""
        proposal = case.status.proposal
        assert proposal is not None
        choice, reason = self.verdict(case, proposal)
        return Ballot(
            message_id=f"ballot:{case.status.cycle_id}:{self.agent_id}",
            agent_id=self.agent_id,
            proposal_id=proposal.proposal_id,
            choice=choice,
            reason=f"{self.method_name}: {reason}",
        )

    def verdict(self, case: Case, proposal: Proposal) -> tuple[Choice, str]:
        """The choice on a proposal, and why: by the records, by memory, or as a trial."""
        state, baseline = case.state(proposal.parameter), case.baseline.rate
        if state is None or state.version != proposal.base_version:
            return Choice.REJECT, f"{proposal.parameter} has changed since version {proposal.base_version}"
        tasks = len(case.samples)
        if baseline is None or tasks < FEWEST_FOR_A_TRIAL:
            return Choice.ABSTAIN, f"{tasks} tasks are recorded, too few to judge a trial ({FEWEST_FOR_A_TRIAL})"
        limit = longer_limit(case, state, proposal.value)
        objection = contradiction(proposal, case, limit) or case.against(proposal.parameter, proposal.value)
        if objection is not None:
            return Choice.REJECT, objection
        recalled = case.recalled(proposal.parameter, proposal.value)
        if limit is None:
            return verdict_from_memory(recalled, case, proposal, baseline) or self._judge_trial(case, proposal)
        choice, reason = self._judge_limit(case, proposal, limit, baseline)
        if choice is Choice.APPROVE and recalled is not None:
            reason += f"; I remember that {recalled.text}"
        return choice, reason

    def _judge_limit(self, case: Case, proposal: Proposal, limit: Limit, baseline: float) -> tuple[Choice, str]:
        """The choice on a longer limit: by the durations on record, or, where they cannot tell, as a trial."""
        if len(case.samples) < self.fewest and limit.explained >= ENOUGH_EXPLAINED:
            return self._judge_trial(case, proposal)
        cause = explanation(limit)
        if cause is None:
            ended = f"{len(limit.at_limit)} of {limit.failures} failures"
            return Choice.REJECT, f"{ended} ended at {limit.key}: it is not the cause"
        # What fits no family of the method is read from the tail that was seen.
        model = self.method(case.samples) or observed_tail(case.samples)
        if model is None:
            return self._judge_trial(case, proposal)
        seconds = limit.in_seconds(proposal.value)
        by_estimate = self._judge_by_estimate(case, proposal, model(seconds), baseline, seconds / case.longest)
        if by_estimate is None:
            return self._judge_trial(case, proposal)
        choice, reason = by_estimate
        return choice, f"{reason}; {cause}" if choice is Choice.APPROVE else reason

    def _judge_trial(self, case: Case, proposal: Proposal) -> tuple[Choice, str]:
        """The choice on what the records cannot show: a bounded trial that can be undone, if it is plausible."""
        possible = ideas(case, self.playbook, self.trust, self.step)
        state = case.state(proposal.parameter)
        assert state is not None
        idea, risk = idea_of(possible, state, proposal.value), state.declaration.risk
        if idea is None and state.declaration.kind is ParameterKind.TEXT:
            # No task has seen the new text, and this agent cannot read it: it asks for what a high risk must promise.
            possible = ideas(case, self.playbook, self.trust, self.step, {proposal.parameter: proposal.value})
            idea, risk = idea_of(possible, state, proposal.value), Risk.HIGH
        if idea is None:
            return Choice.REJECT, "nothing speaks for going this way"
        best = possible[0]
        if idea.chance < PLAUSIBLE * best.chance:
            return Choice.REJECT, f"a chance of {idea.chance:.1%}; {best.key} has {best.chance:.0%}: {best.why}"
        asked, why = asked_chance(risk, best.chance)
        if idea.chance < asked:
            return Choice.REJECT, f"a chance of {idea.chance:.1%}; {why}"
        return Choice.APPROVE, f"worth a trial, which can be undone: a chance of {idea.chance:.0%}; {why}; {idea.why}"

    def _judge_by_estimate(
        self, case: Case, proposal: Proposal, estimate: Estimate, baseline: float, extrapolation: float
    ) -> tuple[Choice, str] | None:
        """The choice by this agent's own estimate of the proposed limit; None where the estimate cannot decide.

        `extrapolation` is the proposed limit as a multiple of the longest duration that ended; `reach` bounds it.
        """
        minimum = case.status.briefing.rules.minimum_effect
        claimed = proposal.predicted_rate
        claimed_gain = claimed - baseline
        gain = estimate.rate - baseline
        gain_held = estimate.lower(self.z_margin) - baseline
        highest_plausible = estimate.upper(2 * self.z_margin) + minimum
        forecast = f"{estimate.rate:.1%} +- {estimate.error:.1%} at {format_value(proposal.value)}"
        reason = f"{forecast} against {baseline:.1%} of {case.baseline.tasks} now"

        # Too small a gain is a reason to reject, however far from the records the estimate is.
        if gain < minimum:
            return Choice.REJECT, f"{reason}: less than the minimum effect"
        if extrapolation > self.reach:
            return None  # too far from what was seen
        if claimed > highest_plausible:
            return Choice.REJECT, f"{reason}: the claimed {claimed:.1%} is exaggerated"
        if gain_held < minimum:
            return None  # too uncertain: less the margin, the gain may be too small
        if gain_held < self.bar * claimed_gain:
            return Choice.REJECT, f"{reason}: supports {gain_held:+.1%} of the claimed {claimed_gain:+.1%}"
        return Choice.APPROVE, reason

    def _finding(self, case: Case) -> "Finding | None":
        """The cause that explains most, and the value this agent would try; None where no limit is a cause."""
        baseline = case.baseline.rate
        if case.metric != "success_rate" or baseline is None or len(case.samples) < self.fewest:
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
class Plan:
    """A change that an agent would propose: its chance to help, the rate it promises, and why."""

    state: ParameterState
    value: Value
    chance: float
    rate: float
    cause: str
    evidence: tuple[Evidence, ...]
    pitch: str

    @property
    def key(self) -> str:
        return self.state.declaration.key


def promised_gain(case: Case, baseline: float) -> float:
    """The gain in share that a trial promises: most of what is missing, and at least what is worth having."""
    healthy = case.before if case.before.tasks else case.status.briefing.healthy
    usual = healthy.rate if healthy is not None else None
    minimum = case.status.briefing.rules.minimum_effect
    missing = usual - baseline if usual is not None else 3 * minimum
    return min(max(PROMISED * missing, minimum), max(0.0, CERTAIN - baseline))


def asked_chance(risk: Risk, best: float) -> tuple[float, str]:
    """The chance that a voter asks of another's trial, and why; `best` is the chance of the likeliest that it knows."""
    if best < WORTH_TRYING:
        # Who would itself decline for a chance must not approve another's change on it.
        return WORTH_TRYING, f"I know of none with {WORTH_TRYING:.0%}, and less is not worth the tasks"
    asked = WORTH_TRYING if risk is Risk.HIGH else PLAUSIBLE_CHANCE
    return asked, f"{asked:.0%} is asked where the risk is {risk.value}"


def longer_limit(case: Case, state: ParameterState, value: Value) -> Limit | None:
    """The limit that a proposal would lengthen for more successes, which the records can show the effect of."""
    is_such = is_limit(state, case.task_type) and case.metric == "success_rate"
    return Limit(state, case.samples) if is_such and direction(state.value, value) is Direction.UP else None


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


def share_evidence(case: Case) -> Evidence:
    """How many tasks are good now, and how many were before."""
    now, before = case.baseline, case.before
    claim = f"{now.successes} of {now.tasks} tasks {case.good_verb} since the onset, or the last change after it"
    if before.tasks:
        claim += f", {before.successes} of {before.tasks} before"
    return Evidence(claim=claim, figures={case.good_name: round(now.rate or 0.0, DIGITS)})


def memory_evidence(pattern: Pattern) -> Evidence:
    """What the memory holds of a change; voters look the figures up in it."""
    return Evidence(claim=pattern.text, figures={TIMES_FIXED: pattern.successes, "times_tried": pattern.tries})


def verdict_from_memory(
    recalled: Pattern | None, case: Case, proposal: Proposal, baseline: float
) -> tuple[Choice, str] | None:
    """A verdict by what experiments measured of the very change before; None where they measured none."""
    change = case.change(proposal.parameter, proposal.value)
    is_same = recalled is not None and recalled.claim.symptom == case.symptom and recalled.claim.change == change
    if recalled is None or recalled.effect_interval is None or not is_same:
        return None
    low, high = recalled.effect_interval
    minimum, claimed = case.status.briefing.rules.minimum_effect, proposal.predicted_rate - baseline
    if recalled.state is not PatternState.SUPPORTED or low < minimum:
        return None
    if claimed > high + minimum:
        return Choice.REJECT, f"the claimed {claimed:+.1%} is exaggerated: I remember that {recalled.text}"
    return Choice.APPROVE, f"I remember that {recalled.text}"


def contradiction(proposal: Proposal, case: Case, limit: Limit | None) -> str | None:
    """Which figure of the proposal contradicts the records, or None. Figures are matched by name."""
    recalled = case.recalled(proposal.parameter, proposal.value)
    fixes = recalled.successes if recalled else 0
    recorded = {case.good_name: case.baseline.rate}
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
