"""What docs/deploying holds, read: the containers of our image in the compose file and in the Kubernetes manifests."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "deploying"
KUBERNETES = FOLDER / "kubernetes"
IMAGES = ("nautilus:", "registry.example/nautilus:")
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
MANIFESTS: dict[str, list[dict[str, Any]]] = {
    file.name: list(yaml.safe_load_all(file.read_text()))
    for file in sorted(KUBERNETES.glob("*.yaml"))
    if file.name != "kustomization.yaml"
}
OBJECTS = [manifest for manifests in MANIFESTS.values() for manifest in manifests]


@dataclass(frozen=True)
class Process:
    """A container of our image: what it runs, and its environment, in which references are as they are declared."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, Any]
    declared: Mapping[str, Any]


def named(kind: str, name: str) -> dict[str, Any]:
    """The manifest of this kind and name."""
    (manifest,) = (one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return manifest


def pods() -> dict[str, dict[str, Any]]:
    """The pod specification of every workload, by its name."""
    workloads = [one for one in OBJECTS if one["kind"] in ("Deployment", "Job")]
    return {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in workloads}


def settings() -> dict[str, str]:
    """What every process in Kubernetes gets."""
    data: dict[str, str] = named("ConfigMap", "nautilus-settings")["data"]
    return data


def of_kubernetes() -> list[Process]:
    """The containers that run a command of ours."""
    processes = []
    for name, pod in pods().items():
        for container in pod["containers"]:
            own = {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container.get("env", [])}
            processes.append(Process(name, tuple(container["args"]), settings() | own, container))
    return processes


def of_compose() -> list[Process]:
    """The services that run a command of ours."""
    services = COMPOSE["services"].items()
    return [
        Process(name, tuple(service["command"]), service["environment"], service)
        for name, service in services
        if service["image"].startswith(IMAGES)
    ]


def seconds(duration: str) -> int:
    """A duration of a compose file."""
    found = re.fullmatch(r"(\d+)s", duration)
    assert found is not None
    return int(found[1])
