"""Log facts: what a log line names that is about a workflow, spelled alike in every process."""

from collections.abc import Mapping

from schema.messages.cycle import workflow_id as cycle_workflow_id


def about(workflow_id: str, run_id: str) -> Mapping[str, str]:
    """The workflow of a line; of a cycle also as `cycle_id`, the id that commands and the web UI take."""
    facts = {"workflow_id": workflow_id, "run_id": run_id}
    return facts | {"cycle_id": workflow_id} if workflow_id.startswith(cycle_workflow_id("")) else facts
