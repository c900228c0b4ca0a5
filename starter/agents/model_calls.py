"""Model calls: one question to a language model, with a time limit, a token limit and a budget for the whole run.

Every failure of a model or of its provider (a refusal, nonsense, a time-out, an error) ends as None and one line in the
log. A call runs in a thread and an event loop of its own: who asks may be synchronous, and a provider's client never
outlives the loop that it belongs to.

Must never: raise for what a model or provider does, ask without room in the budget, or log a key.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

import structlog
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.exceptions import ModelHTTPError, ModelRequestTimeout, ModelTimeoutError
from pydantic_ai.models import Model
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RunUsage, UsageLimits

from rules.redaction import redacted
from schema.display import one_line

log = structlog.get_logger()
Answer = TypeVar("Answer", bound=BaseModel)

# An answer that is no answer may be given once more, with what is wrong with it.
REQUESTS = 2
# Of one request; what a model thinks before it answers counts.
MOST_OUTPUT_TOKENS = 12_000
# What a provider adds to a question: the schema of the answer, and its own framing.
FRAME_TOKENS = 4_000
LONGEST_ERROR = 300
# Answers that are being waited for at once.
AT_ONCE = 4


@dataclass(frozen=True)
class Asked(Generic[Answer]):
    """A question, and what kind of answer it wants. `objection` says what is wrong with an answer; it may be mended."""

    instructions: str
    text: str
    kind: type[Answer]
    objection: Callable[[Answer], str | None] = lambda _: None

    @property
    def most_tokens(self) -> int:
        """What it costs at most: no tokenizer makes more tokens than bytes, and a second request repeats the first."""
        asked = len(self.instructions.encode()) + len(self.text.encode()) + FRAME_TOKENS
        return REQUESTS * (asked + MOST_OUTPUT_TOKENS) + (REQUESTS - 1) * MOST_OUTPUT_TOKENS


@dataclass
class Budget:
    """The tokens that a run of an agent may use. A call reserves what it costs at most, so the sum stays below it."""

    tokens: int
    spent: int = 0
    reserved: int = 0
    _lock: Lock = field(default_factory=Lock)

    def reserve(self, tokens: int) -> bool:
        with self._lock:
            if self.spent + self.reserved + tokens > self.tokens:
                return False
            self.reserved += tokens
            return True

    def settle(self, reserved: int, used: int) -> None:
        with self._lock:
            self.reserved -= reserved
            self.spent += used


class ModelCalls:
    """Asks the models that `make_model` makes, one for each call."""

    def __init__(self, make_model: Callable[[], Model], name: str, budget: Budget, timeout_s: float) -> None:
        self.name = name
        self.budget = budget
        self._make_model = make_model
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(AT_ONCE, "language-model")
        self._has_said_spent = False
        self._running: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[object]]] = set()
        self._lock = Lock()

    def ask(self, asked: Asked[Answer], **about: str) -> "Future[Answer | None]":
        """The answer to come, None where there is none. `about` is what the log's line names."""
        if not self.budget.reserve(asked.most_tokens):
            self._say_spent(about)
            nothing: Future[Answer | None] = Future()
            nothing.set_result(None)
            return nothing
        return self._threads.submit(self._answer, asked, about)

    def close(self) -> None:
        """End the calls that are under way, as calls without an answer."""
        with self._lock:
            for loop, task in self._running:
                loop.call_soon_threadsafe(task.cancel)
        self._threads.shutdown(cancel_futures=True)

    def _say_spent(self, about: dict[str, str]) -> None:
        if not self._has_said_spent:
            self._has_said_spent = True
            log.warning("language_model.budget_spent", spent=self.budget.spent, budget=self.budget.tokens, **about)

    def _answer(self, asked: Asked[Answer], about: dict[str, str]) -> Answer | None:
        usage = RunUsage()
        used = asked.most_tokens
        try:
            answer = asyncio.run(self._running_until_closed(asked, usage))
        except asyncio.CancelledError:
            return None
        except Exception as error:  # noqa: BLE001 - providers' libraries may raise anything, and no cycle waits for them
            used = used if _may_have_cost(error, usage) else usage.total_tokens
            line = one_line(redacted(str(error)[: 4 * LONGEST_ERROR]), LONGEST_ERROR)
            log.warning("language_model.failed", error=f"{type(error).__name__}: {line}", tokens=used, **about)
            return None
        else:
            used = used if usage.unmeasured_requests else usage.total_tokens
            log.info("language_model.answered", model=self.name, tokens=used, **about)
            return answer
        finally:
            self.budget.settle(asked.most_tokens, used)

    async def _running_until_closed(self, asked: Asked[Answer], usage: RunUsage) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        running = (asyncio.get_running_loop(), task)
        with self._lock:
            self._running.add(running)
        try:
            return await self._run(asked, usage)
        finally:
            with self._lock:
                self._running.remove(running)

    async def _run(self, asked: Asked[Answer], usage: RunUsage) -> Answer:
        # A failed request is made again at the agent's next visit: the provider's client would not count its own.
        settings = ModelSettings(
            max_tokens=MOST_OUTPUT_TOKENS, timeout=self._timeout_s, request_timeout=self._timeout_s, max_retries=0
        )
        agent: Agent[None, Answer] = Agent(
            self._make_model(),
            deps_type=type(None),
            output_type=asked.kind,
            instructions=asked.instructions,
            model_settings=settings,
            retries={"tools": 0, "output": REQUESTS - 1},
        )

        @agent.output_validator
        def mendable(context: RunContext[None], answer: Answer) -> Answer:
            objection = None if context.last_attempt else asked.objection(answer)
            if objection is not None:
                raise ModelRetry(objection)
            return answer

        limits = UsageLimits(request_limit=REQUESTS, total_tokens_limit=asked.most_tokens)
        async with agent:
            result = await agent.run(asked.text, usage=usage, usage_limits=limits)
        return result.output


def _may_have_cost(error: Exception, usage: RunUsage) -> bool:
    """Whether a request that failed may be billed, though nobody said for how many tokens."""
    if usage.unmeasured_requests or isinstance(error, TimeoutError | ModelRequestTimeout | ModelTimeoutError):
        return True
    return not isinstance(error, ModelHTTPError) and not usage.requests
