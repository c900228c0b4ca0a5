"""The door keeps out whom it should, answers as OFREP has it, and loses nothing that it acknowledged."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from activities import door_keys, ledger
from activities.agents import register_agent
from activities.database import Database
from activities.parameters import declare_parameters, freeze
from rules.assignment import assigner
from schema.messages.door import DoorRules, Scope
from schema.messages.experiment import ExperimentDesign, Variant
from schema.messages.platform import ObservatoryRules
from starter.door import access
from starter.door.access import UNKNOWN_REFRESH_S
from starter.door.app import application
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.patience import PATIENCE_S
from tests.serving import serving
from tests.test_store import eventually, experiment, opened

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
BOTH = (Scope.PARAMETERS, Scope.OUTCOMES)


def platform(**rules: int) -> Any:
    return builders.platform(observatory=ObservatoryRules(interval_s=60), door=DoorRules(**rules))


class Caller:
    """Somebody outside, with a key."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=PATIENCE_S)

    def evaluate(self, key: str, task_id: str, **context: Any) -> httpx.Response:
        body = {"context": {"targetingKey": task_id, **context}}
        return self.client.post(f"/ofrep/v1/evaluate/flags/{key}", json=body)

    def bulk(self, task_id: str, headers: Mapping[str, str] | None = None, **context: Any) -> httpx.Response:
        body = {"context": {"targetingKey": task_id, **context}}
        return self.client.post("/ofrep/v1/evaluate/flags", json=body, headers=headers)

    def report(self, *outcomes: Mapping[str, Any]) -> httpx.Response:
        return self.client.post("/v1/outcomes", json={"outcomes": list(outcomes)})


@contextmanager
def door(database: Database, scopes: tuple[Scope, ...] = BOTH, **rules: int) -> Iterator[Caller]:
    """A door on this database, and a platform that has a key of these scopes."""
    declare_parameters(database, platform(), NOW)
    _, text = door_keys.create_platform_key(database, "web", scopes, "ada", NOW)
    with serving(application(database, platform(**rules), refresh_s=0.05)) as url:
        caller = Caller(url, text)
        with caller.client:
            yield caller


def outcome(task_id: str, success: bool = True, **echo: Mapping[str, Any]) -> dict[str, Any]:
    """An outcome as JSON; `echo` has what was resolved of the timeout."""
    fields = builders.outcome(task_id, success).model_dump(mode="json")
    return fields | {"resolved": {TIMEOUT: echo["timeout"]} if echo else {}}


def arm_of(design: ExperimentDesign) -> Callable[[str], Variant | None]:
    return assigner(design.experiment_id, 1.0, design.treatment_share)


# --- Who comes in -----------------------------------------------------------------------------------------------------

ROUTES = [
    ("POST", f"/ofrep/v1/evaluate/flags/{TIMEOUT}", Scope.PARAMETERS),
    ("POST", "/ofrep/v1/evaluate/flags", Scope.PARAMETERS),
    ("GET", "/v1/flags", Scope.PARAMETERS),
    ("GET", "/v1/configuration", Scope.PARAMETERS),
    ("POST", "/v1/outcomes", Scope.OUTCOMES),
    ("POST", "/v1/exposures", Scope.OUTCOMES),
    ("POST", "/v1/traces", Scope.OUTCOMES),
]
OF_AGENTS = ("POST", "/mcp", Scope.AGENTS)


@pytest.mark.parametrize(("method", "path", "scope"), [*ROUTES, OF_AGENTS])
def test_every_route_refuses_a_missing_a_wrong_a_revoked_and_an_out_of_scope_key(
    database: Database, method: str, path: str, scope: Scope
) -> None:
    other = next(one for one in BOTH if one is not scope)
    revoked, revoked_text = door_keys.create_platform_key(database, "old", BOTH, "ada", NOW)
    door_keys.revoke(database, revoked.key_id, "ada", "leaked", NOW)
    with door(database, (other,)) as caller:
        out_of_scope = caller.client.headers["authorization"].removeprefix("Bearer ")
        key_id, secret = out_of_scope.split("_", 2)[1:]
        wrong = [
            "",
            "nautilus",
            revoked_text,
            f"nautilus_{key_id}_{'A' * 43}",
            f"nautilus_{'0' * 12}_{secret}",
            out_of_scope + "x",
            "\u00e4".encode().decode("latin-1"),
        ]
        statuses = [
            httpx.request(method, caller.url + path, headers={b"X-API-Key": key.encode("latin-1")}).status_code
            for key in wrong
        ]
        forbidden = caller.client.request(method, path)

    assert statuses == [401] * len(wrong)
    assert forbidden.status_code == 403
    assert forbidden.headers["content-type"] == "application/problem+json"
    assert forbidden.json()["detail"].startswith(f"expected a key with the scope {scope}, but {key_id} has {other}")


