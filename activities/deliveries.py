"""Deliveries: the three ways in which a subscriber gets an event, behind one interface.

`cycles` starts a workflow; a webhook is CloudEvents 1.0 JSON, signed by the Standard Webhooks scheme; a notification
goes through Apprise. A delivery that fails raises `Undeliverable` where a retry is of no use, and `Later` or any other
exception where it is. The libraries are those of the extra `deliveries`, imported where they are used.
"""

import asyncio
import base64
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from datetime import UTC, datetime
from difflib import get_close_matches
from email.utils import parsedate_to_datetime
from ssl import SSLContext
from typing import TYPE_CHECKING

from sqlmodel import col, select
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError

from activities.database import Database
from rules.notices import notice
from rules.subscriptions import CYCLES, KEYS
from schema import wire
from schema.connection import is_missing
from schema.display import markdown, one_line
from schema.messages.cycle import CycleRequest, workflow_id
from schema.messages.events import AnomalyDetected, read
from schema.messages.outbox import Event
from schema.messages.platform import Notification, Platform, Webhook
from schema.messages.tasks import task_workflow_id
from schema.tables.market import AgentRow, MetaTaskRow, TaskRow

if TYPE_CHECKING:
    from apprise import Apprise
    from httpx import AsyncClient, Response
    from standardwebhooks import Webhook as Signer

Deliver = Callable[[Event], Awaitable[None]]

# Of the reason of an anomaly, on the page of its cycle.
LONGEST_DETAILS = 2_000
# A receiver may ask for a later retry, within bounds.
LONGEST_RETRY_AFTER_S = 3_600.0
# The statuses under 500 that are worth a retry; every other one is final.
TRANSIENT = frozenset({408, 425, 429})
# Reading the body of a response only keeps the connection alive; nothing in it is used.
RESPONSE_BYTES = 65_536
NOTIFICATION_TIMEOUT_S = 20
# Of what went wrong, kept with the event for a person to read.
LONGEST_REASON = 300
# Thousands of workflows may have to be signalled within the time of one delivery.
SIGNALS_AT_ONCE = 32


class Undeliverable(Exception):
    """The subscriber will never take this event as it is: a dead letter at once."""


class Misconfigured(ValueError):
    """Nothing can be sent to the subscriber before a person fixes its secret; the message holds nothing of it."""


