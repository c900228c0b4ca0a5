"""How our processes reach Temporal: by the SDK's own configuration (temporal.toml and TEMPORAL_* variables)."""

from typing import Any

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.service import RPCError, RPCStatusCode

from schema import wire

# In the SDK's error where nothing listens.
UNREACHABLE = "ConnectError"


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
        if UNREACHABLE not in str(error):
            raise
        expected = f"expected a Temporal server at {config['target_host']}, but none answers"
        raise ConnectionError(f"{expected}; run `nautilus up` or set TEMPORAL_ADDRESS") from None


def is_missing(error: BaseException) -> bool:
    """Whether the object does not exist (any more). A missing namespace is another error."""
    return isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND and "amespace" not in str(error)