def test_nothing_of_a_request_is_read_before_its_key_was_accepted(database: Database) -> None:
    with door(database) as caller:
        refused = httpx.post(f"{caller.url}/v1/outcomes", content=b"{" * 10_000_000)

    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"


def test_a_refusal_says_whether_no_key_came_or_one_that_opens_nothing(database: Database) -> None:
    with door(database) as caller:
        none = httpx.get(f"{caller.url}/v1/flags", timeout=PATIENCE_S)
        of_another_scheme = httpx.get(f"{caller.url}/v1/flags", auth=("web", "secret"), timeout=PATIENCE_S)
        wrong = httpx.get(f"{caller.url}/v1/flags", headers={"X-API-Key": "nautilus_0_1"}, timeout=PATIENCE_S)

    assert "but none came" in none.json()["detail"]
    assert "but none came" in of_another_scheme.json()["detail"]
    assert "but one came that is unknown or revoked" in wrong.json()["detail"]


def test_a_browser_at_the_door_gets_the_page_of_its_routes_whatever_stands_before_it(database: Database) -> None:
    with door(database) as caller:
        front = httpx.get(f"{caller.url}/", headers={"Host": "elsewhere.example"}, timeout=PATIENCE_S)
        page = httpx.get(f"{caller.url}/", follow_redirects=True, timeout=PATIENCE_S)
        posted = httpx.post(f"{caller.url}/", content=b"{}", timeout=PATIENCE_S)

    assert (front.status_code, front.headers["location"]) == (307, "docs")
    assert (page.status_code, page.url.path) == (200, "/docs")
    assert posted.status_code == 405


def test_nobody_is_sent_elsewhere_with_a_key(database: Database) -> None:
    with door(database) as caller:
        statuses = {caller.client.post(f"{path}/").status_code for _, path, _ in ROUTES[1:]}

    assert statuses == {404}


def test_a_key_that_is_revoked_opens_nothing_within_two_seconds_and_a_new_one_works_as_soon(database: Database) -> None:
    with door(database) as caller:
        assert caller.client.get("/v1/flags").status_code == 200
        key, text = door_keys.create_platform_key(database, "batch", BOTH, "ada", NOW)
        batch = {"X-API-Key": text}
        assert eventually(
            lambda: httpx.get(f"{caller.url}/v1/flags", headers=batch, timeout=PATIENCE_S).status_code == 200
        )

        door_keys.revoke(database, key.key_id, "ada", "leaked", NOW)

        assert eventually(
            lambda: httpx.get(f"{caller.url}/v1/flags", headers=batch, timeout=PATIENCE_S).status_code == 401
        )
        assert caller.client.get("/v1/flags").status_code == 200


def test_a_new_key_opens_the_door_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "KEYS_PATIENCE_S", PATIENCE_S)
    with door(database) as caller:
        caller.client.get("/v1/flags")
        _, text = door_keys.create_platform_key(database, "batch", BOTH, "ada", NOW)
        time.sleep(UNKNOWN_REFRESH_S)  # so old must the last reading of keys be, and no older

        assert httpx.get(f"{caller.url}/v1/flags", headers={"X-API-Key": text}, timeout=PATIENCE_S).status_code == 200


def test_a_secret_is_stored_nowhere_and_every_key_is_in_the_ledger(database: Database) -> None:
    register_agent(database, "bob", "team", NOW)
    key, text = door_keys.create_platform_key(database, "web", BOTH, "ada", NOW)
    agents_key, _ = door_keys.create_agent_key(database, "bob", "ada", NOW)
    door_keys.revoke(database, key.key_id, "ada", "leaked", NOW)

    secret = text.split("_", 2)[2]
    entries = ledger.entries(database, latest=10)
    assert [(entry.kind.value, entry.subject) for entry in entries] == [
        ("door_key.created", key.key_id),
        ("door_key.created", agents_key.key_id),
        ("door_key.revoked", key.key_id),
    ]
    with database.reading() as session:
        everything = str(session.connection().exec_driver_sql("SELECT * FROM door_key").all()) + str(entries)
    assert secret not in everything


