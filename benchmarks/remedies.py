"""Remedies: what the built-in agents mend of fourteen kinds of fault that they are not told.

Real rules and agents - playbook, bids, proposals, votes, designs, verdicts, memory - and outcomes drawn by a model
(benchmarks.faults). Beside them, on the same platforms: random search, and Optuna's TPE by ask and tell, which measure
whole configurations over the declared parameters. Tasks of experiments and of trials count until the metric is healthy
(the watch after a promotion is production); a platform that never gets healthy counts a whole budget.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from statistics import fmean
from typing import Any, NamedTuple

from benchmarks.diagnosing import Records
from benchmarks.faults import EPOCH, HEALTHY_MARGIN, KINDS, World, is_good, share_of_good, world
from benchmarks.output import note
from rules import bidding, patterns
from rules import design as designs
from rules.assignment import assigner
from rules.standing import vote_weight
from rules.verdict import is_success, read
from schema.messages.base import Value
from schema.messages.cycle import Briefing, CycleEnd, CycleRequest, CycleState, CycleStatus, Ending, Phase
from schema.messages.diagnosis import Diagnosis, ParameterChange, PastEnding
from schema.messages.experiment import ArmCounts, Decision, ExperimentDesign, GuardCounts, Reading, StratumCounts
from schema.messages.market import Agent
from schema.messages.memory import Memory, Pattern
from schema.messages.observatory import Anomaly, Counts, GuardrailKind, TaskOutcome
from schema.messages.platform import CycleRules, ParameterState
from schema.messages.proposals import Electorate, Proposal, Tally, Voter
from schema.parameter_roles import role_of
from starter.agents.evidence import Case
from starter.agents.roster import ROSTER
from workflows import windows

ATTEMPTS, UNMENDABLE_ATTEMPTS = 6, 3
# What an alarm rests on, and what is recorded before it.
SINCE, BEFORE = 200, 400
# Evaluations of an experiment, in finished tasks; a platform asks every half minute.
EVERY = 10
# A bake time of a day at some 80 tasks an hour.
WATCHED = 2_000
# A configuration that a peer measures, in tasks, and what it may spend in all: as much as six of our experiments.
TRIAL_TASKS = (50, 100)
# What measures healthy is measured once more, or half of what a peer takes would be luck.
CONFIRMED_BY = 100
BUDGET = 6_000
RULES = CycleRules(max_tasks=2_000, minimum_run_s=0)
RESULT_OF = {Decision.FUTILE: "futile", Decision.HARMFUL: "harmful", Decision.INVALID: "invalid"}


class Attempt(NamedTuple):
    """One cycle: what was proposed, how it ended, and what its tasks were."""

    parameter: str
    value: Value | None
    ending: str
    tasks: int
    is_right: bool


@dataclass
class Run:
    """A platform from its alarm to its recovery, or to the agents' giving up."""

    kind: str
    seed: int
    attempts: list[Attempt] = field(default_factory=list)
    is_healthy: bool = False
    is_escalated: bool = False
    harmful_kept: int = 0
    learned: list[patterns.Learned] = field(default_factory=list)

    @property
    def tasks(self) -> int:
        return sum(attempt.tasks for attempt in self.attempts)


# ---- one platform


