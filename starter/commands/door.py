"""Commands about the door: serve it, and its keys."""

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from schema.messages.door import PLATFORM_SCOPES, Scope
from starter.acting import to_act
from starter.command import (
    AsJson,
    Columns,
    CommandError,
    Who,
    Why,
    answer,
    answer_rows,
    err,
    open_database,
    out,
)

if TYPE_CHECKING:
    from schema.messages.door import DoorKey

PORT = 8484
# What a request is given to end in, when the door is to close.
GRACE_S = 10
SWITCH_INTERVAL_S = 0.0005

app = typer.Typer(
    invoke_without_command=True,
    help="The door: parameters, outcomes, traces and agents over HTTP, for all who reach no database and no Temporal.",
    epilog="Example: nautilus door key list",
)
keys = typer.Typer(
    no_args_is_help=True, help="Keys of the door.", epilog="Example: nautilus door key create --platform web"
)
app.add_typer(keys, name="key")


@app.callback()
def door(
    context: typer.Context,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = PORT,
) -> None:
    """Serve the door until Ctrl-C or SIGTERM; what has been accepted by then is finished. `up` runs one too."""
    if context.invoked_subcommand is None:
        _serve(host, port)


def _serve(host: str, port: int) -> None:
    from activities.database import expect_newest
    from schema.declaration import declared_platform
    from schema.settings import Settings
    from starter.door.app import application
    from starter.listening import serve

    # Writers work in threads beside the loop that answers; at the default, each may keep it waiting for 5 ms.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    settings = Settings()
    database = expect_newest(open_database())
    served = application(database, declared_platform(settings), settings.resolver_refresh_s)
    opened = f"the door is open at http://{host}:{port}; its routes are at /docs"
    serve("door", served, host, port, opened, timeout_graceful_shutdown=GRACE_S, date_header=False)


@keys.command("create", epilog="Example: nautilus door key create --platform web --scope parameters --scope outcomes")
def key_create(
    who: Who,
    platform: Annotated[str, typer.Option(help="The platform that gets the key: a name of yours.")] = "",
    agent: Annotated[str, typer.Option(help="The registered agent that the key speaks for.")] = "",
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Of a platform: what the key is good for; default: both.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, and print it: only now, because what is stored is its hash."""
    from activities import door_keys

    if bool(platform) == bool(agent):
        raise CommandError("expected either --platform or --agent; a key is of one holder")
    if agent and scope:
        raise CommandError("expected no --scope with --agent: an agent's key is good for `agents` alone")
    (database, who), now = to_act(who), datetime.now(UTC)
    if agent:
        key, text = door_keys.create_agent_key(database, agent, who, now)
    else:
        key, text = door_keys.create_platform_key(database, platform, scope or PLATFORM_SCOPES, who, now)

    def print_key() -> None:
        err.print(
            f"key {key.key_id} of {key.holder} for {', '.join(key.scopes)}; it is shown only now:", soft_wrap=True
        )
        out.print(text, soft_wrap=True)

    answer(as_json, key.model_dump(mode="json") | {"key": text}, print_key)


@keys.command("list", epilog="Example: nautilus door key list --json")
def key_list(as_json: AsJson = False) -> None:
    """Every key that was made, the newest first; never a secret."""
    from activities import door_keys

    with open_database().reading() as session:
        rows = door_keys.all_keys(session)
    columns: Columns[DoorKey] = {
        "key": lambda key: key.key_id,
        "holder": lambda key: key.holder,
        "scopes": lambda key: ", ".join(key.scopes),
        "created": lambda key: f"{key.created_at:%Y-%m-%d %H:%M}Z by {key.created_by}",
        "revoked": lambda key: f"{key.revoked_at:%Y-%m-%d %H:%M}Z" if key.revoked_at else "",
    }
    answer_rows(as_json, rows, columns, "there is no key yet; `nautilus door key create` makes one")


@keys.command("revoke", epilog="Example: nautilus door key revoke 3f9a0c2b71de --why leaked")
def key_revoke(key_id: str, who: Who, why: Why) -> None:
    """End a key: within two seconds it opens nothing."""
    from activities import door_keys

    database, who = to_act(who)
    key = door_keys.revoke(database, key_id, who, why, datetime.now(UTC))
    out.print(f"key {key_id} of {key.holder} is revoked; within two seconds it opens nothing")