@pytest.mark.parametrize("scopes", [(), (Scope.AGENTS,), (Scope.OUTCOMES, Scope.AGENTS)])
def test_a_platform_gets_no_key_of_agents_and_none_for_nothing(database: Database, scopes: tuple[Scope, ...]) -> None:
    with pytest.raises(ValueError, match="expected scopes of a platform"):
        door_keys.create_platform_key(database, "web", scopes, "ada", NOW)


def test_only_a_registered_agent_gets_a_key(database: Database) -> None:
    with pytest.raises(ValueError, match="expected a registered agent, but there is no nobody"):
        door_keys.create_agent_key(database, "nobody", "ada", NOW)


def test_more_requests_than_a_key_may_send_are_refused_for_a_second(database: Database) -> None:
    with door(database, platform_requests_per_s=5) as caller:
        responses = [caller.client.get("/v1/flags") for _ in range(30)]

    refused = [response for response in responses if response.status_code == 429]
    assert len(refused) >= 10
    assert {response.headers["retry-after"] for response in refused} == {"1"}
    assert "expected at most 5 requests a second" in refused[0].json()["detail"]


def test_wrong_keys_from_one_address_are_slowed_down_and_right_ones_are_not(database: Database) -> None:
    with door(database) as caller:
        with httpx.Client(base_url=caller.url) as nobody:
            wrong = [nobody.get("/v1/flags").status_code for _ in range(200)]
        right = caller.client.get("/v1/flags").status_code

    assert Counter(wrong)[429] > 0
    assert right == 200


# --- Parameters -------------------------------------------------------------------------------------------------------


def test_a_flag_resolves_by_ofrep_as_the_resolver_does_and_says_what_chose_it(database: Database) -> None:
    design = opened(database, experiment())
    arm = arm_of(design)
    with door(database) as caller:
        answers = {f"task-{n}": caller.evaluate(TIMEOUT, f"task-{n}").json() for n in range(40)}

    for task_id, answer in answers.items():
        variant = arm(task_id)
        assert variant is not None
        assert answer == {
            "key": TIMEOUT,
            "value": 180.0 if variant is Variant.TREATMENT else 90.0,
            "reason": "SPLIT",
            "variant": variant.value,
            "metadata": {"version": 1, "experiment": design.experiment_id},
        }
    assert len({answer["variant"] for answer in answers.values()}) == 2


def test_without_an_experiment_or_a_task_the_value_in_force_is_the_answer(database: Database) -> None:
    opened(database, experiment())
    with door(database) as caller:
        of_no_task = caller.client.post(f"/ofrep/v1/evaluate/flags/{TIMEOUT}", json={}).json()
        freeze(database, TIMEOUT, "ada", "incident", NOW)
        eventually(lambda: caller.evaluate(TIMEOUT, "t").json()["reason"] == "STATIC")
        frozen = caller.evaluate(TIMEOUT, "t").json()

    assert (of_no_task["value"], of_no_task["reason"], of_no_task["variant"]) == (90.0, "DEFAULT", "in_force")
    assert (frozen["value"], frozen["reason"], frozen["metadata"]) == (90.0, "STATIC", {"version": 1})


@pytest.mark.parametrize(
    ("path", "content", "status", "code"),
    [
        # A flag that nobody declared.
        ("/nothing", b'{"context": {}}', 404, "FLAG_NOT_FOUND"),
        # No JSON, and JSON that is no context.
        (f"/{TIMEOUT}", b"{", 400, "PARSE_ERROR"),
        (f"/{TIMEOUT}", b'{"context": 3}', 400, "INVALID_CONTEXT"),
        # A task whose outcome nobody could report.
        (f"/{TIMEOUT}", b'{"context": {"targetingKey": "a b"}}', 400, "INVALID_CONTEXT"),
        ("", b"[]", 400, "INVALID_CONTEXT"),
    ],
)
def test_what_is_no_evaluation_is_refused_in_the_protocols_words(
    database: Database, path: str, content: bytes, status: int, code: str
) -> None:
    with door(database) as caller:
        response = caller.client.post(f"/ofrep/v1/evaluate/flags{path}", content=content)

    assert response.status_code == status
    assert response.json()["errorCode"] == code
    assert "expected" in response.json()["errorDetails"]


