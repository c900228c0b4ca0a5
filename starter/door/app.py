"""The application: the routes behind the access check, what opens and closes with them, and how they are described."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from temporalio.contrib.pydantic import pydantic_data_converter

from activities.database import Database
from activities.door_keys import keys_in_force
from schema import connection
from schema.messages.door import DoorKey
from schema.messages.platform import Platform
from starter.client import NautilusClient
from starter.door import outcomes, parameters
from starter.door.access import OPEN, PAGE, Access, Keys
from starter.door.bodies import components
from starter.door.problems import Problem, ProblemDetails, problem, refuse
from starter.door.standing import account_reader
from starter.door.state import Door, Writer, door_of
from starter.door.tools import mcp_app
from starter.platform.database_store import DatabaseStore
from starter.platform.recorder import Recorder
from starter.platform.resolver import ParameterResolver

log = structlog.get_logger()

# A configuration this old is resolved from, but the door is not ready: a balancer should prefer another one.
STALE_S = 60.0
# Exposures that are not written by then are left out: the store is away, and whoever stops the door will soon kill it.
CLOSE_S = 5.0
DESCRIPTION = """Parameters, outcomes, traces and agents, for all who reach neither the database nor Temporal.

A key comes from `nautilus door key create`, and goes into `Authorization: Bearer nautilus_...` or `X-API-Key`.
Agents use `/mcp` (Model Context Protocol). Refusals are problem details (RFC 9457) with one line:
what was expected, what came."""


class State(BaseModel):
    """Whether the door works, and how old the configuration is that it resolves from."""

    status: str
    configuration_age_s: float | None = None


def application(database: Database, platform: Platform, refresh_s: float = 5.0) -> FastAPI:
    """The door on a database that exists; it opens with the application's lifespan."""
    keys = Keys(lambda: keys_in_force(database))

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            store = DatabaseStore(database, platform)
            writer = Writer()
            stack.callback(writer.close)
            resolver = stack.enter_context(ParameterResolver(store, refresh_s))
            recorder = stack.enter_context(Recorder(store, close_s=CLOSE_S))
            app.state.door = Door(database, platform, keys, resolver, recorder, writer)
            # Lazy: a door whose Temporal is away is open to platforms. And without keys: agents sign on their side.
            temporal = await connection.connect(lazy=True, data_converter=pydantic_data_converter)
            app.state.tools = mcp_app(NautilusClient(temporal), account_reader(database), _agent, platform.door.hosts)
            await stack.enter_async_context(app.state.tools.run())
            log.info("door.opened", parameters=len(platform.parameters))
            yield
        log.info("door.closed")

    # Its page of routes comes from this machine: a script of somebody else's would see the key that is typed there.
    app = FastAPIOffline(
        title="Nautilus, the door",
        lifespan=opened,
        redoc_url=None,
        static_url=f"{PAGE}files",
        redirect_slashes=False,  # behind a proxy to http://, where the key would be sent in the clear
    )
    app.add_middleware(Access, keys=keys, rules=platform.door)
    app.add_exception_handler(Problem, refuse)
    app.add_exception_handler(HTTPException, _unknown)
    app.include_router(parameters.router)
    app.include_router(outcomes.router)
    app.router.routes.append(Route("/mcp", Tools(), include_in_schema=False))
    app.add_api_route("/", front, include_in_schema=False)
    app.add_api_route("/health", health, tags=["operation"], response_model_exclude_none=True)
    app.add_api_route("/ready", ready, tags=["operation"], responses={503: {"model": State}})
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


class Tools:
    """The agents' tools, as long as the door is open."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["app"].state.tools(scope, receive, send)


def _agent(request: Request) -> str:
    """The agent that a request's key speaks for; the access check has let in no other key."""
    key: DoorKey = request.state.key
    return key.holder


async def front() -> Response:
    """Whoever opens the door in a browser gets the page of its routes.

    A relative address: behind a proxy an absolute one would name another scheme, host or path.
    """
    return RedirectResponse(PAGE.strip("/"))


async def health() -> State:
    """The process answers."""
    return State(status="alive")


async def ready(request: Request) -> Response:
    """The configuration is fresh and the keys can be read; 503 where not."""
    age_s = round(door_of(request).resolver.age_s, 1)
    is_ready = age_s < STALE_S
    state = State(status="ready" if is_ready else "stale", configuration_age_s=age_s)
    return JSONResponse(state.model_dump(), HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE)


async def _unknown(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    came = f"{request.method} {request.url.path}"
    return problem(error.status_code, f"expected a route of the door (/docs has them), but {came} came", error.headers)


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI's description, with the bodies that the routes parse themselves, and the keys."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
        known = schema.setdefault("components", {}).setdefault("schemas", {})
        bodies = components(parameters.EvaluationBody, outcomes.OutcomeBatch, outcomes.ExposureBatch, ProblemDetails)
        known |= {name: body for name, body in bodies.items() if name not in known}
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in schema["paths"].items():
            if path not in OPEN:
                for operation in operations.values():
                    operation["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
