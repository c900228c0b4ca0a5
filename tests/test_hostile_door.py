"""No body and no number of bodies keeps the door from answering others; what is refused is written nowhere."""

import asyncio
import json
from contextlib import suppress
from time import process_time
from typing import Any

import httpx
import pytest
from sqlalchemy import inspect, text
from starlette.requests import Request
from starlette.types import Message

from activities import door_keys
from activities.agents import register_agent
from activities.database import Database
from activities.parameters import declare_parameters
from schema.messages.door import PLATFORM_SCOPES
from starter.door.access import MOST_UNDER_WAY
from starter.door.app import application
from starter.door.bodies import read, refuse_crowded
from starter.door.outcomes import OutcomeBatch
from starter.door.problems import Problem
from tests import builders
from tests.builders import NOW
from tests.patience import PATIENCE_S
from tests.serving import serving
from tests.test_door import door

OUTCOME = builders.outcome("t").model_dump(mode="json")
# The largest batch that there is: a thousand outcomes, each with all that it may have.
FULL = OUTCOME | {
    "resolved": {f"a.p{n}": {"version": 1, "variant": "control"} for n in range(64)},
    "attributes": {f"a{n}": "x" for n in range(16)},
    "detail": "{" * 100,
}
HONEST = json.dumps({"outcomes": [FULL] * 1_000}).encode()
MANY_FIELDS = ",".join(f'"f{number}":0' for number in range(300_000))
# Some 4 MB each. Where all of its mistakes were listed, one kept the door from all others for up to 2.5 s.
SLOW = {  # the body: what shows that it was refused before that
    "mistakes in one outcome": (
        f'{{"outcomes":[{{{MANY_FIELDS}}}]}}',
        "expected at most 128 fields in an object, but 300,000 came",
    ),
    "mistakes beside the outcomes": (
        f"{{{MANY_FIELDS}}}",
        "expected at most 128 fields in an object, but 300,000 came",
    ),
    "mistakes in every outcome": (
        json.dumps({"outcomes": [{f"f{n}": 0 for n in range(400)}] * 900}),
        "expected at most 128 fields in an object, but 400 came",
    ),
    "mistakes in all that was resolved": (
        json.dumps(
            {"outcomes": [{"resolved": {f"k{n}": dict.fromkeys("abcdefgh", 0) for n in range(64)}}] * 900},
            separators=(",", ":"),
        ),
        "; and 574 more",  # those of the first outcome; all of them are 518,400
    ),
    "a million empty lists": (
        f'{{"outcomes":[{"[]," * 1_000_000}[]]}}',
        "expected at most 200,000 opening brackets, but 1,000,003 came",
    ),
    "a list of two million": (
        f'{{"outcomes":[{"0," * 1_900_000}0]}}',
        "expected at most 10,000 items in a list, but 1,900,001 came",
    ),
    "a million objects in one another's lists": (
        f'{{"outcomes":[{"[{}]," * 500_000}0]}}',
        "expected at most 200,000 opening brackets, but 1,000,002 came",
    ),
}


@pytest.mark.parametrize(("body", "said"), SLOW.values(), ids=SLOW)
def test_a_body_of_mistakes_is_refused_before_they_are_listed(database: Database, body: str, said: str) -> None:
    with door(database) as caller:
        refused = caller.client.post("/v1/outcomes", content=body, timeout=PATIENCE_S)

    assert refused.status_code == 422
    assert refused.json()["detail"].endswith(said)
    assert len(refused.json()["detail"]) <= 1_000


