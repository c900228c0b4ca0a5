"""Train a random forest (Breiman 2001) on a data set of scikit-learn, and test it on rows that it has not seen.

Its quality is the held-out accuracy. A forest below the floor of its data set is an invalid result, however well it
classifies the rows it was trained on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from schema.messages.base import Value

from . import InvalidResult, TaskPayload, TaskResult, number, rng

DataSet = Literal["digits", "breast_cancer", "wine", "iris"]

TREES = 100  # unless the operator declares `ml_training.trees`
HELD_OUT = 0.3
# Under the worst of 150 splits with a hundred trees (.957, .918, .907, .889), and far above chance.
FLOORS: dict[DataSet, float] = {"digits": 0.92, "breast_cancer": 0.87, "wine": 0.83, "iris": 0.83}


class TrainingJob(TaskPayload):
    data_set: DataSet
    floor: Annotated[float, Field(ge=0, le=1)]
    seed: Annotated[int, Field(ge=0, lt=2**32)]


class MlTraining:
    name: ClassVar[str] = "ml_training"
    Payload: ClassVar[type[TrainingJob]] = TrainingJob

    def prepare(self, _cache: Path) -> None:
        """Load scikit-learn and its data, where tasks of this type run and nowhere else."""
        from sklearn import datasets, ensemble  # noqa: F401

        self.data_sets: dict[str, Any] = {name: getattr(datasets, f"load_{name}")(return_X_y=True) for name in FLOORS}

    def run(self, payload: TrainingJob, parameters: Mapping[str, Value]) -> TaskResult:
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.model_selection import train_test_split

        trees = round(number(parameters, "ml_training.trees", TREES))
        rows, labels = self.data_sets[payload.data_set]
        seen, unseen, seen_labels, unseen_labels = train_test_split(
            rows, labels, test_size=HELD_OUT, stratify=labels, random_state=payload.seed
        )
        forest = RandomForestClassifier(n_estimators=trees, random_state=payload.seed, n_jobs=1)
        forest.fit(seen, seen_labels)
        accuracy = float(forest.score(unseen, unseen_labels))
        if accuracy < payload.floor:
            raise InvalidResult(f"expected a held-out accuracy of at least {payload.floor:g}, but it is {accuracy:.3f}")
        return TaskResult(
            summary=f"{trees} trees classify {accuracy:.1%} of {len(unseen)} unseen rows of {payload.data_set}.",
            quality=round(accuracy, 4),
            details={"accuracy": accuracy, "trees": trees, "trained_on": len(seen), "tested_on": len(unseen)},
        )

    def sample(self, unit_id: str) -> TrainingJob:
        draw = rng(self.name, unit_id)
        data_set = draw.choice(tuple(FLOORS))
        return TrainingJob(data_set=data_set, floor=FLOORS[data_set], seed=draw.getrandbits(32))
