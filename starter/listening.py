"""Listening: how the door and the codec server are served, on a socket that is open before anybody reads that it is."""

from typing import TYPE_CHECKING, Any

from starter.command import CommandError, err, log_beside

if TYPE_CHECKING:
    from socket import socket

    from starlette.types import ASGIApp


def serve(name: str, application: "ASGIApp", host: str, port: int, opened: str, **options: Any) -> None:
    """Serve an application until Ctrl-C or SIGTERM; `opened` is said in a terminal, `options` are of uvicorn's Config.

    Raises CommandError where it cannot listen.
    """
    import uvicorn

    listening = _listening(host, port)
    log_beside(name)
    config = uvicorn.Config(
        application,
        host,
        port,
        access_log=False,
        log_level="warning",
        log_config=None,  # its lines are lines like all others
        server_header=False,
        ws="none",  # a WebSocket would not pass the access check
        **options,
    )
    if err.is_terminal:
        err.print(f"{opened}; Ctrl-C closes it", soft_wrap=True)
    uvicorn.Server(config).run([listening])


def _listening(host: str, port: int) -> "socket":
    """A socket that listens there. Raises CommandError: nobody may read that it is open when it is not."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # the rest says the address again
        raise CommandError(f"expected to listen on {host}:{port}, but {why}; see --host and --port") from None