async def cost_s(body: bytes) -> float:
    """The processor's time until a body is read or refused."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    request = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    began = process_time()
    with suppress(Problem):
        await read(request, OutcomeBatch)
    return process_time() - began


@pytest.fixture(scope="module")
async def honest_s() -> float:
    return min([await cost_s(HONEST) for _ in range(3)])


@pytest.mark.parametrize("body", [body for body, _ in SLOW.values()], ids=SLOW)
async def test_a_body_of_mistakes_costs_less_than_an_honest_one_of_its_size(honest_s: float, body: str) -> None:
    assert min([await cost_s(body.encode()) for _ in range(3)]) < honest_s


def test_the_largest_honest_batch_is_none_of_them() -> None:
    refuse_crowded(HONEST)

    assert OutcomeBatch.model_validate_json(HONEST, strict=True).outcomes[0].resolved


@pytest.mark.parametrize(
    "content",
    [
        b'{"context":{' + b",".join(b'"f%d":0' % n for n in range(40_000)) + b"}}",
        b'{"context":{"a":[' + b"[]," * 300_000,
    ],
)
def test_a_crowded_evaluation_is_refused_as_ofrep_has_it(database: Database, content: bytes) -> None:
    with door(database) as caller:
        refused = caller.client.post("/ofrep/v1/evaluate/flags", content=content, timeout=PATIENCE_S)

    assert refused.status_code == 400
    assert refused.json()["errorCode"] == "INVALID_CONTEXT"


@pytest.mark.parametrize(("key", "shown"), [("%0d%0aX:1", "X:1"), ("%1b%5b2J", "\\x1b[2J"), ("x" * 5_000, "x" * 60)])
def test_a_flag_s_name_is_shown_as_plain_text_and_not_all_of_it(database: Database, key: str, shown: str) -> None:
    with door(database) as caller:
        refused = caller.client.post(f"/ofrep/v1/evaluate/flags/{key}", json={})

    assert refused.status_code == 404
    assert refused.json()["errorDetails"] == f"expected a declared parameter, but {shown} came"


def test_crowded_is_refused_whatever_it_is() -> None:
    for content in (b"[]" * 300_000, b"{" * 300_000, b"[" + b"0," * 40_000 + b"0]", b"{" + MANY_FIELDS.encode() + b"}"):
        with pytest.raises(Problem, match="expected at most"):
            refuse_crowded(content)
    # No JSON, or no object: what is wrong with it is for validation to say.
    refuse_crowded(b"," * 50_000)
    refuse_crowded(b'"' + b"," * 50_000 + b'"')


def rows(database: Database) -> dict[str, Any]:
    """How many rows every table has."""
    names = inspect(database.engine).get_table_names()
    with database.reading() as session:
        return {name: session.execute(text(f'SELECT COUNT(*) FROM "{name}"')).scalar_one() for name in names}


def test_what_is_refused_is_written_nowhere(database: Database) -> None:
    with door(database) as caller:
        before = rows(database)
        refused = [caller.report(OUTCOME, OUTCOME | {"task_id": bad}) for bad in ("", "a b", "\x00", "x" * 201, None)]
        refused.append(caller.report(OUTCOME, OUTCOME | {"task_type": "nobody_declared_it"}))
        refused.append(caller.client.post("/v1/traces", content=b"\xff", headers={"Content-Type": "application/json"}))
        after = rows(database)

    assert [response.status_code for response in refused] == [422] * 6 + [400]
    assert after == before


@pytest.mark.parametrize(
    "content",
    [b"{", b"null", b"[]", b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"2.0","id":[],"method":1}', b"\xff", b"[" * 100_000],
)
def test_what_is_no_json_rpc_is_refused_by_mcp_in_one_line(database: Database, content: bytes) -> None:
    register_agent(database, "ada", "team", NOW)
    _, key = door_keys.create_agent_key(database, "ada", "ada", NOW)
    headers = {"X-API-Key": key, "Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    with serving(application(database, builders.platform())) as url:
        refused = httpx.post(f"{url}/mcp", content=content, headers=headers, timeout=PATIENCE_S)

    line = refused.json()["error"]["message"]
    assert refused.status_code == 400
    assert len(line) <= 1_000
    assert line.isprintable()
    assert "pydantic" not in line


async def test_a_key_has_so_many_requests_under_way_and_no_more(database: Database) -> None:
    """Bodies that never come to an end are held in memory: other keys are not kept out, and these are given back."""
    declare_parameters(database, builders.platform(), NOW)
    _, slow_key = door_keys.create_platform_key(database, "slow", PLATFORM_SCOPES, "ada", NOW)
    _, other_key = door_keys.create_platform_key(database, "other", PLATFORM_SCOPES, "ada", NOW)
    with serving(application(database, builders.platform())) as url:
        port = int(url.rpartition(":")[2])
        head = f"POST /v1/outcomes HTTP/1.1\r\nHost: door\r\nX-API-Key: {slow_key}\r\nContent-Length: 9\r\n\r\n{{"
        writers = []
        for _ in range(MOST_UNDER_WAY):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode())
            await writer.drain()
            writers.append(writer)

        async with httpx.AsyncClient(base_url=url) as http:

            async def status(key: str) -> int:
                return (await http.get("/v1/flags", headers={"X-API-Key": key})).status_code

            while await status(slow_key) != 429:  # until the last of them has come in
                await asyncio.sleep(0.02)
            refused = await http.get("/v1/flags", headers={"X-API-Key": slow_key})
            let_in = await status(other_key)
            for writer in writers:
                writer.close()
            async with asyncio.timeout(PATIENCE_S):
                while await status(slow_key) != 200:
                    await asyncio.sleep(0.02)

    assert f"expected at most {MOST_UNDER_WAY} requests of a key at once" in refused.json()["detail"]
    assert refused.headers["retry-after"] == "1"
    assert let_in == 200
