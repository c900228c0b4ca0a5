"""Writes the table of `docs/events.md` from the classes of the events.

python -m tests.events_page
"""

from pathlib import Path

from rules.subscriptions import subscriptions
from schema.messages.events import CLASSES, EventData
from schema.messages.platform import Notification, Platform, Webhook
from schema.wire import EventType

PAGE = Path(__file__).parent.parent / "docs" / "events.md"
BEGIN, END = "<!-- begin: python -m tests.events_page -->\n", "<!-- end -->\n"
HEAD = "| type | when | subject | data | who gets it |\n|---|---|---|---|---|\n"
# One of each kind that an operator may declare, as it is where nothing is said of `events`.
DECLARED = Platform(
    webhooks=(Webhook(name="audit", url="https://example.org/", secret_env="SECRET"),),
    notifications=(Notification(name="ops", url_env="OPS"),),
)


def readers(type: EventType) -> list[str]:
    return [name.partition(":")[0] for name, wanted in subscriptions(DECLARED).items() if type in wanted.types]


def row(type: EventType, data: type[EventData]) -> str:
    when = " ".join((data.__doc__ or "").split()).removesuffix(".")
    fields = ", ".join(f"`{name}`" for name in data.model_fields)
    return f"| `{type.value}` | {when} | {data.about} | {fields} | {', '.join(readers(type))} |\n"


def written(text: str) -> str:
    """The page with its table as the classes are now."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + HEAD + "".join(row(type, CLASSES[type]) for type in EventType) + END + after


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
