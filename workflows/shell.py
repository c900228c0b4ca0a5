"""Shell: what every long-running story shares: phases with deadlines, waits, polls, notes, and how it ends.

A story is a coroutine of steps. Each step fills in its product in the state and is skipped where the product is there,
so a story that receives more messages than a history holds continues as new where it was.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from temporalio import workflow
from temporalio.common import SearchAttributeKey

from schema import display
from schema.messages.story import Act
from workflows.calls import start
from workflows.intake import Intake


class StoryOver(Exception):
    """The story ends here. Not an error: every ending but the last step's is reached by it."""

    def __init__(self, ending: StrEnum, reason: str) -> None:
        super().__init__(reason)
        self.ending = ending
        self.reason = reason


class Shell(Intake):
    """Runs a story. A subclass defines what stops it, what its page shows, and under what it is listed."""

    @abstractmethod
    def _raise_if_stopped(self) -> None:
        """Raise StoryOver where a person has ended the story."""

    @abstractmethod
    def _page(self) -> str:
        """What people see of it in the web UI, in markdown."""

    @abstractmethod
    def _entered(self) -> None:
        """List the phase that was just entered in the search attributes."""

    @property
    def _due_at(self) -> datetime | None:
        """When the current wait ends; None: it has no end."""
        return self._state.deadline

    @property
    def _on_hold(self) -> bool:
        """Whether a person holds the story, so that no condition but a stop ends a wait."""
        return False

    async def _run_to_its_end(self, story: Coroutine[Any, Any, None]) -> None:
        """Run a story to its end; `temporal workflow cancel` aborts it as a person does.

        A step that is being recorded is not torn: the story notices a cancellation at its next wait.
        """
        running = asyncio.create_task(story)
        while not running.done():
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                self._state.abort = Act(message_id="cancel", who="temporal", why="the workflow was cancelled")
        running.result()

    async def _until(self, condition: Callable[[], bool], summary: str, even_on_hold: bool = False) -> None:
        """Wait for a condition or the deadline, which may move meanwhile; raise StoryOver where a person stops it.

        On hold, only a condition with `even_on_hold` ends the wait.
        """

        def is_met() -> bool:
            return (even_on_hold or not self._on_hold) and condition()

        while not is_met() and not self._is_due():
            await self._wait(is_met, summary)
            self._raise_if_stopped()
            if workflow.info().is_continue_as_new_suggested() and not is_met():
                await workflow.wait_condition(workflow.all_handlers_finished)
                workflow.continue_as_new(args=[self._state.request, self._state])
        self._raise_if_stopped()
        self._state.window_open = False

    async def _wait(self, is_met: Callable[[], bool], summary: str) -> None:
        """Wait until the condition is met, the deadline passes or moves, or something interrupts the wait."""
        due_at = self._due_at
        before = self._what_moves_a_wait()
        with suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: is_met() or self._is_interrupted() or self._what_moves_a_wait() != before,
                timeout=None if due_at is None else due_at - workflow.now(),
                timeout_summary=display.summary(summary),
            )

    def _is_due(self) -> bool:
        return self._due_at is not None and workflow.now() >= self._due_at

    def _is_interrupted(self) -> bool:
        return self._state.abort is not None or workflow.info().is_continue_as_new_suggested()

    def _what_moves_a_wait(self) -> tuple[object, ...]:
        return self._state.deadline, self._on_hold, self._nudges

    async def _poll(
        self, activity: Callable[..., Any], *args: Any, summary: str, even_on_hold: bool = False
    ) -> tuple[bool, Any]:
        """Wait for an activity that ends when it has something to report."""
        return await self._await_activity(start(activity, *args, summary=summary), summary, even_on_hold)

    async def _await_activity(
        self, handle: workflow.ActivityHandle[Any], summary: str, even_on_hold: bool = False
    ) -> tuple[bool, Any]:
        """(True, the activity's result), or (False, None) at the deadline."""
        # Nothing awaits an abandoned activity: its error is retrieved here, or asyncio would complain.
        handle.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        try:
            await self._until(handle.done, f"deadline: {summary}", even_on_hold)
            return (True, await handle) if handle.done() else (False, None)
        finally:
            if not handle.done():
                handle.cancel()

    def _enter(self, phase: Any, window_s: float | None = None) -> None:
        """Enter a phase and open its window; a run that continues as new is in it already and keeps its deadline."""
        state = self._state
        if state.phase is not phase or state.deadline is None:
            state.phase = phase
            state.window_open = window_s is not None
            state.deadline = None if window_s is None else workflow.now() + timedelta(seconds=window_s)
            self._entered()
        self._show()

    def _note(self, line: str) -> None:
        """Add a line to the story, for people."""
        self._state.story.append(f"{workflow.now():%H:%M:%S} {line}")
        workflow.logger.info("story", extra={"line": line})
        self._show()

    def _list(self, attributes: dict[str, str]) -> None:
        """Set search attributes, by which people and agents find the workflow."""
        workflow.upsert_search_attributes(
            [SearchAttributeKey.for_keyword(name).value_set(value) for name, value in attributes.items()]
        )

    def _show(self) -> None:
        workflow.set_current_details(self._page())