def test_a_parameter_that_only_the_file_has_is_not_called_undeclared(database: Database) -> None:
    _, text = door_keys.create_platform_key(database, "web", BOTH, "ada", NOW)
    with serving(application(database, platform())) as url, Caller(url, text).client as client:
        early = client.post(f"/ofrep/v1/evaluate/flags/{TIMEOUT}", json={})

    assert (early.status_code, early.json()["errorCode"]) == (404, "FLAG_NOT_FOUND")
    assert "is only in the file: `nautilus up` declares it" in early.json()["errorDetails"]


def test_a_bulk_evaluation_that_has_not_changed_is_not_sent_again(database: Database) -> None:
    opened(database, experiment())
    with door(database) as caller:
        first = caller.bulk("task-1")
        same = caller.bulk("task-1", {"If-None-Match": first.headers["etag"]})
        freeze(database, TIMEOUT, "ada", "incident", NOW)
        eventually(lambda: caller.evaluate(TIMEOUT, "t").json()["reason"] == "STATIC")
        changed = caller.bulk("task-1", {"If-None-Match": first.headers["etag"]})

    assert (first.status_code, same.status_code, changed.status_code) == (200, 304, 200)
    assert same.content == b""
    assert [flag["key"] for flag in first.json()["flags"]] == [p.key for p in platform().parameters]


def test_a_bulk_evaluation_for_a_task_type_has_the_flags_that_touch_it(database: Database) -> None:
    with door(database) as caller:
        keys = {flag["key"] for flag in caller.bulk("t-1", task_type="research_synthesis").json()["flags"]}
        of_none = caller.bulk("t-1", task_type="nothing").json()["flags"]

    assert keys == {p.key for p in platform().parameters if "research_synthesis" in p.task_types}
    assert of_none == []


def test_the_configuration_and_the_flags_carry_a_validator(database: Database) -> None:
    with door(database) as caller:
        for path in ("/v1/configuration", "/v1/flags"):
            first = caller.client.get(path)
            again = caller.client.get(path, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})

            assert (first.status_code, again.status_code) == (200, 304)


# --- Operation --------------------------------------------------------------------------------------------------------


def test_health_and_readiness_need_no_key_and_a_stale_door_is_not_ready(database: Database) -> None:
    with door(database) as caller:
        health = httpx.get(f"{caller.url}/health", timeout=PATIENCE_S)
        ready = httpx.get(f"{caller.url}/ready", timeout=PATIENCE_S)
        unknown = caller.client.get("/v1/nothing")

    assert (health.status_code, ready.status_code, unknown.status_code) == (200, 200, 404)
    assert ready.json()["status"] == "ready"
    assert "expected a route of the door" in unknown.json()["detail"]


def test_head_is_answered_as_get_is_without_a_body(database: Database) -> None:
    with door(database) as caller:
        health = httpx.head(f"{caller.url}/health")
        flags = caller.client.head("/v1/flags")
        same = caller.client.get("/v1/flags").headers
        refused = httpx.head(f"{caller.url}/v1/flags").status_code

    assert (health.status_code, health.content) == (200, b"")
    assert (flags.status_code, flags.content, refused) == (200, b"", 401)
    assert (flags.headers["etag"], flags.headers["content-length"]) == (same["etag"], same["content-length"])


def test_the_page_of_routes_loads_nothing_from_elsewhere(database: Database) -> None:
    with door(database) as caller:
        page = httpx.get(f"{caller.url}/docs", timeout=PATIENCE_S).text
        addresses = re.findall(r'(?:src|href)="([^"]+)"', page)
        files = [httpx.get(caller.url + address, timeout=PATIENCE_S).status_code for address in addresses]

    assert len(addresses) >= 3
    assert all(address.startswith("/docs/") for address in addresses)
    assert set(files) == {200}


def test_no_request_that_its_description_allows_or_forbids_makes_the_door_fail(database: Database) -> None:
    """Schemathesis against the door's own OpenAPI description: no answer of 500 or more."""
    opened(database, experiment())
    with door(database, platform_requests_per_s=100_000) as caller:
        schema = schemathesis.openapi.from_url(f"{caller.url}/openapi.json")
        headers = {"Authorization": caller.client.headers["authorization"]}
        operations = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
        for operation, mode in product(operations, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)):
            if mode is GenerationMode.NEGATIVE and not operation.body:
                continue  # a route that takes nothing has no malformed request

            @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
            @given(operation.as_strategy(generation_mode=mode))
            def send(case: Any) -> None:
                case.validate_response(case.call(headers=headers), checks=CHECKS)

            send()

    assert {operation.path for operation in operations} >= {path for _, path, _ in ROUTES if "flags/" not in path}
