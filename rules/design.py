"""Design: what an experiment will be judged by, fixed before its first task is assigned."""

import math

from rules.rates import smoothed
from schema.messages.cycle import Briefing
from schema.messages.experiment import Decision, ExperimentDesign, Reading
from schema.messages.observatory import Counts
from schema.messages.platform import CycleRules, Parameter, Risk
from schema.messages.proposals import Proposal

# The fields that a cycle's rules set for every experiment, under the same names.
RULED = set(CycleRules.model_fields) & set(ExperimentDesign.model_fields)
# Half the tasks get the new value: the fewest tasks to a verdict (10/90 needs 2.8 times as many).
EVEN = 0.5
# Of the gain that a proposal promises, the share that is the least worth having: what falls short of it by more is
# given up as futile after some hundred tasks, and not after the thousands that the smallest effect of all would take.
PROMISE_SHARE = 0.5


def baseline_rate(baseline: Counts) -> float:
    """The affected tasks' share of good ones, kept off 0 and 1."""
    return smoothed(baseline.successes, baseline.tasks)


def affected(briefing: Briefing, parameter: Parameter) -> Counts:
    """The baseline of the tasks that a change of `parameter` would touch, which are those that its arms will hold."""
    counts = [briefing.baselines.get(t, Counts()) for t in parameter.task_types] if briefing.baselines else []
    if not counts:
        return briefing.baseline
    return Counts.total(counts)


def experiment(briefing: Briefing, proposal: Proposal, metric: str) -> ExperimentDesign:
    """The experiment of a proposal that was voted for; raises KeyError for a parameter that was not declared."""
    states = {state.declaration.key: state for state in briefing.parameters}
    state = states[proposal.parameter]
    rules = briefing.rules
    task_types = state.declaration.task_types
    baseline = affected(briefing, state.declaration)
    current_rate = baseline_rate(baseline)
    promised = proposal.predicted_rate - current_rate
    guardrails = [g.model_copy(update={"margin": rules.guardrail_margin}) for g in briefing.guardrails]
    objectives = {task_type: aim for task_type, aim in briefing.objectives.items() if task_type in task_types}
    ruled = rules.model_dump(include=RULED)
    ruled["minimum_effect"] = max(rules.minimum_effect, PROMISE_SHARE * promised)
    return ExperimentDesign(
        experiment_id=briefing.cycle_id,
        cycle_id=briefing.cycle_id,
        parameter=proposal.parameter,
        task_types=task_types,
        metric=metric,
        control=state.value,
        treatment=proposal.value,
        base_version=state.version,
        baseline=baseline,
        healthy=briefing.healthy,
        baseline_rate=current_rate,
        predicted_rate=proposal.predicted_rate,
        treatment_share=EVEN,
        exposure=exposure(state.declaration.risk, rules),
        guardrails=tuple(guardrails),
        objectives=objectives,
        **ruled,
    )


def exposure(risk: Risk, rules: CycleRules) -> float:
    """The share of tasks that takes part, half of it with the new value: the riskier, the fewer."""
    match risk:
        case Risk.LOW:
            return 1.0
        case Risk.MEDIUM:
            return rules.medium_risk_exposure
        case Risk.HIGH:
            return rules.high_risk_exposure


def is_harmful(design: ExperimentDesign, reading: Reading) -> bool:
    """Whether the evidence of harm has reached its threshold: Ville's inequality at level harm_alpha."""
    return reading.log_e_harm >= math.log(1 / design.harm_alpha)


def breaks_something(design: ExperimentDesign, reading: Reading) -> bool:
    """Whether it is harmful, or a guardrail is broken: by chance at most harm_alpha for each of them."""
    return is_harmful(design, reading) or reading.decision is Decision.HARMFUL


def watch(design: ExperimentDesign, holdback_share: float) -> ExperimentDesign:
    """The watch after a promotion: the old value stays with a share of the tasks, and only harm is tested for.

    Its tasks resolve the version that the promotion has made.
    """
    return design.model_copy(
        update={
            "experiment_id": f"{design.experiment_id}.watch",
            "base_version": design.base_version + 1,
            "treatment_share": 1 - holdback_share,
            "max_tasks": None,
            "exposure": 1.0,
        }
    )
