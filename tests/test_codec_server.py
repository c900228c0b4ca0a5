"""The codec server: what people are shown, and who is answered at all."""

import asyncio
import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.api.common.v1 import Payload

from activities.database import Database
from schema import codec, wire
from schema.messages.cycle import Phase
from starter import codec_keys
from starter.codec_server import application
from starter.commands.codec import TOKEN
from starter.demo import page_url
from starter.server import Server, binary, dev_server
from starter.stack import connect
from tests import builders
from tests.browser import Page, browser, chromium
from tests.encrypted import key_file, line
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.serving import serving
from tests.test_encryption import payloads_of
from tests.test_improvement_cycle import AGENTS
from tests.test_upgrade import Installation, installed

ROOT = Path(__file__).parent.parent
KEY, OLD = line("2026-11"), line("2026-10")
RING = codec.parsed(f"{KEY}\n{OLD}", "test")
PAGE = "http://127.0.0.1:8233"
PLAIN = Payload(metadata={"encoding": b"json/plain"}, data=b'"Zanzibar"')
SECRET_TOKEN = "a-token-of-some-length"  # pragma: allowlist secret


def document(*payloads: Payload) -> dict[str, Any]:
    """The payloads as the remote codec protocol has them."""

    def encoded(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return {
        "payloads": [
            {
                "metadata": {name: encoded(value) for name, value in payload.metadata.items()},
                "data": encoded(payload.data),
            }
            for payload in payloads
        ]
    }


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(application(RING, [PAGE])) as address:
        yield address


def test_it_decodes_what_was_encrypted_with_any_of_its_keys_and_leaves_the_rest(url: str) -> None:
    unknown = codec.parsed(line("unknown"), "test").encrypted(PLAIN)
    sent = [RING.encrypted(PLAIN), codec.parsed(OLD, "test").encrypted(PLAIN), PLAIN, unknown]
    answer = httpx.post(f"{url}/decode", json=document(*sent), timeout=PATIENCE_S)

    assert answer.status_code == 200
    assert answer.json() == document(PLAIN, PLAIN, PLAIN, unknown)


def test_what_it_encodes_it_decodes(url: str) -> None:
    encoded = httpx.post(f"{url}/encode", json=document(PLAIN), timeout=PATIENCE_S).json()
    decoded = httpx.post(f"{url}/decode", json=encoded, timeout=PATIENCE_S).json()

    assert base64.b64decode(encoded["payloads"][0]["metadata"]["encryption-key-id"]) == b"2026-11"
    assert decoded == document(PLAIN)


REFUSED = {
    "no JSON": (b"{", 400),
    "another document": (b'{"payload": []}', 400),
    "no payload": (b'{"payloads": [7]}', 400),
    "nested deeply": (b"[" * 100_000, 400),
    "not UTF-8": (b"\xff\xfe", 400),
    "too large": (b" " * 32_000_001, 400),
}


@pytest.mark.parametrize(("body", "status"), REFUSED.values(), ids=REFUSED)
def test_a_body_that_is_no_list_of_payloads_is_refused_in_one_line(url: str, body: bytes, status: int) -> None:
    answer = httpx.post(f"{url}/decode", content=body, timeout=PATIENCE_S)

    assert (answer.status_code, len(answer.text.splitlines())) == (status, 1)
    assert answer.text.startswith("expected ")


def test_a_page_of_the_web_ui_is_let_in_by_the_browser_s_rules(url: str) -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST"}
    asks |= {"access-control-request-headers": "content-type,x-namespace,authorization"}
    allowed = httpx.options(f"{url}/decode", headers=asks)
    answer = httpx.post(
        f"{url}/decode", json=document(PLAIN), headers={"origin": PAGE, "x-namespace": "nautilus"}, timeout=PATIENCE_S
    )

    assert (allowed.status_code, answer.status_code) == (200, 200)
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"origin": "https://evil.example"}, 403), ({"origin": "null"}, 403), ({"host": "evil.example"}, 400)],
    ids=["another site", "a sandboxed page", "another name for this machine"],
)
def test_no_other_page_is_answered(url: str, headers: dict[str, str], status: int) -> None:
    answer = httpx.post(f"{url}/decode", json=document(RING.encrypted(PLAIN)), headers=headers, timeout=PATIENCE_S)

    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert document(PLAIN)["payloads"][0]["data"] not in answer.text


