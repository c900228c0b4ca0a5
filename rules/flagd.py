"""flagd: a configuration as flagd's flag definitions, from which any in-process provider resolves the arms that we do.

The weights are those of `rules.assignment`; nothing else here may decide who gets what. Ids of experiments and tasks
are ASCII (`Identifier`): flagd's evaluators hash other text each in its own way. The format is flagd's:
https://flagd.dev/reference/flag-definitions/ and, for `fractional`, https://flagd.dev/reference/custom-operations/.
"""

from typing import Any

from rules.assignment import weights
from schema.messages.experiment import IN_FORCE, Configuration, RunningExperiment, Variant

SCHEMA = "https://flagd.dev/schema/v0/flags.json"


def flags(configuration: Configuration) -> dict[str, Any]:
    """The document: one flag for each parameter, in the order of their keys, so that the same is always alike."""
    experiments = {experiment.parameter: experiment for experiment in configuration.experiments}
    definitions = {key: _flag(configuration, key, experiments.get(key)) for key in sorted(configuration.values)}
    return {"$schema": SCHEMA, "flags": definitions}


def _flag(configuration: Configuration, key: str, experiment: RunningExperiment | None) -> dict[str, Any]:
    variants = {IN_FORCE: configuration.values[key]}
    metadata: dict[str, Any] = {"version": configuration.versions[key]}
    flag: dict[str, Any] = {"state": "ENABLED", "variants": variants, "defaultVariant": IN_FORCE, "metadata": metadata}
    if experiment is not None:
        variants |= {Variant.CONTROL.value: experiment.control, Variant.TREATMENT.value: experiment.treatment}
        metadata["experiment"] = experiment.experiment_id
        flag["targeting"] = _targeting(experiment)
    return flag


def _targeting(experiment: RunningExperiment) -> dict[str, Any]:
    """The arm by experiment and task; null, which is the default variant, where a caller names no task.

    Without the condition all of those would be hashed as one task, and be in one arm.
    """
    control, unexposed, treatment = weights(experiment.exposure, experiment.treatment_share)
    ring = [[Variant.CONTROL.value, control], [IN_FORCE, unexposed], [Variant.TREATMENT.value, treatment]]
    task = {"var": "targetingKey"}
    split = {"fractional": [{"cat": [experiment.experiment_id, task]}, *[part for part in ring if part[1]]]}
    return {"if": [task, split, None]}
