"""Event Bus: one long-running workflow per subscriber hands it the outbox, in order, at least once."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.events import EventActivities

from rules.subscriptions import Subscriber
from schema import wire
from workflows.calls import call


@workflow.defn(name=wire.EVENT_BUS)
class EventBus:
    """Delivers until its history grows long, then continues as new: the cursor is in the database, nothing is lost."""

    @workflow.run
    async def run(self, subscriber: Subscriber) -> None:
        while not workflow.info().is_continue_as_new_suggested():
            await call(EventActivities.deliver, subscriber, summary=f"hand events to {subscriber.value}")
        workflow.continue_as_new(subscriber)
