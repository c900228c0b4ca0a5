"""How our processes reach Temporal: by the SDK's own configuration (temporal.toml and TEMPORAL_* variables)."""

from dataclasses import replace
from typing import Any

from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    QueryWorkflowInput,
    WorkflowQueryFailedError,
)
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError, RPCStatusCode

from schema import codec, wire

# In the SDK's error where nothing listens.
UNREACHABLE = "ConnectError"
# What its core says of a connection that fails, in words for a person; the first that it says is the reason.
REASONS = {
    "dns error": "its name cannot be looked up",
    "InvalidContentType": "what listens there speaks no TLS, which TEMPORAL_TLS or an API key asks for",
    "NotValidForName": "its certificate is for another name, see TEMPORAL_TLS_SERVER_NAME",
    "InvalidCertificate": "its certificate is not trusted, see TEMPORAL_TLS_SERVER_CA_CERT_PATH and _SERVER_NAME",
    "KeyMismatch": "TEMPORAL_TLS_CLIENT_KEY_PATH is not the key of TEMPORAL_TLS_CLIENT_CERT_PATH",
    "code: Unauthenticated": "it does not accept this client, see TEMPORAL_API_KEY",
    "code: PermissionDenied": "this client may not, see TEMPORAL_API_KEY and TEMPORAL_NAMESPACE",
    # With TLS 1.3, a client certificate that is missing or refused looks the same; how it ends is a matter of chance.
    "transport error": "what listens there ends the connection, see TEMPORAL_TLS and TEMPORAL_TLS_CLIENT_CERT_PATH",
    "connection closed": "what listens there ends the connection, see TEMPORAL_TLS and TEMPORAL_TLS_CLIENT_CERT_PATH",
}
# A query that is asked again waits for the workflow's task, so it is rare that the second one fails.
ATTEMPTS = 3


class AsksAgain(Interceptor):
    """Repeats a client's queries that came too early, or to a worker that had no time."""

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _AsksAgain(next)


class _AsksAgain(OutboundInterceptor):
    async def query_workflow(self, input: QueryWorkflowInput) -> Any:
        """Raises WorkflowQueryFailedError, with the reason of the last attempt where none was answered."""
        for _ in range(ATTEMPTS - 1):
            try:
                return await super().query_workflow(input)
            except WorkflowQueryFailedError as error:
                if error.message not in (wire.ASK_AGAIN, wire.STARVED):
                    raise
        return await super().query_workflow(input)


async def connect(address: str = "", **options: Any) -> Client:
    """A client of the configured server, or of the one at `address`; `options` are those of `Client.connect`.

    The namespace is ours unless the configuration names another. It reads and writes our messages, with the codec keys
    of this process, unless a plugin of the options does. Raises ConnectionError where no server answers or lets us in,
    and KeysError.
    """
    if "plugins" not in options:
        options["data_converter"] = data_converter()
    options["interceptors"] = [*options.get("interceptors", ()), AsksAgain()]
    config = ClientConfig.load_client_connect_config()
    if address and config.get("target_host") != address:
        config = {"target_host": address}
    config.setdefault("namespace", wire.NAMESPACE)
    config.setdefault("target_host", "localhost:7233")
    try:
        return await Client.connect(**config, **options)
    except RuntimeError as error:
        why = next((f": {said}" for reason, said in REASONS.items() if reason in str(error)), "")
        if UNREACHABLE not in str(error) and not why:
            raise
        expected = f"expected a Temporal server at {config['target_host']}, but none answers{why}"
        raise ConnectionError(f"{expected}; run `nautilus up` or set TEMPORAL_ADDRESS") from None


def data_converter() -> DataConverter:
    """Our messages as JSON, under the codec keys of this process. Raises KeysError."""
    return replace(pydantic_data_converter, payload_codec=codec.Codec(codec.configured()))


def is_missing(error: BaseException) -> bool:
    """Whether the object does not exist (any more). A missing namespace is another error."""
    return isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND and "amespace" not in str(error)