class Platform:
    """A broken platform on which cycles run, one after another."""

    def __init__(self, broken: World, seed: int, memory: tuple[Pattern, ...] = ()) -> None:
        self._world, self._memory = broken, memory
        self._rng = random.Random(f"tasks:{broken.kind}:{seed}")
        self._values, self._versions = dict(broken.values), dict.fromkeys(broken.values, 1)
        self._at = EPOCH + timedelta(days=1)
        self._tasks = 0
        self._endings: list[PastEnding] = []
        self._changes: list[ParameterChange] = []
        self._before = self._run_tasks(BEFORE, broken.healthy_values, healthy=True)
        if broken.changed is not None:
            old, new = broken.healthy_values[broken.changed], broken.values[broken.changed]
            self._change(broken.changed, "promoted", old, new)
        self._onset = self._at
        self._since = self._run_tasks(SINCE, self._values)
        self.run = Run(broken.kind, seed)
        self._diagnosis = self._diagnose()

    def mend(self, attempts: int = ATTEMPTS) -> Run:
        """Run cycles until the metric is healthy, the agents give up, or the attempts are used up."""
        for number in range(1, attempts + 1):
            if not self._cycle(number):
                self.run.is_escalated = True
                break
            if self._world.is_healthy(self._values):
                self.run.is_healthy = True
                break
        return self.run

    def _cycle(self, number: int) -> bool:
        """One improvement cycle; False where every agent finds nothing worth trying."""
        state = self._opened(number)
        self._diagnosis = self._diagnose()
        case = self._case(state)
        bids = {agent.agent_id: bid for agent in ROSTER if (bid := agent.bid(case)) is not None}
        if not bids:
            return False
        agents = {agent.agent_id: agent for agent in state.briefing.agents}
        ranked = bidding.rank(state.briefing.cycle_id, tuple(bids.values()), agents, RULES.reward)
        winner = next(agent for agent in ROSTER if agent.agent_id == ranked[0].bid.agent_id)
        proposal = winner.proposal(case)
        assert proposal is not None
        refusal = windows.out_of_bounds(state, proposal)
        if refusal is not None:
            raise RuntimeError(f"expected a legal proposal of {winner.agent_id}, but {refusal}")
        state.proposal = proposal
        tally = self._vote(state)
        if not tally.accepted:
            self._ended(proposal, "rejected", None, 0)
            return True
        design = designs.experiment(state.briefing, proposal, self._world.metric)
        reading, tasks = self._experiment(design)
        self._conclude(state, proposal, design, reading, tasks)
        return True

    def _conclude(
        self, state: CycleState, proposal: Proposal, design: ExperimentDesign, reading: Reading, tasks: int
    ) -> None:
        ending, watch = Ending(RESULT_OF.get(reading.decision, "inconclusive")), None
        if reading.decision is Decision.PROMOTE:
            ending = Ending.PROMOTED
            watched = designs.watch(design, RULES.holdback_share)
            watch, _ = self._experiment(watched, WATCHED)
            if designs.breaks_something(watched, watch):
                ending = Ending.ROLLED_BACK
        end = CycleEnd(
            cycle_id=state.briefing.cycle_id,
            subject=state.request.subject,
            ending=ending,
            reason=reading.reason,
            at=self._at,
            proposal=proposal,
            reading=reading,
            watch=watch,
        )
        learned = patterns.remedy(end, design, self._case(state).symptom, self._role(design.parameter))
        if learned is not None:
            self.run.learned.append(learned)
        self._ended(proposal, ending.value, reading.effect, tasks)
        if ending is Ending.PROMOTED:
            self._promote(proposal)

    def _promote(self, proposal: Proposal) -> None:
        before = dict(self._values)
        self._change(proposal.parameter, "promoted", before[proposal.parameter], proposal.value)
        self._values[proposal.parameter] = proposal.value
        self._versions[proposal.parameter] += 1
        if self._world.is_harm(before, self._values):
            self.run.harmful_kept += 1
            note(f"harm: {self.run.kind} {self.run.seed} {proposal.parameter} -> {proposal.value}")
        # What is wrong now is read from the tasks that ran since.
        self._since = self._run_tasks(SINCE, self._values)

    def _ended(self, proposal: Proposal, ending: str, effect: float | None, tasks: int) -> None:
        current = self._values[proposal.parameter]
        changed = self._values | {proposal.parameter: proposal.value}
        gain = self._truth(changed) - self._truth(self._values)
        self.run.attempts.append(
            Attempt(proposal.parameter, proposal.value, ending, tasks, gain >= RULES.minimum_effect)
        )
        past = PastEnding(
            cycle_id=f"{self._world.kind}#{len(self._endings)}",
            ending=ending,
            parameter=proposal.parameter,
            value=proposal.value,
            before=current,
            effect=effect,
            ended_at=self._at,
        )
        self._endings.insert(0, past)

    def _truth(self, values: dict[str, Value]) -> float:
        return self._world.truth(values, self._world.objective)

    # ---- what a cycle knows

    def _opened(self, number: int) -> CycleState:
        goals = [is_good(self._world.objective, outcome) for outcome in self._since]
        judged = [good for good in goals if good is not None]
        baseline = Counts(tasks=len(judged), successes=sum(judged))
        healthy = [good for o in self._before if (good := is_good(self._world.objective, o)) is not None]
        anomaly = Anomaly(
            anomaly_id=f"{self._world.kind}-{self.run.seed if hasattr(self, 'run') else 0}",
            metric=self._world.metric,
            task_type=self._world.task_type,
            onset=self._onset,
            detected_at=self._at,
            observed=baseline,
            baseline=Counts(tasks=len(healthy), successes=sum(healthy)),
            reason="drawn",
        )
        objectives = {self._world.task_type: self._world.objective} if self._world.objective else {}
        briefing = Briefing(
            cycle_id=f"{self._world.kind}:{self.run.seed}:{number}",
            attempt=number,
            failed_attempts=0,
            rules=RULES,
            parameters=self._parameters(),
            agents=tuple(Agent(agent_id=a.agent_id, operator=a.operator, standing=0.5) for a in ROSTER),
            baseline=baseline,
            baselines={self._world.task_type: baseline},
            healthy=Counts(tasks=len(healthy), successes=sum(healthy)),
            guardrails=self._world.guardrails,
            objectives=objectives,
        )
        request = CycleRequest(request_id=f"r{number}", anomaly=anomaly)
        return CycleState(request=request, phase=Phase.BIDDING, opened=briefing)

    def _parameters(self) -> tuple[ParameterState, ...]:
        return tuple(
            ParameterState(declaration=p, value=self._values[p.key], version=self._versions[p.key])
            for p in self._world.parameters
        )

    def _case(self, state: CycleState) -> Case:
        return Case(CycleStatus(workflow_id="cycle:drawn", run_id="drawn", **dict(state)), self._diagnosis)

    def _diagnose(self) -> Diagnosis:
        records = Records(self._world.task_type, self._world.objective, self._before, self._since)
        return records.diagnosis(
            self._at, self._onset, self._parameters(), tuple(self._endings), self._memory, tuple(self._changes)
        )

    def _role(self, parameter: str) -> str:
        return next(role_of(p).value for p in self._world.parameters if p.key == parameter)

    def _vote(self, state: CycleState) -> Tally:
        proposal = state.proposed
        voters = tuple(
            Voter(agent_id=a.agent_id, operator=a.operator, weight=vote_weight(a))
            for a in state.briefing.agents
            if a.agent_id != proposal.agent_id
        )
        state.phase = Phase.VOTING
        state.electorate = Electorate(proposal_id=proposal.proposal_id, opened_at=self._at, voters=voters)
        case = self._case(state)
        state.ballots = {a.agent_id: a.ballot(case) for a in ROSTER if a.agent_id != proposal.agent_id}
        return windows.tally(state)

    # ---- tasks

    def _run_tasks(self, count: int, values: dict[str, Value], *, healthy: bool = False) -> list[TaskOutcome]:
        outcomes = []
        for _ in range(count):
            self._tasks += 1
            self._at += timedelta(seconds=10)
            outcomes.append(self._world.draw(values, self._rng, f"t{self._tasks}", self._at, healthy=healthy))
        return outcomes

    def _change(self, parameter: str, kind: str, before: Value, value: Value) -> None:
        made = ParameterChange(parameter=parameter, at=self._at, kind=kind, before=before, value=value, cycle_id="c")
        self._changes.insert(0, made)

    def _experiment(self, design: ExperimentDesign, most: int | None = None) -> tuple[Reading, int]:
        """The reading that decided, and the tasks it took; of a watch, the one after `most` tasks or of its harm.

        Without the calibrated threshold, which takes seconds for each design: the general one asks for more tasks.
        """
        arms = Arms(design)
        assign = assigner(design.experiment_id, design.exposure, design.treatment_share)
        treated = self._values | {design.parameter: design.treatment}
        control = self._values | {design.parameter: design.control}
        opened_at = self._at
        while True:
            self._tasks += 1
            self._at += timedelta(seconds=10)
            task_id = f"t{self._tasks}"
            variant = assign(task_id)
            if variant is None:
                continue
            values = treated if variant.value == "treatment" else control
            arms.count(variant.value, self._world.draw(values, self._rng, task_id, self._at))
            if arms.finished % EVERY == 0 or arms.finished == most:
                reading = arms.reading(opened_at, self._at)
                is_over = reading.decision is not Decision.CONTINUE and most is None
                broke = most is not None and designs.breaks_something(design, reading)
                if is_over or broke or arms.finished == most:
                    return reading, arms.finished


