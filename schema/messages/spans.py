"""Spans of OpenTelemetry that are tasks, as `platform.toml` declares them. `rules.spans` makes outcomes of them."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from .base import Declaration, Value

# What distinguishes one mapping from another.
SELECTORS = ("operation", "name", "name_prefix", "when")
MOST_SELECTED, MOST_KEPT = 16, 8

# The name of a span, or of an operation.
SpanName = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$", max_length=200)]
# An attribute that is kept becomes one of the outcome: its name must begin with a letter there.
AttributeKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][!-~]*$", max_length=64)]


class SpanMapping(Declaration):
    """Spans that are tasks of a type: those that agree in all of operation, name and the values of `when`.

    `operation` is gen_ai.operation.name. `task_id`, `cost` and `quality` name the attribute with the value; the task id
    may also be `trace_id`. `keep` names further attributes of the span that become the outcome's.
    """

    operation: SpanName | None = None
    name: SpanName | None = None
    name_prefix: SpanName | None = None
    when: dict[AttributeKey, Value] = Field(default_factory=dict, max_length=MOST_SELECTED)
    task_id: AttributeKey | None = None
    cost: AttributeKey | None = None
    quality: AttributeKey | None = None
    keep: tuple[AttributeKey, ...] = Field(default=(), max_length=MOST_KEPT)

    @model_validator(mode="after")
    def _selects(self) -> Self:
        if not any(getattr(self, selector) for selector in SELECTORS):
            raise ValueError(f"expected at least one of {', '.join(SELECTORS)}, or every span would be a task")
        if self.name and self.name_prefix:
            raise ValueError("expected a name or a name_prefix, but both came")
        return self