def test_with_a_token_nobody_is_answered_without_it() -> None:
    sent = document(RING.encrypted(PLAIN))
    with serving(application(RING, [PAGE], SECRET_TOKEN)) as guarded:
        given = [None, "", SECRET_TOKEN, "Bearer", "Bearer wrong", f"bearer {SECRET_TOKEN}x", f"Bearer {SECRET_TOKEN}"]
        statuses = [
            httpx.post(
                f"{guarded}/decode", json=sent, headers={"authorization": one} if one is not None else {}
            ).status_code
            for one in given
        ]

    assert statuses == [401] * 6 + [200]


# ---- the commands


def says(environment: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "starter", "codec", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE_S
    )
    return done.returncode, done.stdout, done.stderr


NOT_SERVED: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "without keys": (
        {},
        (),
        "expected codec keys in NAUTILUS_CODEC_KEYS_FILE or NAUTILUS_CODEC_KEYS, but there are none",
    ),
    "beyond this machine without a token": (
        {codec.KEYS: KEY},
        ("--host", "0.0.0.0"),
        "expected a token in NAUTILUS_CODEC_TOKEN to listen on 0.0.0.0",
    ),
    "with a token that can be guessed": ({codec.KEYS: KEY, TOKEN: "hunter2"}, (), "expected a token of 20 characters"),
    "with a mistake in the keys": (
        {codec.KEYS: "a:b"},
        (),
        "NAUTILUS_CODEC_KEYS, line 1: expected the key a in base64",
    ),
}


@pytest.mark.parametrize(("environment", "options", "reason"), NOT_SERVED.values(), ids=NOT_SERVED)
def test_it_is_not_served(environment: dict[str, str], options: tuple[str, ...], reason: str) -> None:
    code, printed, complaint = says(environment, "serve", "--port", str(free_port()), *options)

    assert (code, printed, len(complaint.splitlines())) == (1, "", 1), complaint
    assert reason in complaint


def test_keys_are_made_added_and_rotated_in_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "codec.keys"
    first = codec_keys.add(file, "one")
    added = codec_keys.add(file, "two")
    rotated = codec_keys.put_first(file)
    back = codec_keys.put_first(file, "one")

    assert [ring.encrypts_with for ring in (first, added, rotated, back)] == ["one", "one", "two", "one"]
    assert set(codec.parsed(codec.read(file), "file").keys) == {"one", "two"}
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["codec.keys"]


def test_keys_can_reach_every_process_before_any_encrypts(tmp_path: Path) -> None:
    file = tmp_path / "codec.keys"

    assert codec_keys.add(file, "one", decrypt_only=True).encrypts_with is None
    assert codec_keys.put_first(file).encrypts_with == "one"


@pytest.mark.parametrize("change", [lambda file: codec_keys.add(file, "a/b"), lambda file: codec_keys.add(file, "one")])
def test_no_key_is_added_under_a_name_that_is_wrong_or_taken(tmp_path: Path, change: Any) -> None:
    file = key_file(tmp_path, line("one"))

    with pytest.raises(codec.KeysError):
        change(file)
    assert file.read_text() == line("one") + "\n"


def test_the_commands_say_what_is_done_and_never_a_key(tmp_path: Path) -> None:
    file = str(tmp_path / "codec.keys")
    printed = [
        says({}, "keygen", "--file", file, "--id", "one"),
        says({codec.FILE: file}, "keygen", "--id", "two"),
        says({codec.FILE: file}, "rotate"),
        says({codec.FILE: file}, "list", "--json"),
        says({}, "keygen"),
    ]

    assert [code for code, _, _ in printed] == [0, 0, 0, 0, 1]
    assert json.loads(printed[3][1]) == [{"key": "two", "encrypts": True}, {"key": "one", "encrypts": False}]
    secrets = [entry.partition(":")[2] for entry in Path(file).read_text().split()]
    assert all(len(secret) == 44 and secret not in repr(printed) for secret in secrets)
    assert "see --file and NAUTILUS_CODEC_KEYS_FILE" in printed[4][2]