class Arms:
    """The counters of one experiment, and of its guardrails."""

    def __init__(self, design: ExperimentDesign) -> None:
        self._design = design
        self._good: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._guards: Counter[tuple[GuardrailKind, str, str]] = Counter()

    @property
    def finished(self) -> int:
        return self._all.total()

    def count(self, arm: str, outcome: TaskOutcome) -> None:
        """Count one task for its arm; by an objective on quality, only if it was rated."""
        success = is_success(self._design.objectives, outcome)
        if success is None:
            return
        self._all[arm] += 1
        self._good[arm] += success
        for guardrail in self._design.guardrails:
            verdict = is_good(guardrail, outcome)
            self._guards[guardrail.kind, arm, "tasks"] += 1
            self._guards[guardrail.kind, arm, "good"] += verdict is True
            self._guards[guardrail.kind, arm, "judged"] += verdict is not None

    def reading(self, opened_at: datetime, at: datetime) -> Reading:
        share = self._design.treatment_share
        stratum = StratumCounts(
            treatment_share=share,
            control=ArmCounts(tasks=self._all["control"], successes=self._good["control"]),
            treatment=ArmCounts(tasks=self._all["treatment"], successes=self._good["treatment"]),
        )
        guards = tuple(self._guard(guardrail.kind) for guardrail in self._design.guardrails)
        return read(self._design, (stratum,), guards, opened_at=opened_at, at=at, extended=True)

    def _guard(self, kind: GuardrailKind) -> GuardCounts:
        def counts(arm: str) -> Counts:
            return Counts(tasks=self._guards[kind, arm, "tasks"], successes=self._guards[kind, arm, "good"])

        return GuardCounts(
            kind=kind,
            treatment_share=self._design.treatment_share,
            control=counts("control"),
            treatment=counts("treatment"),
            judged_control=self._guards[kind, "control", "judged"],
            judged_treatment=self._guards[kind, "treatment", "judged"],
        )


