"""The codec server: decrypts for people what the web UI and the `temporal` command show, and encrypts what they send.

It speaks Temporal's remote codec protocol (POST /decode and /encode). Whoever may call it reads everything, so it asks
for a token, or answers this machine alone; and it never answers the page of another site, which a browser on this
machine could be made to show.
"""

import hmac
from collections.abc import Callable, Sequence
from http import HTTPStatus

import structlog
from google.protobuf.json_format import MessageToJson, Parse, ParseError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from temporalio.api.common.v1 import Payload, Payloads

from schema.codec import CannotDecrypt, Keyring

log = structlog.get_logger()

# A page of the web UI decodes a page of history at once; Temporal takes no message of more than 4 MB.
LARGEST_BODY = 32_000_000
LOCAL = ("127.0.0.1", "localhost")
HEADERS = ("authorization", "content-type", "x-namespace", "caller-type")


def application(keyring: Keyring, origins: Sequence[str], token: str = "") -> Starlette:
    """The server, for pages of these origins. Without a token it answers to this machine's own names alone."""

    async def decode(request: Request) -> Response:
        return await _answer(request, lambda payload: _decrypted(keyring, payload))

    async def encode(request: Request) -> Response:
        return await _answer(request, keyring.encrypted)

    async def _answer(request: Request, change: Callable[[Payload], Payload]) -> Response:
        if (refused := _refusal(request, origins, token)) is not None:
            return refused
        try:
            payloads = Parse(await _body(request), Payloads())
        except (ParseError, RecursionError, ValueError):
            expected = 'expected {"payloads": [...]} as JSON'
            return PlainTextResponse(f"{expected}, up to {LARGEST_BODY} bytes", HTTPStatus.BAD_REQUEST)
        except ClientDisconnect:
            return PlainTextResponse("", HTTPStatus.BAD_REQUEST)
        answer = Payloads(payloads=[change(payload) for payload in payloads.payloads])
        return Response(MessageToJson(answer, indent=None), media_type="application/json")

    cors = Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["POST"],
        allow_headers=list(HEADERS),
        allow_private_network=True,  # of a web UI that is elsewhere, in a browser that is here
    )
    # Otherwise a site could give its own name this machine's address, and be of the same origin.
    own_names = [] if token else [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL), www_redirect=False)]
    routes = [Route("/decode", decode, methods=["POST"]), Route("/encode", encode, methods=["POST"])]
    return Starlette(routes=routes, middleware=[*own_names, cors])


def _refusal(request: Request, origins: Sequence[str], token: str) -> Response | None:
    """Why a request is not answered, or None."""
    origin = request.headers.get("origin")
    if origin is not None and origin not in origins:
        return PlainTextResponse(f"expected a page of {', '.join(origins)}", HTTPStatus.FORBIDDEN)
    given = request.headers.get("authorization", "")
    if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return PlainTextResponse("expected 'Authorization: Bearer TOKEN'", HTTPStatus.UNAUTHORIZED)
    return None


async def _body(request: Request) -> bytes:
    """The whole body. Raises ValueError where it is too large, before the rest is read."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise ValueError("too large")
    return bytes(body)


def _decrypted(keyring: Keyring, payload: Payload) -> Payload:
    """The payload in plain; as it is where there is no key for it, so that a page shows what can be shown."""
    try:
        return keyring.decrypted(payload)
    except CannotDecrypt as error:
        log.warning("codec.cannot_decrypt", error=str(error))
        return payload
