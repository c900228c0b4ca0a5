"""The metrics of the platform, for Prometheus."""

from typing import Annotated

import typer

from starter.command import CommandError, open_database, run

app = typer.Typer()


@app.command(epilog="Example: nautilus metrics --port 9465")
def metrics(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 9465,
) -> None:
    """Serve metrics for Prometheus until Ctrl-C: cycles, verdicts, backlog, snapshots, health, ledger.

    It needs the database alone, and shows names of parameters and task types to whoever can reach it.
    """
    import asyncio
    from datetime import UTC, datetime

    import structlog

    from activities import monitoring
    from schema.declaration import declared_platform

    try:
        from starter.exporter import served
    except ModuleNotFoundError as missing:
        if not (missing.name or "").startswith("prometheus_client"):
            raise
        raise CommandError("expected the package prometheus-client; `pip install '.[operations]'`") from None
    database, platform = open_database(), declared_platform()

    async def serve() -> None:
        try:
            serving = served(lambda: monitoring.metrics(database, platform, datetime.now(UTC)), host, port)
            with serving:
                structlog.get_logger().info("metrics.served", url=f"http://{host}:{port}/metrics")
                await asyncio.Event().wait()
        except OSError as error:
            raise CommandError(
                f"expected a free address for the metrics, but {host}:{port}: {error.strerror}"
            ) from None

    run(serve(), "metrics")