# ---- with and without memory


def without_memory(kind: str, seed: int) -> Run:
    """The agents on a platform of a kind that they have never seen."""
    return Platform(world(kind, seed), seed).mend()


def with_memory(kind: str, seed: int) -> Run:
    """The agents once they have met the like: other work on the platform, with the same kind of fault."""
    earlier = Platform(world(kind, seed, task_type="earlier_work"), seed).mend()
    remembered: dict[str, Memory] = patterns.merge({}, earlier.learned, EPOCH + timedelta(days=2))
    judged = patterns.judge(remembered, EPOCH + timedelta(days=2))
    return Platform(world(kind, seed), seed, tuple(judged.values())).mend()


# ---- what a user would take instead


Suggest = Callable[[World], tuple[dict[str, Value], Callable[[float], None]]]


def random_search(seed: int) -> Suggest:
    """Configurations drawn from the declared bounds."""
    rng = random.Random(seed)

    def suggest(broken: World) -> tuple[dict[str, Value], Callable[[float], None]]:
        values: dict[str, Value] = {}
        for p in broken.parameters:
            match p.kind:
                case "boolean":
                    values[p.key] = rng.random() < 0.5
                case "choice":
                    values[p.key] = rng.choice(p.choices)
                case "integer":
                    values[p.key] = rng.randint(int(p.minimum or 0), int(p.maximum or 0))
                case _:
                    values[p.key] = rng.uniform(p.minimum or 0.0, p.maximum or 0.0)
        return values, lambda rate: None

    return suggest


