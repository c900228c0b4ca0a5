"""Type registration: an agent that brings its own executor adds a task type.

A workflow, because agents reach Temporal alone; a module of its own, because the sandbox executes a workflow's module
anew for every run, and tasks are many.
"""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.tasks import TaskActivities

from schema import wire
from schema.messages.tasks import TaskTypeListing, TypeRegistration
from workflows.calls import BUGS, call


@workflow.defn(name=wire.TYPE_REGISTRATION, failure_exception_types=BUGS)
class RegisterTaskType:
    """Checks a registration and writes it down."""

    @workflow.run
    async def run(self, registration: TypeRegistration) -> TaskTypeListing:
        listing: TaskTypeListing = await call(
            TaskActivities.register_task_type, registration, workflow.now(), summary=f"add {registration.name}"
        )
        return listing
