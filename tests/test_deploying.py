"""The deployment files: valid by their own schemas, and true about commands, variables, ports and files."""

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]
from temporalio.envconfig import ClientConfig, ClientConfigProfile

from schema.declaration import declared_platform
from schema.settings import Settings
from starter.agents.roster import ROSTER
from starter.commands import door
from starter.door.access import OPEN
from starter.door.app import CLOSE_S
from starter.health import VARIABLE
from starter.logs import FORMAT
from starter.server import MOST_UPDATE_BYTES, UPDATES_SETTING
from tests.deployments import (
    COMPOSE,
    FOLDER,
    IMAGES,
    KUBERNETES,
    KUSTOMIZATION,
    MANIFESTS,
    OBJECTS,
    ROOT,
    Process,
    named,
    of_compose,
    of_kubernetes,
    pods,
    seconds,
    settings,
)
from tests.test_start import called
from worker import GRACE

PAGE = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
PROCESSES = [*of_compose(), *of_kubernetes()]
CONTAINERS = [
    pytest.param(pod, container, id=f"{name}-{container['name']}")
    for name, pod in pods().items()
    for container in [*pod.get("initContainers", []), *pod["containers"]]
]
METRICS_PORT, HEALTH_PORT = 9464, 9466
# What ends after its drain: task processes, the resolver, the interpreter.
SLACK_S = 10
# Read by us beside the settings.
OTHER_VARIABLES = {FORMAT, "NAUTILUS_DOOR_URL", "NAUTILUS_CODEC_KEYS", "NAUTILUS_CODEC_KEYS_FILE"}
READ = {f"NAUTILUS_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES


def identified(process: Process) -> str:
    return f"{'compose' if process in of_compose() else 'kubernetes'}-{process.name}"


every_process = pytest.mark.parametrize("process", PROCESSES, ids=identified)


# ---- by their own schemas


def test_the_compose_file_is_one_by_the_compose_specification() -> None:
    vendored = files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(vendored.read_text()))


# The oldest has all that is used here, so that a cluster need not be new.
@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("file", MANIFESTS)
def test_every_manifest_is_one_by_kubernetes_own_schemas_and_has_no_unknown_field(file: str, version: str) -> None:
    for manifest in MANIFESTS[file]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_everything_but_the_template_of_secrets_is_applied() -> None:
    assert set(KUSTOMIZATION["resources"]) == set(MANIFESTS) - {"secrets.example.yaml"}
    assert {image["name"] + ":" for image in KUSTOMIZATION["images"]} == {IMAGES[1]}
    assert {one["metadata"].get("namespace", "nautilus") for one in OBJECTS} == {"nautilus"}


# ---- commands, variables, ports, files


@every_process
def test_every_process_runs_a_command_that_there_is(process: Process) -> None:
    assert called(f"nautilus {shlex.join(process.arguments)}").startswith("nautilus ")


def test_both_run_every_process_of_a_platform() -> None:
    wanted = {"apply", "worker", "agents", "door", "metrics"}

    assert {process.name for process in of_compose()} == wanted
    assert {process.name.removeprefix("nautilus-") for process in of_kubernetes()} == wanted