# ---- beside a real server


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Server, str]]:
    """A server whose web UI uses a codec, and the codec's address."""
    ui_port = free_port()
    with serving(application(RING, [f"http://127.0.0.1:{ui_port}"])) as endpoint:
        folder, options = tmp_path_factory.mktemp("server"), ("--ui-codec-endpoint", endpoint)
        async with dev_server(folder, free_port(), ui_port, database_file=False, options=options) as made:
            yield made, endpoint


async def temporal(server: Server, endpoint: str, *arguments: str) -> str:
    """What the `temporal` command prints."""
    options = ["--address", server.address, "--namespace", wire.NAMESPACE]
    options += ["--codec-endpoint", endpoint] if endpoint else []
    process = await asyncio.create_subprocess_exec(
        str(binary()), *arguments, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def test_the_temporal_command_reads_and_writes_through_it(
    server: tuple[Server, str], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, endpoint = server
    monkeypatch.setenv(codec.KEYS, KEY)
    platform: Installation = installed(await connect(at), database, wire.TASK_QUEUE)
    async with platform.release():
        stage = await platform.opens("by-hand")
        await stage.bids(*AGENTS[1:])
        bid = builders.bid("ada", price=1).model_copy(update={"pitch": "Zanzibar"}).model_dump_json()
        place = (
            "workflow",
            "update",
            "execute",
            "--workflow-id",
            stage.cycle,
            "--name",
            wire.PLACE_BID,
            "--input",
            bid,
        )
        answer = await temporal(at, endpoint, *place)
        show = ("workflow", "show", "--workflow-id", stage.cycle, "--output", "json")
        shown, hidden = [await temporal(at, through, *show) for through in (endpoint, "")]
        status = await temporal(at, endpoint, "workflow", "query", "--workflow-id", stage.cycle, "--type", wire.STATUS)
    sent = [payload for payload in await payloads_of(at, stage.cycle) if codec.key_id_of(payload) is None]

    assert "accepted" in answer
    assert "Zanzibar" in status
    assert {payload.metadata["type"] for payload in sent} == {b"Keyword"}  # what the command sent is encrypted, too
    assert b"Zanzibar" in data_in(shown)
    assert b"Zanzibar" not in data_in(hidden)


def data_in(history: str) -> bytes:
    """The data of all payloads in what `temporal workflow show` prints."""
    return b"".join(base64.b64decode(data) for data in re.findall(r'"data": "([^"]*)"', history))


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Page]:
    executable = chromium()
    assert executable is not None
    async with browser(executable, tmp_path / "chromium") as page:
        yield page


@pytest.mark.skipif(chromium() is None, reason="expected Chromium (apt-get install chromium) on this machine")
async def test_a_person_reads_an_encrypted_cycle_in_the_web_ui(
    server: tuple[Server, str], database: Database, monkeypatch: pytest.MonkeyPatch, tab: Page
) -> None:
    at, _ = server
    monkeypatch.setenv(codec.KEYS, KEY)
    platform = installed(await connect(at), database, wire.TASK_QUEUE)
    async with platform.release():
        stage = await platform.opens("in-the-web-ui")
        await stage.bids(*AGENTS)
        await stage.proposes("ada", root_cause="Zanzibar tasks are cut off")
        await stage.reach(Phase.VOTING)
        run_id = (await platform.client.get_workflow_handle(stage.cycle).describe()).run_id
        url = page_url(at.web_ui, stage.cycle, run_id)
        await tab.open(url.replace("/history", "/timeline"))
        await tab.shows("open the meta-task", "voting closes")
        await tab.open(url.replace("/history", "/user-metadata"))
        await tab.shows("Now: voting", "Zanzibar tasks are cut off")
