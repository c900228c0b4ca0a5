"""Paces: sets of defaults for the same rules. What `platform.toml` sets itself takes precedence.

At trial pace a person sees a whole cycle of a platform within ten minutes, at a few tasks a second. How sure a verdict
must be is the same at every pace; only how long anything waits differs.
"""

from collections.abc import Mapping
from enum import StrEnum


class Pace(StrEnum):
    PRODUCTION = "production"
    TRIAL = "trial"


# By section of `platform.toml`. What is not here is as in production.
TRIAL: Mapping[str, Mapping[str, int]] = {
    "cycle": {
        "bid_window_s": 30,  # agents scan every two seconds, and a person has time to watch
        "proposal_window_s": 60,  # an agent asks for a diagnosis first, and a language model takes its time
        "voting_window_s": 60,
        "late_quorum_extension_s": 15,
        "experiment_window_s": 1_200,  # a slight effect may take the ten minutes and as many again
        "max_tasks": 400,  # at two tasks a second a change that does nothing is over in 200 s
        "minimum_run_s": 30,  # three intervals
        "pending_cutoff_s": 300,  # an outcome that is missing counts as a failure: longer than a task takes
        "counter_poll_s": 2,
        "approval_window_s": 1_800,  # a person is near, but may be at lunch
        "bake_window_s": 90,  # some tens of tasks on the old value, at a holdback of a tenth
        "retry_cooldown_s": 30,
        "call_after_s": 1_800,  # three cycles of ten minutes
    },
    "market": {
        "award_window_s": 900,
        "result_window_s": 1_800,  # a task of an executor outside may take minutes
        "suspension_s": 600,
    },
    "observatory": {
        "interval_s": 10,  # a fault is seen within some of them, and each holds tens of tasks
        "baseline_s": 600,  # a fault of ten seconds is no part of what is normal, one of half an hour is
        "guard_s": 60,  # a baseline begins when it has passed: a longer one would delay the first detection
        "floor_window_s": 600,
    },
    "elevation": {"least_interval_s": 10},  # nothing is new before an interval has ended
}

# Seconds between the runs of a job, by its id in the cron registry.
TRIAL_EVERY_S: Mapping[str, int] = {
    "metrics_snapshot": 10,  # each interval is judged as soon as it has ended
    "autonomy_scan": 30,
    "award_due_bids": 60,  # no window counts as overdue earlier
    "standing_decay": 300,
    "consolidation": 300,  # what a cycle has taught is remembered before a person has stopped watching
}
