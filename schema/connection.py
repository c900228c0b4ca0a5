"""How our processes reach Temporal: by the SDK's own configuration (temporal.toml and TEMPORAL_* variables)."""

from typing import Any

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError, RPCStatusCode

from schema import wire

# In the SDK's error where nothing listens.
UNREACHABLE = "ConnectError"
# What its core says of a connection that fails, in words for a person.
REASONS = {
    "dns error": "its name cannot be looked up",
    "InvalidContentType": "what listens there speaks no TLS, which TEMPORAL_TLS or an API key asks for",
    "InvalidCertificate": "its certificate is not trusted, see TEMPORAL_TLS_SERVER_CA_CERT_PATH and _SERVER_NAME",
    # With TLS 1.3, a client certificate that is missing or refused looks the same.
    "transport error": "what listens there ends the connection, see TEMPORAL_TLS and TEMPORAL_TLS_CLIENT_CERT_PATH",
}


async def connect(address: str = "", **options: Any) -> Client:
    """A client of the configured server, or of the one at `address`; `options` are those of `Client.connect`.

    The namespace is ours unless the configuration names another. Raises ConnectionError where no server answers.
    """
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


def is_missing(error: BaseException) -> bool:
    """Whether the object does not exist (any more). A missing namespace is another error."""
    return isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND and "amespace" not in str(error)
