"""Consensus: what a set of ballots means.

Votes decide what is worth testing, never what is promoted. The electorate and its weights were frozen when voting
opened. Weight follows standing; one operator's voters together weigh at most a share of the electorate, because clones
of one operator are one voter. The quorum is of ballots for or against: an abstention is no vote at all, because one
approval beside any number of those who know nothing is no agreement. A tie is not a consensus. After OpenZeppelin's
Governor (snapshot of weights, quorum, late-quorum extension).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from schema.display import one_line
from schema.messages.market import Agent
from schema.messages.platform import CycleRules, Risk
from schema.messages.proposals import Ballot, Choice, Decline, Tally, Voter

# Weights are sums of a few floats: a vote at exactly the threshold must not fail by a rounding error.
ROUNDING = 1e-9
# Of each decline, in the reason of an ending; the dossier has more.
LONGEST_REASON = 160


def majority(risk: Risk, rules: CycleRules) -> float:
    """The share of the weight cast for or against that a proposal of this risk needs."""
    match risk:
        case Risk.LOW | Risk.MEDIUM:
            return rules.approval_share
        case Risk.HIGH:
            return rules.high_risk_approval_share


def capped_weights(voters: Sequence[Voter], cap_share: float) -> dict[str, float]:
    """Each voter's weight, scaled down so that no operator's voters exceed `cap_share` of the electorate so capped.

    The cap is a share of what counts in the end: a share of the uncapped sum would grow with every clone.
    """
    by_operator: dict[str, float] = defaultdict(float)
    for voter in voters:
        by_operator[voter.operator] += voter.weight
    cap = _cap(sorted(by_operator.values(), reverse=True), cap_share)
    return {v.agent_id: v.weight * min(1.0, cap / by_operator[v.operator]) if v.weight > 0 else 0.0 for v in voters}


def _cap(sums: Sequence[float], share: float) -> float:
    """The largest cap c with c <= share * sum(min(c, s)): with the k largest at c, c = share * rest / (1 - k share)."""
    for k in range(len(sums)):
        if k * share >= 1:
            break
        cap = share * sum(sums[k:]) / (1 - k * share)
        if cap >= sums[k]:
            return cap
    # Fewer operators than the share allows for: equal weight is the nearest to the cap.
    return sums[-1] if sums else 0.0


def tally(
    voters: Sequence[Voter],
    ballots: Mapping[str, Ballot],
    risk: Risk,
    rules: CycleRules,
    abstentions_count: bool = False,
) -> Tally:
    """Count `ballots` (by agent id, all the electorate's); decided once no open ballot can change the result.

    `abstentions_count` is of an older electorate: there, an abstention counts for the quorum.
    """
    weights = capped_weights(voters, rules.operator_weight_cap)
    counts = Counter(ballot.choice for ballot in ballots.values())
    approve_weight = _weight_of(Choice.APPROVE, ballots, weights)
    reject_weight = _weight_of(Choice.REJECT, ballots, weights)
    open_voters = [voter for voter in voters if voter.agent_id not in ballots]
    open_weight = sum(weights[voter.agent_id] for voter in open_voters)

    operators = _counted_operators(voters, ballots, abstentions_count)
    operators_at_most = operators.union(voter.operator for voter in open_voters)
    has_quorum = len(operators) >= rules.minimum_ballots
    quorum_is_possible = len(operators_at_most) >= rules.minimum_ballots

    needed = majority(risk, rules)
    accepted = has_quorum and _carries(approve_weight, reject_weight, needed)
    # Certain is what stays so even if all open weight goes to the other side.
    certain_yes = has_quorum and _carries(approve_weight, reject_weight + open_weight, needed)
    certain_no = not quorum_is_possible or not _carries(approve_weight + open_weight, reject_weight, needed)

    if not has_quorum:
        reason = f"ballots for or against of {len(operators)} operators, {rules.minimum_ballots} needed"
    else:
        outcome = "carried" if accepted else "not carried"
        weighed = f"{approve_weight:g} for and {reject_weight:g} against by weight"
        reason = f"{outcome}: {weighed}, {needed:.0%} needed"
    return Tally(
        approve=counts[Choice.APPROVE],
        reject=counts[Choice.REJECT],
        abstain=counts[Choice.ABSTAIN],
        approve_weight=approve_weight,
        reject_weight=reject_weight,
        operators=len(operators),
        quorum=has_quorum,
        decided=certain_yes or certain_no or not open_voters,
        accepted=accepted,
        reason=reason,
    )


def nothing_worth_trying(agents: Iterable[Agent], declines: Mapping[str, Decline], rules: CycleRules) -> str | None:
    """Why a cycle without bids is for a person, or None where too few agents have said so.

    As many operators as a vote needs must agree: one that cannot help is no reason to call anybody.
    """
    operators = {agent.operator: agent.agent_id for agent in agents if agent.agent_id in declines}
    if len(operators) < rules.minimum_ballots:
        return None
    count = f"{len(declines)} agents of {len(operators)} operators found nothing"
    first = next(iter(declines.values()))
    return f"nothing worth trying: {count}; {first.agent_id}: {one_line(first.reason, LONGEST_REASON)}"


def _counted_operators(voters: Sequence[Voter], ballots: Mapping[str, Ballot], abstentions_count: bool) -> set[str]:
    """The operators of those whose ballots count for the quorum."""
    counted = set(ballots)
    if not abstentions_count:
        counted = {agent_id for agent_id, ballot in ballots.items() if ballot.choice is not Choice.ABSTAIN}
    return {voter.operator for voter in voters if voter.agent_id in counted}


def _weight_of(choice: Choice, ballots: Mapping[str, Ballot], weights: Mapping[str, float]) -> float:
    return sum((weights[ballot.agent_id] for ballot in ballots.values() if ballot.choice is choice), start=0.0)


def _carries(approve: float, reject: float, needed: float) -> bool:
    return approve > 0 and approve > reject and approve >= needed * (approve + reject) - ROUNDING