def tpe(seed: int) -> Suggest:
    """Optuna's TPE by ask and tell, from the configuration in force on."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))

    def suggest(broken: World) -> tuple[dict[str, Value], Callable[[float], None]]:
        if not study.trials:
            study.enqueue_trial(dict(broken.values))
        trial = study.ask()
        values: dict[str, Value] = {}
        for p in broken.parameters:
            match p.kind:
                case "boolean":
                    values[p.key] = trial.suggest_categorical(p.key, [False, True])
                case "choice":
                    values[p.key] = trial.suggest_categorical(p.key, list(p.choices))
                case "integer":
                    values[p.key] = trial.suggest_int(p.key, int(p.minimum or 0), int(p.maximum or 0))
                case _:
                    values[p.key] = trial.suggest_float(p.key, p.minimum or 0.0, p.maximum or 0.0)

        def tell(rate: float) -> None:
            study.tell(trial, rate)

        return values, tell

    return suggest


def peer_tasks(broken: World, seed: int, suggest: Suggest, trial_tasks: int) -> int:
    """The tasks until a peer has found a healthy configuration that harms nothing else, or its whole budget."""
    rng, spent = random.Random(f"peer:{seed}"), 0

    def measured(values: dict[str, Value], tasks: int) -> float:
        outcomes = [broken.draw(values, rng, "peer", EPOCH) for _ in range(tasks)]
        return share_of_good(broken.objective, outcomes)

    while spent < BUDGET:
        values, tell = suggest(broken)
        rate = measured(values, trial_tasks)
        spent += trial_tasks
        tell(rate)
        if rate < broken.healthy_rate - HEALTHY_MARGIN:
            continue
        spent += CONFIRMED_BY
        is_confirmed = measured(values, CONFIRMED_BY) >= broken.healthy_rate - HEALTHY_MARGIN
        if is_confirmed and broken.is_healthy(values) and not broken.is_harm(broken.values, values):
            return spent
    return BUDGET


# ---- the report


def story(run: Run) -> str:
    """The attempts in one line."""
    return ", ".join(f"{a.parameter.split('.')[1]}={a.value} {a.ending} {a.tasks}" for a in run.attempts)


def compare(job: tuple[str, int]) -> dict[str, Any]:
    """One platform: ours without memory and with it, and the peers."""
    kind, seed = job
    bare, knowing = without_memory(kind, seed), with_memory(kind, seed)
    result: dict[str, Any] = {
        "kind": kind,
        "seed": seed,
        "mended": bare.is_healthy,
        "escalated": bare.is_escalated,
        "attempts": len(bare.attempts),
        "harmful_kept": bare.harmful_kept + knowing.harmful_kept,
        "first_right": bool(bare.attempts and bare.attempts[0].is_right),
        "first_right_with_memory": bool(knowing.attempts and knowing.attempts[0].is_right),
        "tasks": bare.tasks if bare.is_healthy else BUDGET,
        "story": story(bare),
        "story_with_memory": story(knowing),
    }
    if kind != "nothing":
        for name, make in (("random", random_search), ("tpe", tpe)):
            for size in TRIAL_TASKS:
                result[f"{name}_{size}"] = peer_tasks(world(kind, seed), seed, make(seed), size)
    return result


def report(results: Sequence[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """The shares over all kinds, and a row for each."""
    mendable = [r for r in results if r["kind"] != "nothing"]
    hopeless = [r for r in results if r["kind"] == "nothing"]
    peers = (
        {name: sum(r[name] for r in mendable) for name in mendable[0] if name.startswith(("random_", "tpe_"))}
        if mendable
        else {}
    )
    best_peer = min(peers, key=lambda name: peers[name]) if peers else None
    ours = sum(r["tasks"] for r in mendable)
    rows = []
    for kind in dict.fromkeys(r["kind"] for r in results):
        of_kind = [r for r in results if r["kind"] == kind]
        row = {"kind": kind}
        for name in ("mended", "escalated", "attempts", "first_right", "first_right_with_memory", "tasks", *peers):
            if name in of_kind[0]:
                row[name] = round(fmean(float(r[name]) for r in of_kind), 3)
        rows.append(row)

    def share(name: str, some: Sequence[dict[str, Any]]) -> float | None:
        return round(fmean(float(r[name]) for r in some), 3) if some else None

    return {
        "seeds": seeds,
        "kinds": len(rows),
        "mended_share": share("mended", mendable),
        "escalated_share": round(fmean(r["escalated"] and r["attempts"] <= UNMENDABLE_ATTEMPTS for r in hopeless), 3)
        if hopeless
        else None,
        "harmful_kept": sum(r["harmful_kept"] for r in results),
        "first_right_without_memory": share("first_right", mendable),
        "first_right_with_memory": share("first_right_with_memory", mendable),
        "tasks": ours,
        "peers": peers,
        "best_peer": best_peer,
        "tasks_ratio_to_best_peer": round(ours / peers[best_peer], 3) if best_peer else None,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seeds", type=int, default=20, help="platforms of each kind")
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS, help="only these")
    parser.add_argument("--stories", action="store_true", help="print every attempt")
    arguments = parser.parse_args()
    jobs = [(kind, seed) for kind in arguments.kinds for seed in range(arguments.seeds)]
    results = []
    with ProcessPoolExecutor() as pool:
        for result in pool.map(compare, jobs):
            results.append(result)
            if arguments.stories:
                note(f"{result['kind']} {result['seed']}: {'mended' if result['mended'] else '-'} {result['story']}")
                note(f"    with memory: {result['story_with_memory']}")
            elif len(results) % arguments.seeds == 0:
                note(f"{result['kind']}: {arguments.seeds} platforms")
    whole = report(results, arguments.seeds)
    if arguments.json:
        print(json.dumps(whole))
        return
    for row in whole.pop("rows"):
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    print("\n".join(f"{name}: {value}" for name, value in whole.items()))


if __name__ == "__main__":
    main()
