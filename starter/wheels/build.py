"""Builds the two small wheels: what each needs of our files, below one package name of its own.

    python -m starter.wheels.build [folder]

`schema` and `rules` are names that other projects use too, so nothing that is published has them at its top. The same
files give the same bytes.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starter.wheels.sources import Module, SourceError, closure

ROOT = Path(__file__).parents[2]
# The time of every file in a wheel: the first that a zip can hold.
EPOCH = "315532800"
# What a distribution brings along to import, where that is not only its name.
IMPORTED_AS = {
    "ddsketch[serialization]": ("ddsketch",),
    "mcp": ("mcp", "mcp_types", "httpx2", "starlette"),
    "openfeature-sdk": ("openfeature",),
    "psycopg[binary]": ("psycopg",),
    "pydantic": ("pydantic", "pydantic_core"),
    "sqlmodel": ("sqlmodel", "sqlalchemy"),
}
# What stands in this package is at a wheel's top.
TOPS = "starter.wheels"
# Only `nautilus up` calls the one function that imports it: a wheel reads a database that has been made.
NOT_REACHED = {"alembic"}


@dataclass(frozen=True, eq=False)
class Wheel:
    """What a wheel is made of.

    `top` is the module that becomes its package. Distributions are named without versions: pyproject.toml has those.
    """

    name: str
    top: str
    description: str
    dependencies: tuple[str, ...]
    extras: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scripts: Mapping[str, str] = field(default_factory=dict)
    # Modules that scripts start, and that `top` does not import.
    others: tuple[str, ...] = ()

    @property
    def package(self) -> str:
        return self.name.replace("-", "_")

    def modules(self, root: Path = ROOT) -> dict[str, Module]:
        """All that is in it. Raises SourceError for a file that imports what the wheel does not install."""
        modules = closure((self.top, *self.others), root)
        # The package that the tops stand in is not published.
        del modules[TOPS]
        installed = self.libraries() | NOT_REACHED
        for module in modules.values():
            if more := module.libraries() - installed:
                raise SourceError(f"{module.path}: expected imports of what {self.name} installs, but {more} came")
        return modules

    def libraries(self) -> set[str]:
        """The packages that it installs, with all extras."""
        distributions = {*self.dependencies}.union(*self.extras.values())
        return {package for name in distributions for package in IMPORTED_AS.get(name, (name,))}


AGENT = Wheel(
    name="nautilus-agent",
    top="starter.wheels.nautilus_agent",
    description="The client of an agent that works for a Nautilus platform: bids, proposals, votes, tasks.",
    dependencies=("temporalio", "pydantic"),
    extras={"signing": ("cryptography", "rfc8785"), "mcp": ("mcp", "cryptography", "rfc8785")},
    scripts={"nautilus-agent-mcp": "nautilus_agent.mcp_server:main"},
    others=("starter.wheels.mcp_server",),
)
PLATFORM = Wheel(
    name="nautilus-platform",
    top="starter.wheels.nautilus_platform",
    description="Resolves parameters and records outcomes in a platform that Nautilus improves.",
    dependencies=("pydantic", "mmh3", "httpx", "structlog"),
    extras={
        "database": ("sqlmodel", "ddsketch[serialization]", "rfc8785"),
        "openfeature": ("openfeature-sdk",),
        "postgres": ("psycopg[binary]",),
    },
)
WHEELS = (AGENT, PLATFORM)


def build(wheel: Wheel, folder: Path) -> Path:
    """The wheel, in `folder`. Raises SourceError."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    with tempfile.TemporaryDirectory() as staged:
        _stage(wheel, project, Path(staged))
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder.resolve())]
        environment = os.environ | {"SOURCE_DATE_EPOCH": EPOCH}
        built = subprocess.run(command, cwd=staged, env=environment, check=False, capture_output=True, text=True)
    if built.returncode:
        raise SourceError(f"expected hatchling to build {wheel.name}, but it failed: {built.stderr}")
    return folder / f"{wheel.package}-{project['version']}-py3-none-any.whl"


def section(page: str, heading: str) -> str:
    """What stands under a heading of a Markdown page. Raises ValueError where there is no such heading."""
    found = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", page, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"expected a heading {heading!r}, but there is none")
    return found[1].strip()


def _stage(wheel: Wheel, project: Mapping[str, Any], folder: Path) -> None:
    for module in wheel.modules().values():
        target = folder / wheel.package / _place(wheel, module)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(module.below(wheel.package))
    (folder / wheel.package / "py.typed").touch()
    shutil.copy(ROOT / "LICENSE", folder)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    hello = section(page, f"Hello {wheel.name.removeprefix('nautilus-')}")
    (folder / "README.md").write_text(f"# {wheel.name}\n\n{wheel.description}\n\n{hello}\n", encoding="utf-8")
    (folder / "pyproject.toml").write_text(_configuration(wheel, project), encoding="utf-8")


def _place(wheel: Wheel, module: Module) -> Path:
    """Where a module is below the wheel's package."""
    if module.name == wheel.top:
        return Path("__init__.py")
    path = module.path.relative_to(ROOT)
    return Path(path.name) if module.name.startswith(f"{TOPS}.") else path


def _configuration(wheel: Wheel, project: Mapping[str, Any]) -> str:
    """The wheel's pyproject.toml; what JSON writes of texts and lists of texts is TOML too."""
    versions = _versions(project)

    def required(names: tuple[str, ...]) -> str:
        return json.dumps([name + versions[_distribution(name)] for name in names])

    lines = [
        "[build-system]",
        'requires = ["hatchling"]',
        'build-backend = "hatchling.build"',
        "[project]",
        f"name = {json.dumps(wheel.name)}",
        f"version = {json.dumps(project['version'])}",
        f"description = {json.dumps(wheel.description)}",
        'readme = "README.md"',
        f"requires-python = {json.dumps(project['requires-python'])}",
        f"license = {json.dumps(project['license'])}",
        'license-files = ["LICENSE"]',
        'classifiers = ["Programming Language :: Python :: 3", "Typing :: Typed"]',
        f"dependencies = {required(wheel.dependencies)}",
        "[project.optional-dependencies]",
        *(f"{name} = {required(names)}" for name, names in wheel.extras.items()),
        "[project.scripts]",
        *(f"{name} = {json.dumps(target)}" for name, target in wheel.scripts.items()),
        "[tool.hatch.build.targets.wheel]",
        f"packages = [{json.dumps(wheel.package)}]",
    ]
    return "\n".join(lines) + "\n"


def _versions(project: Mapping[str, Any]) -> dict[str, str]:
    """The versions that the application requires (`>=2.14,<3`), by distribution."""
    required = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
    return {_distribution(one): re.sub(r"^[^<>=!~]*", "", one) for one in required}


def _distribution(requirement: str) -> str:
    """Its name, without extras and versions."""
    return re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("dist")
    for wheel in WHEELS:
        sys.stdout.write(f"{build(wheel, folder)}\n")


if __name__ == "__main__":
    main()