class Later(Exception):
    """The subscriber may take the event later; not before `after_s` seconds, where it asked for that."""

    def __init__(self, reason: str, after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.after_s = after_s


class Deliveries:
    """Opens the delivery to a subscriber; secrets come from the environment, when they are needed."""

    def __init__(
        self, client: Client, platform: Platform, database: Database, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._client = client
        self._database = database
        self._environment = environment
        self._webhooks = {f"webhook:{declared.name}": declared for declared in platform.webhooks}
        self._notifications = {f"notification:{declared.name}": declared for declared in platform.notifications}

    def open(self, subscriber: str) -> AbstractAsyncContextManager[Deliver]:
        """What delivers to `subscriber`, for the length of the context; raises Misconfigured."""
        if subscriber == CYCLES:
            return nullcontext(self._start_cycle)
        if subscriber == KEYS:
            return nullcontext(self._signal_workflows)
        if subscriber in self._webhooks:
            return self._webhook(self._webhooks[subscriber])
        return self._notification(self._notifications[subscriber])

    async def _start_cycle(self, event: Event) -> None:
        """Start the cycle on an anomaly whose attempt is due, unless one on the subject is running."""
        detected = read(event)
        if not isinstance(detected, AnomalyDetected):
            raise Undeliverable(f"expected an event with an anomaly's fields, but {event.type.value} came with others")
        if detected.attempt is None:
            return  # the platform only observes

        anomaly = detected.anomaly
        request = CycleRequest(request_id=event.key, anomaly=anomaly)
        await self._client.start_workflow(
            wire.IMPROVEMENT_CYCLE,
            request,
            id=workflow_id(anomaly.subject),
            task_queue=wire.TASK_QUEUE,
            # The id is the lock: a second observer of one anomaly joins the cycle that runs.
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            # An ended cycle frees the id. A repeated event then starts a run that finds its request done, and ends.
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            static_summary=f"Improvement cycle: {anomaly.metric} of {anomaly.task_type or 'the platform'}",
            static_details=markdown(anomaly.reason, LONGEST_DETAILS),
        )

    async def _signal_workflows(self, event: Event) -> None:
        """Have every workflow that takes agents' messages reload their keys; one that opens later has the new keys."""
        slots = asyncio.Semaphore(SIGNALS_AT_ONCE)

        async def send(workflow: str) -> None:
            async with slots:
                try:
                    await self._client.get_workflow_handle(workflow).signal(wire.RELOAD_KEYS)
                except RPCError as error:
                    if not is_missing(error):  # terminated, or ended in this moment
                        raise

        await asyncio.gather(*map(send, await asyncio.to_thread(self._workflows_to_signal)))

    def _workflows_to_signal(self) -> list[str]:
        """The open cycles, and the open tasks whose agent has its own executor or is not chosen yet.

        A task of a built-in agent takes no agent's message, and there may be thousands of those.
        """
        cycles = select(MetaTaskRow.workflow_id).where(col(MetaTaskRow.ended_at).is_(None))
        built_in = select(AgentRow.agent_id).where(AgentRow.built_in)
        tasks = select(TaskRow.task_id).where(
            col(TaskRow.ended_at).is_(None), col(TaskRow.agent_id).is_(None) | col(TaskRow.agent_id).not_in(built_in)
        )
        with self._database.reading() as session:
            return [*session.exec(cycles), *(task_workflow_id(task) for task in session.exec(tasks))]

    @asynccontextmanager
    async def _webhook(self, declared: Webhook) -> AsyncIterator[Deliver]:
        """Posts events as signed CloudEvents, over one pool of connections; raises what `judge` makes of an answer."""
        import httpx

        signers = _signers(declared, self._environment)
        source = f"/nautilus/{self._client.namespace}"

        async def post(event: Event) -> None:
            now = datetime.now(UTC)
            body = envelope(event, source)
            response = await _posted(http, declared, body, _headers(event.key, now, body, signers))
            judge(response.status_code, response.headers.get("retry-after"), now)

        async with httpx.AsyncClient(timeout=declared.timeout_s, verify=_tls()) as http:
            yield post

    @asynccontextmanager
    async def _notification(self, declared: Notification) -> AsyncIterator[Deliver]:
        """Sends notices to the services that the target's URLs name; raises Later where one of them did not accept."""
        # Apprise's hundred plug-ins take a second to load, which must not block the event loop.
        target = await asyncio.to_thread(_target, declared, self._environment)

        async def notify(event: Event) -> None:
            text = notice(event)
            result = await target.async_notify(
                title=text.title, body=text.text, body_format="text", timeout=NOTIFICATION_TIMEOUT_S
            )
            if not result:
                raise Later("; ".join(entry.message for entry in result.logs()) or result.status.name.lower())

        yield notify


def _headers(key: str, now: datetime, body: str, signers: "Sequence[Signer]") -> dict[str, str]:
    """The headers of Standard Webhooks; several secrets give several signatures, of which one must be known."""
    return {
        "content-type": "application/cloudevents+json; charset=utf-8",
        "webhook-id": key,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signer.sign(key, now, body) for signer in signers),
    }


async def _posted(http: "AsyncClient", declared: Webhook, body: str, headers: Mapping[str, str]) -> "Response":
    """The receiver's response; raises Later where none comes in time."""
    import httpx

    try:
        # The library's own limits are for each step of a request, and a response may have very many.
        async with (
            asyncio.timeout(declared.timeout_s),
            http.stream("POST", declared.url, content=body, headers=headers) as response,
        ):
            await _drain(response)
    except TimeoutError:
        raise Later(f"expected an answer within {declared.timeout_s:g} s, but none came") from None
    except httpx.TransportError as error:
        # It quotes what the receiver sent.
        reason = one_line(str(error), LONGEST_REASON)
        raise Later(f"expected an answer, but {type(error).__name__} came: {reason}") from None
    return response


async def _drain(response: "Response") -> None:
    """Read the body, so that the connection can be used again, unless it is too long for that."""
    received_bytes = 0
    async for chunk in response.aiter_raw():
        received_bytes += len(chunk)
        if received_bytes > RESPONSE_BYTES:
            break


def mistakes(platform: Platform, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What is wrong with the secrets of declared subscribers, by subscriber; nothing is sent to find out."""
    checks: dict[str, Callable[[], object]] = {}
    for webhook in platform.webhooks:
        checks[f"webhook:{webhook.name}"] = functools.partial(_signers, webhook, environment)
    for notification in platform.notifications:
        checks[f"notification:{notification.name}"] = functools.partial(_target, notification, environment)
    mistakes_by_subscriber = {}
    for subscriber, check in checks.items():
        try:
            check()
        except Misconfigured as mistake:
            mistakes_by_subscriber[subscriber] = str(mistake)
        except ImportError as error:
            mistakes_by_subscriber[subscriber] = f"expected the extra `deliveries`, but {error}"
    return mistakes_by_subscriber


def _signers(declared: Webhook, environment: Mapping[str, str]) -> "list[Signer]":
    from standardwebhooks import Webhook as Signer

    secrets = _secret(declared.secret_env, f"webhook {declared.name}", environment).split()
    for number, secret in enumerate(secrets, 1):
        mistake = _secret_mistake(secret)
        if mistake is not None:
            which = f"secret {number} of {len(secrets)} in " if len(secrets) > 1 else ""
            expected = f"expected whsec_ and 24 to 64 bytes in base64 in {which}{declared.secret_env}"
            raise Misconfigured(f"{expected}, but {mistake}")
    return [Signer(secret) for secret in secrets]


def _secret_mistake(secret: str) -> str | None:
    """What is wrong with a secret of Standard Webhooks, or None. The library would sign with another key instead."""
    head, prefix, encoded = secret.partition("whsec_")
    if head or not prefix:
        return "text without whsec_ came"
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        key = b""
    if not key or base64.b64encode(key).decode() != encoded:
        return "what follows whsec_ is not base64 (with + and /, and with its padding)"
    return None if 24 <= len(key) <= 64 else f"{len(key)} bytes came"


def _target(declared: Notification, environment: Mapping[str, str]) -> "Apprise":
    """The services that the declared URLs name; raises Misconfigured for a URL that names none."""
    import apprise
    from apprise.utils.parse import parse_urls

    # A redirected POST goes to another server, or loses its text, and still counts as delivered.
    target = apprise.Apprise(asset=apprise.AppriseAsset(http_redirects=False))
    urls = parse_urls(_secret(declared.url_env, f"notification {declared.name}", environment))
    for number, url in enumerate(urls, 1):
        if not target.add(url):
            which = declared.url_env
            if len(urls) > 1:
                which = f"URL {number} of {len(urls)} in {which}"
            raise Misconfigured(f"{which}: {_url_mistake(url)}")
    for service in target:
        service.redirects = False  # whatever its URL says
        service.overflow_mode = apprise.OverflowMode.SPLIT  # a long report arrives in parts, and all of it
    return target


def _url_mistake(url: str) -> str:
    """What is wrong with a URL that Apprise refuses. All that follows its scheme may be a secret."""
    from apprise import NotificationManager

    services = NotificationManager()
    scheme, separator, _ = url.partition("://")
    if not separator:
        return "expected an Apprise URL such as tgram://BOT_TOKEN/CHAT_ID, but text without :// came"
    if scheme not in services:
        close = get_close_matches(scheme, services.schemas(), 1)
        meant = f"; did you mean {close[0]}://?" if close else ""
        return f"expected a scheme that Apprise knows, but {scheme[:20]}:// came{meant}"
    service = services[scheme]
    form = min(service.templates, key=len).replace("{schema}", scheme)
    return f"expected the form {form}, but what follows {scheme}:// has another; see {service.setup_url}"


def _secret(variable: str, what: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable, "").strip()
    if not value:
        raise Misconfigured(f"expected the secret of {what} in {variable}, but the worker has no such variable")
    return value


def envelope(event: Event, source: str) -> str:
    """The event as CloudEvents 1.0 JSON. `id` is its natural key; `sequence` grows within a subject."""
    from cloudevents.core.formats.json import JSONFormat
    from cloudevents.core.v1.event import CloudEvent

    attributes = {
        "id": event.key,
        "source": source,
        "type": event.type.value,
        "subject": event.subject,
        "time": event.at,
        "datacontenttype": "application/json",
        # An extension of the specification's own registry: text whose order is the order of the events.
        "sequence": f"{event.sequence:020}",
    }
    return JSONFormat().write(CloudEvent(attributes, event.data)).decode()


def judge(status: int, retry_after: str | None, now: datetime) -> None:
    """Return where the receiver took the event; raise Undeliverable or Later otherwise.

    410 (Gone) is a refusal like any other and ends no subscription: the operator declares those.
    """
    if 200 <= status < 300:
        return
    reason = f"expected a status of 2xx, but {status} came"
    if status < 500 and status not in TRANSIENT:
        raise Undeliverable(reason)
    raise Later(reason, min(LONGEST_RETRY_AFTER_S, _seconds(retry_after or "", now)))


def _seconds(retry_after: str, now: datetime) -> float:
    """Retry-After in seconds: a number or a date (RFC 9110, 10.2.3); 0 for anything else."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after).astimezone(UTC) - now).total_seconds())
    except (ValueError, OverflowError):
        return 0.0


@functools.cache
def _tls() -> SSLContext:
    """The TLS context, loaded once: the certificate authorities take longer to load than many a delivery."""
    import httpx

    return httpx.create_ssl_context()