@every_process
def test_every_variable_is_one_that_something_reads(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {name for name in process.environment if name.startswith("NAUTILUS_")}
    of_temporal = {name: value for name, value in process.environment.items() if name not in ours}

    assert ours <= READ
    for name, value in of_temporal.items():
        read = ClientConfig.load_client_connect_config(override_env_vars={name: value}, disable_file=True)
        assert value in read.values(), name
    for name in ours:
        value = process.environment[name]
        if isinstance(value, str):
            monkeypatch.setenv(name, value)
    Settings()


@every_process
def test_whoever_needs_the_database_has_its_address_and_nobody_else(process: Process) -> None:
    if process in of_compose():
        return  # one environment for all, on one machine
    needs_none = process.name == "nautilus-agents"
    assert ("NAUTILUS_DATABASE_URL" in process.environment) is not needs_none


@every_process
def test_every_port_is_the_one_of_the_command_and_of_its_probe(process: Process) -> None:
    listening = {
        "door": door.PORT,
        "metrics": 9465,
    }
    expected = {port for name, port in listening.items() if process.arguments[0] == name}
    for variable, port in ((VARIABLE, HEALTH_PORT), ("NAUTILUS_METRICS_ADDRESS", METRICS_PORT)):
        if variable in process.environment:
            assert process.environment[variable] == f"0.0.0.0:{port}"
            expected.add(port)

    if "--port" in process.arguments:
        assert int(process.arguments[process.arguments.index("--port") + 1]) in expected
        assert process.arguments[process.arguments.index("--host") + 1] == "0.0.0.0"
    if process in of_kubernetes():
        assert {port["containerPort"] for port in process.declared.get("ports", [])} == expected


def test_the_default_port_of_the_metrics_is_the_one_here() -> None:
    from starter.cli import load

    (port,) = (option for option in load("metrics").params if option.name == "port")
    assert port.default == 9465


def test_every_probe_asks_for_a_page_that_is_open() -> None:
    for name, pod in pods().items():
        for container in pod["containers"]:
            ports = {port["name"] for port in container.get("ports", [])}
            kinds = ("startupProbe", "readinessProbe", "livenessProbe")
            probes = [container[kind] for kind in kinds if kind in container]
            assert probes or name == "nautilus-apply"
            for probe in probes:
                asked = probe.get("httpGet") or probe["tcpSocket"]
                assert asked["port"] in ports
                # A worker answers whatever path is asked for.
                assert asked.get("path", "/health") in OPEN | {"/metrics"}


def test_every_file_that_is_mounted_or_copied_is_there() -> None:
    mounts = [mount for service in COMPOSE["services"].values() for mount in service.get("volumes", [])]
    bound = [mount for mount in mounts if mount["type"] == "bind"]
    copied = re.findall(r"^COPY (.+) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)

    assert bound
    assert all((FOLDER / mount["source"]).is_file() and mount["read_only"] for mount in bound)
    assert {mount["source"] for mount in mounts if mount["type"] == "volume"} == set(COMPOSE["volumes"])
    assert all((ROOT / path).exists() for line in copied for path in line.split())


def test_every_volume_and_every_reference_of_a_pod_is_declared() -> None:
    maps = {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] in ("ConfigMap", "Secret")}
    for pod in pods().values():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            references = [entry["valueFrom"]["secretKeyRef"] for entry in secrets_of(container)]
            assert all(reference["key"] in maps[reference["name"]]["stringData"] for reference in references)
            assert all(source["configMapRef"]["name"] in maps for source in container.get("envFrom", []))
        for volume in volumes.values():
            name = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
            assert name is None or name in maps


def secrets_of(container: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in container.get("env", []) if "secretKeyRef" in entry.get("valueFrom", {})]


# ---- what a pod may do


@pytest.mark.parametrize(("pod", "container"), CONTAINERS)
def test_nothing_runs_as_root_gains_anything_or_writes_to_its_image(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    own, all_of_it = container["securityContext"], pod["securityContext"]

    assert (all_of_it["runAsNonRoot"], all_of_it["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert all_of_it["runAsUser"] > 0
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert {"cpu", "memory"} == set(container["resources"]["requests"]) == set(container["resources"]["limits"])


@pytest.mark.parametrize("process", of_compose(), ids=identified)
def test_a_service_of_ours_is_as_tight_in_the_compose_file(process: Process) -> None:
    service = process.declared

    assert (service["user"], service["read_only"], service["cap_drop"]) == ("10001:10001", True, ["ALL"])
    assert "no-new-privileges:true" in service["security_opt"]


def test_the_image_s_user_is_the_one_of_the_manifests() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (.+)$", dockerfile, re.MULTILINE)

    assert {f"{pod['securityContext']['runAsUser']}:10001" for pod in pods().values()} == {user}
    assert "--require-hashes" in dockerfile


def test_every_image_is_pinned_by_its_tag() -> None:
    used = [container["image"] for pod in pods().values() for container in pod["containers"]]
    used += [service["image"] for service in COMPOSE["services"].values()]
    used += re.findall(r"^FROM (\S+)", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    made_here = "nautilus:local"

    assert made_here in used
    assert all(re.search(r":v?\d[\w.-]*$", image) for image in used if image != made_here)


def test_no_secret_is_in_a_file() -> None:
    for process in of_compose():
        assert "${POSTGRES_PASSWORD:?" in process.environment["NAUTILUS_DATABASE_URL"]
    for process in of_kubernetes():
        url = process.environment.get("NAUTILUS_DATABASE_URL")
        assert url is None or "secretKeyRef" in url
    assert not [name for name in settings() if re.search("KEY|SECRET|PASSWORD|URL", name)]
    template = [value for one in MANIFESTS["secrets.example.yaml"] for value in one["stringData"].values()]
    assert all("USER:PASSWORD" in value or value == "REPLACE" for value in template)


def test_the_agents_keys_are_copied_to_where_only_their_owner_reads_them() -> None:
    assert set(named("Secret", "nautilus-agent-keys")["stringData"]) == {f"{agent.agent_id}.pem" for agent in ROSTER}
    for name in ("nautilus-agents", "nautilus-apply"):
        pod = pods()[name]
        (copying,) = pod["initContainers"]
        (container,) = pod["containers"]
        (keys,) = (mount for mount in container["volumeMounts"] if mount["mountPath"].endswith("/keys"))
        assert keys["mountPath"] == f"{settings()['NAUTILUS_HOME']}/keys"
        assert keys["readOnly"]
        assert copying["command"][-1] == f"install -m 0400 /run/agent-keys/*.pem {keys['mountPath']}/"


def test_every_process_is_given_the_time_that_it_takes_to_stop() -> None:
    of_a_worker = GRACE.total_seconds() + SLACK_S
    of_the_door = door.GRACE_S + CLOSE_S + SLACK_S
    for name, at_least in (("worker", of_a_worker), ("door", of_the_door)):
        pod = pods()[f"nautilus-{name}"]
        (container,) = pod["containers"]
        before = container.get("lifecycle", {}).get("preStop", {}).get("exec", {"command": ["sleep", "0"]})
        assert pod["terminationGracePeriodSeconds"] >= at_least + int(before["command"][1])
        assert seconds(COMPOSE["services"][name]["stop_grace_period"]) >= at_least


# ---- declarations and metrics


def test_the_declaration_is_valid_and_the_same_in_both(tmp_path: Path) -> None:
    text = named("ConfigMap", "nautilus-platform")["data"]["platform.toml"]

    assert text == (FOLDER / "platform.toml").read_text()
    assert declared_platform(Settings(platform=FOLDER / "platform.toml")).parameters


def test_a_server_of_one_s_own_refuses_the_same_updates_as_the_embedded_one() -> None:
    settings = yaml.safe_load((FOLDER / "temporal-dynamic-config.yaml").read_text())

    assert settings[UPDATES_SETTING] == [{"value": MOST_UPDATE_BYTES}]


def test_prometheus_scrapes_the_jobs_of_the_alert_rules() -> None:
    here = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    there = yaml.safe_load((ROOT / "docs" / "monitoring" / "scrape.yml").read_text())
    jobs = {job["job_name"]: job for job in here["scrape_configs"]}
    mounted = {mount["target"] for mount in COMPOSE["services"]["prometheus"]["volumes"]}

    assert set(jobs) == {job["job_name"] for job in there["scrape_configs"]}
    assert jobs["nautilus"]["static_configs"] == [{"targets": ["metrics:9465"]}]
    assert jobs["nautilus-worker"]["dns_sd_configs"] == [{"names": ["worker"], "type": "A", "port": METRICS_PORT}]
    assert set(here["rule_files"]) <= mounted


# ---- the page


def test_the_page_s_commands_are_commands() -> None:
    lines = re.findall(r"`(nautilus [^`]+)`", PAGE) + re.findall(r"-- (nautilus .+)$", PAGE, re.MULTILINE)

    assert len(lines) > 5
    for line in lines:
        assert called(line).startswith("nautilus ")


def test_the_page_s_variables_are_read() -> None:
    ours = set(re.findall(r"\bNAUTILUS_[A-Z_]+\b", PAGE))
    of_temporal = set(re.findall(r"\bTEMPORAL_[A-Z_]+\b", PAGE)) - {"TEMPORAL_CONFIG_FILE", "TEMPORAL_PROFILE"}
    without = ClientConfigProfile.load(disable_file=True, override_env_vars={})

    assert ours <= READ
    assert {"TEMPORAL_ADDRESS", "TEMPORAL_API_KEY"} <= of_temporal
    for name in of_temporal:
        assert ClientConfigProfile.load(disable_file=True, override_env_vars={name: "true"}) != without, name


def test_the_page_s_files_are_there() -> None:
    linked = re.findall(r"\]\(([^)#]+)", PAGE)

    assert linked
    assert all((ROOT / "docs" / path).exists() for path in linked if not path.startswith("http"))
    assert KUBERNETES.is_dir()
