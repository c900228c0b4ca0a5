"""Playbook: which role of parameter, in which direction, is worth trying for which symptom. A file, read once.

The one that ships is `playbook.toml`; an operator's extends it. It holds what engineers know beforehand; records and
memory speak on the case at hand.
"""

import tomllib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from rules.series import SILENCE, SUCCESS_RATE
from schema.declaration import DeclarationError, Problem, line_of
from schema.failure_kinds import FailureKind
from schema.messages.platform import Aim
from schema.mistakes import mistake
from schema.parameter_roles import Role
from schema.toml_lines import lines_by_path

SHIPPED = Path(__file__).with_name("playbook.toml")
# What a cycle can be about.
METRICS = (SUCCESS_RATE.name, SILENCE, *get_args(Aim))


class Direction(StrEnum):
    """Which way a change goes; `set` is another choice, the other position of a switch, or an earlier text."""

    UP = "up"
    DOWN = "down"
    SET = "set"


class Play(NamedTuple):
    """A kind of change."""

    role: Role
    direction: Direction


class Failure(NamedTuple):
    """Failures of one kind and reason beyond what is usual, as a share of all such."""

    kind: FailureKind
    reason: str
    share: float


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"expected a metric among {', '.join(METRICS)}, but {name} came{_meant(name, METRICS)}")
    return name


def _meant(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class SymptomRule(BaseModel):
    """How a symptom is recognised, and what to try for it."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    metrics: tuple[Annotated[str, AfterValidator(_known_metric)], ...] = ()
    kinds: tuple[FailureKind, ...] = ()
    reasons: tuple[Annotated[str, StringConstraints(to_lower=True, min_length=1)], ...] = ()
    plays: dict[str, Annotated[float, Field(ge=0, le=100, strict=True)]] = Field(default_factory=dict, alias="try")

    @field_validator("plays")
    @classmethod
    def _known_plays(cls, entries: dict[str, float]) -> dict[str, float]:
        for name in entries:
            play_of(name)
        return entries

    @property
    def is_of_failures(self) -> bool:
        """Whether it is recognised by how tasks fail; another one is by the metric alone."""
        return bool(self.kinds or self.reasons)

    def recognises(self, reason: str) -> bool:
        """Whether a reason holds one of the telling parts of words."""
        return any(part in reason.lower() for part in self.reasons)


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    symptoms: dict[str, SymptomRule]


class Playbook(NamedTuple):
    """Symptoms by name."""

    symptoms: Mapping[str, SymptomRule]

    def weights(self, metric: str, failures: Iterable[Failure]) -> dict[Play, float]:
        """What is worth trying for a metric: by its name alone, or by the share that each way of failing has.

        A failure is recognised by the words of its reason, or, where they tell nothing, by its kind.
        """
        rules = [rule for rule in self.symptoms.values() if metric in rule.metrics]
        shares = [(rule, 1.0) for rule in rules if not rule.is_of_failures]
        for failure in failures:
            fitting = [rule for rule in rules if rule.recognises(failure.reason)]
            fitting = fitting or [rule for rule in rules if failure.kind in rule.kinds]
            shares += [(rule, failure.share / len(fitting)) for rule in fitting]
        weights: dict[Play, float] = defaultdict(float)
        for rule, share in shares:
            for name, weight in rule.plays.items():
                weights[play_of(name)] += share * weight
        return dict(weights)

    def extended(self, other: "Playbook") -> "Playbook":
        """This playbook with another's symptoms; of one name, the other's words are added and its weights replace."""
        symptoms = dict(self.symptoms)
        for name, rule in other.symptoms.items():
            shipped = symptoms.get(name, SymptomRule())
            symptoms[name] = SymptomRule(
                metrics=tuple(dict.fromkeys((*shipped.metrics, *rule.metrics))),
                kinds=tuple(dict.fromkeys((*shipped.kinds, *rule.kinds))),
                reasons=tuple(dict.fromkeys((*shipped.reasons, *rule.reasons))),
                plays=shipped.plays | rule.plays,
            )
        return Playbook(symptoms)


@cache
def play_of(name: str) -> Play:
    """The play that an entry names: a role and a direction. Raises ValueError."""
    role, _, direction = name.partition(" ")
    if role not in list(Role) or direction not in list(Direction):
        roles, directions = ", ".join(Role), ", ".join(Direction)
        raise ValueError(f"expected a role ({roles}) and a direction ({directions}), but {name!r} came")
    return Play(Role(role), Direction(direction))


def read(path: Path = SHIPPED, extended: Playbook | None = None) -> Playbook:
    """The playbook of a file, which may extend another. Raises DeclarationError with all that is wrong in it.

    A symptom that the other one does not have needs metrics, or it is never recognised, and something to try.
    """
    try:
        text = path.read_text(encoding="utf-8")
        symptoms = _File.model_validate(tomllib.loads(text)).symptoms
    except ValidationError as error:
        raise DeclarationError(path, _problems(text, error)) from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: of text, of TOML, of a number without end
        raise DeclarationError(path, [Problem(None, "", f"expected a playbook in TOML, but {error}")]) from None

    known = extended.symptoms if extended else {}
    lines = lines_by_path(text)
    problems = []
    for name, rule in symptoms.items():
        if name not in known:
            line = line_of(("symptoms", name), lines)
            problems += [
                Problem(line, f"symptoms.{name}.{key}", what + _meant(name, known)) for key, what in _lacks(rule)
            ]
    if problems:
        raise DeclarationError(path, problems)
    return Playbook(symptoms)


def _lacks(rule: SymptomRule) -> list[tuple[str, str]]:
    """What a new symptom needs and this one does not have, by key, and what was expected."""
    lacks = []
    if not rule.metrics:
        lacks.append(("metrics", f"expected metrics of a new symptom ({', '.join(METRICS)}), but none came"))
    if not rule.plays:
        lacks.append(("try", 'expected what to try for a new symptom, such as "retries up" = 3, but nothing came'))
    return lacks


def _problems(text: str, error: ValidationError) -> list[Problem]:
    """The mistakes in a file, in the order of their lines."""
    lines = lines_by_path(text)
    problems = [
        Problem(line_of(details["loc"], lines), ".".join(map(str, details["loc"])), mistake(details))
        for details in error.errors(include_url=False)
    ]
    return sorted(problems, key=lambda problem: problem.line or 0)


@cache
def playbook(own: Path | None = None) -> Playbook:
    """The one that ships, extended by an operator's `own`. Raises DeclarationError like `read`."""
    shipped = read()
    return shipped if own is None else shipped.extended(read(own, shipped))
