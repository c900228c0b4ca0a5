"""The two small wheels: built from our own files, installed without this checkout, and what the README says of them."""

import asyncio
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from datetime import UTC, datetime, timedelta
from email import message_from_string
from email.message import Message
from pathlib import Path

import mcp.client
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from mcp import StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import TextContent
from sqlmodel import select
from temporalio.client import Client

from activities import door_keys
from activities.agents import register_agent
from activities.database import Database
from activities.parameters import declare_parameters
from activities.recording import record_outcomes
from schema import wire
from schema.messages.cycle import CycleRequest, Phase, workflow_id
from schema.messages.door import PLATFORM_SCOPES
from schema.messages.platform import TaskTypeDeclaration
from schema.settings import Settings
from schema.tables.observatory import OutcomeRow
from starter import keys
from starter.client import NautilusClient
from starter.door.app import application
from starter.server import dev_server, prepare
from starter.wheels.build import AGENT, PLATFORM, ROOT, WHEELS, Wheel, build, section
from starter.wheels.sources import Module, SourceError, closure
from tests import builders
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.serving import serving
from worker import worker
from workflows.plugin import plugin

README = (ROOT / "README.md").read_text(encoding="utf-8")
EVERY_WHEEL = pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name)
# What needs an extra, of the names at a wheel's top.
WITH_EXTRAS = {
    AGENT: ("AgentKey", "KeyFileError", "make_key", "read_key"),
    PLATFORM: ("DatabaseStore", "NautilusProvider", "Settings", "declared_platform", "existing"),
}
IMPORT_ALL = """
import importlib, pkgutil, sys
top = importlib.import_module(sys.argv[1])
for name in [*top.__all__, *sys.argv[2:]]:
    getattr(top, name)
modules = [module.name for module in pkgutil.walk_packages(top.__path__, top.__name__ + ".")]
for name in modules:
    importlib.import_module(name)
tops = {name.split(".")[0] for name in sys.modules}
print(len(modules), *sorted(tops & {"activities", "rules", "schema", "starter"}))
"""


# ---- the files


IMPORTS: dict[str, tuple[str, str]] = {
    "of a module": ("from schema.wire import STATUS\n", "from us.schema.wire import STATUS\n"),
    "of a package's modules": ("from schema import wire\n", "from us.schema import wire\n"),
    "over several lines": (
        "from schema.wire import (\n    A,\n    B,\n)\n",
        "from us.schema.wire import (\n    A,\n    B,\n)\n",
    ),
    "in a function": ("def f():\n    from rules import bounds\n", "def f():\n    from us.rules import bounds\n"),
    "for types only": (
        "if TYPE_CHECKING:\n    from starter.keys import AgentKey\n",
        "if TYPE_CHECKING:\n    from us.starter.keys import AgentKey\n",
    ),
    "by its whole name": (
        "import schema.tables\nschema.tables\n",
        "import us.schema.tables; from us import schema\nschema.tables\n",
    ),
    "of a whole package": ("import schema  # noqa\n", "from us import schema  # noqa\n"),
    "under another name": ("import schema.wire as w\n", "import us.schema.wire as w\n"),
    "two in one line": (
        "from schema import wire; import rules\n",
        "from us.schema import wire; from us import rules\n",
    ),
    "behind what is no ASCII": ('x = "→"; from schema import wire\n', 'x = "→"; from us.schema import wire\n'),
    # What is not ours, or is found from where the file is, stays.
    "relative": ("from ..wire import STATUS\n", "from ..wire import STATUS\n"),
    "of others": ("import schematics\nfrom schema_x import y\n", "import schematics\nfrom schema_x import y\n"),
    "in a text": ('"""\nfrom schema import wire\n"""\n', '"""\nfrom schema import wire\n"""\n'),
}


@pytest.mark.parametrize(("before", "after"), IMPORTS.values(), ids=IMPORTS)
def test_imports_of_ours_become_imports_from_the_wheel_s_package(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(before, encoding="utf-8")

    assert Module("schema.messages.module", path).below("us").decode() == after


def test_what_a_module_needs_is_followed_through_functions_types_and_packages(tmp_path: Path) -> None:
    files = {
        "schema/__init__.py": "",
        "schema/a.py": "def f():\n    from .below import b\n",
        "schema/below/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import schema.c\n",
        "schema/below/b.py": "import json, pydantic\n",
        "schema/c.py": "from . import unrelated_name\n",
        "schema/not_needed.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    modules = closure(["schema.a"], tmp_path)

    assert list(modules) == ["schema", "schema.a", "schema.below", "schema.below.b", "schema.c"]
    assert {library for module in modules.values() for library in module.libraries()} == {"pydantic"}


def test_an_import_by_a_text_cannot_be_followed_and_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "schema.py"
    path.write_text("import importlib\nimportlib.import_module(f'schema.{name}')\n")

    with pytest.raises(SourceError, match=r"schema.py:2: expected import statements, but import_module came"):
        closure(["schema"], tmp_path)


def test_a_file_that_needs_what_the_wheel_does_not_install_is_refused() -> None:
    without = Wheel(PLATFORM.name, PLATFORM.top, "", dependencies=("pydantic", "mmh3", "httpx", "structlog"))

    with pytest.raises(SourceError, match=r"expected imports of what nautilus-platform installs, but .* came"):
        without.modules()


# ---- the wheels


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> dict[Wheel, Path]:
    folder = tmp_path_factory.mktemp("dist")
    return {wheel: build(wheel, folder) for wheel in WHEELS}


def metadata(path: Path) -> Message:
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def required(path: Path) -> set[str]:
    """The distributions that it installs without an extra."""
    requirements = metadata(path).get_all("Requires-Dist", [])
    return {re.split(r"[<>=]", text)[0] for text in requirements if "extra ==" not in text}


@EVERY_WHEEL
def test_the_same_files_give_the_same_bytes(dist: dict[Wheel, Path], wheel: Wheel, tmp_path: Path) -> None:
    again = build(wheel, tmp_path)

    assert again.name == dist[wheel].name
    assert again.read_bytes() == dist[wheel].read_bytes()


def test_an_agent_installs_temporalio_and_pydantic_alone(dist: dict[Wheel, Path]) -> None:
    assert required(dist[AGENT]) == {"temporalio", "pydantic"}


def test_a_platform_installs_neither_temporal_nor_a_database(dist: dict[Wheel, Path]) -> None:
    assert required(dist[PLATFORM]) == {"pydantic", "mmh3", "httpx", "structlog"}


@EVERY_WHEEL
def test_a_wheel_has_one_package_its_license_its_types_and_its_page(dist: dict[Wheel, Path], wheel: Wheel) -> None:
    with zipfile.ZipFile(dist[wheel]) as archive:
        names = archive.namelist()
    about = metadata(dist[wheel])

    (information,) = {name.split("/")[0] for name in names} - {wheel.package}
    assert f"{wheel.package}/py.typed" in names
    assert f"{information}/licenses/LICENSE" in names
    assert about["License-Expression"] == "Apache-2.0"
    assert f"from {wheel.package} import" in about.get_payload()
    # Worlds to practise on and what runs a platform stay here.
    assert not [name for name in names if re.search(r"/(simulation|workflows|commands|agents)/", name)]


def test_the_application_itself_stays_unpublished() -> None:
    assert 'classifiers = ["Private :: Do Not Upload"]' in (ROOT / "pyproject.toml").read_text()


# ---- installed


def installed(path: Path, extras: tuple[str, ...], folder: Path) -> Path:
    """The Python of a fresh environment with the wheel and what it requires, and without this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-qq", f"{path}[{','.join(extras)}]" if extras else str(path)], check=True)
    return python


def clean_environment(**variables: str) -> dict[str, str]:
    """This process's, without what would let another one find this checkout."""
    ours = ("PYTHONPATH", "NAUTILUS_", "TEMPORAL_", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | variables


def run(python: Path, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-W", "error", "-c", code, *arguments]
    return subprocess.run(
        command,
        cwd=python.parent,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


@pytest.fixture(scope="module")
def bare(dist: dict[Wheel, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Wheel, Path]:
    """Each wheel in an environment of its own, without extras."""
    return {wheel: installed(dist[wheel], (), tmp_path_factory.mktemp("bare") / wheel.package) for wheel in WHEELS}


@pytest.fixture(scope="module")
def whole(dist: dict[Wheel, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Wheel, Path]:
    """Each wheel in an environment of its own, with every extra."""
    folder = tmp_path_factory.mktemp("whole")
    return {wheel: installed(dist[wheel], tuple(wheel.extras), folder / wheel.package) for wheel in WHEELS}


@pytest.fixture
def agent_key(tmp_path: Path) -> keys.AgentKey:
    return keys.make(tmp_path / "ada.pem", "ada")


@EVERY_WHEEL
def test_every_module_of_a_wheel_loads_where_nothing_else_is_installed(whole: dict[Wheel, Path], wheel: Wheel) -> None:
    ended = run(whole[wheel], IMPORT_ALL, wheel.package, *WITH_EXTRAS[wheel])

    # The number of modules, and none of ours outside the wheel's package. The top is not among those below it.
    assert (ended.stdout, ended.stderr) == (f"{len(wheel.modules()) - 1}\n", "")


@EVERY_WHEEL
def test_what_needs_no_extra_loads_without_one(bare: dict[Wheel, Path], wheel: Wheel) -> None:
    ended = run(bare[wheel], f"from {wheel.package} import *")

    assert (ended.stdout, ended.stderr) == ("", "")


NEEDS_AN_EXTRA: dict[str, tuple[Wheel, str, str, str]] = {
    "a key": (AGENT, "from nautilus_agent import AgentKey", "cryptography", "nautilus-agent[signing]"),
    "a client that signs": (
        AGENT,
        "import asyncio, nautilus_agent; asyncio.run(nautilus_agent.NautilusClient.connect())",
        "cryptography",
        "nautilus-agent[signing]",
    ),
    "the id of a proposal": (
        AGENT,
        "import nautilus_agent; nautilus_agent.Proposal.model_construct().proposal_id",
        "rfc8785",
        "nautilus-agent[signing]",
    ),
    "the tools for a language model": (
        AGENT,
        "from nautilus_agent.mcp_server import main; main()",
        "cryptography",
        "nautilus-agent[mcp]",
    ),
    "the database": (
        PLATFORM,
        "from nautilus_platform import DatabaseStore",
        "sqlalchemy",
        "nautilus-platform[database]",
    ),
    "the provider of OpenFeature": (
        PLATFORM,
        "from nautilus_platform import NautilusProvider",
        "openfeature",
        "nautilus-platform[openfeature]",
    ),
}


@pytest.mark.parametrize(("wheel", "code", "library", "extra"), NEEDS_AN_EXTRA.values(), ids=NEEDS_AN_EXTRA)
def test_one_line_says_which_extra_is_missing(
    bare: dict[Wheel, Path], wheel: Wheel, code: str, library: str, extra: str
) -> None:
    ended = run(bare[wheel], code, NAUTILUS_AGENT_KEY="ada.pem")

    assert ended.returncode == 1
    expected = f"expected {library} to be installed, but it is not: run pip install '{extra}'"
    # After the error's class, where it is not the program that says so.
    assert ended.stderr.splitlines()[-1].endswith(expected)


async def test_a_language_model_gets_its_tools_from_the_wheel_alone(
    whole: dict[Wheel, Path], agent_key: keys.AgentKey, tmp_path: Path
) -> None:
    door = f"http://127.0.0.1:{free_port()}"
    variables = {"NAUTILUS_AGENT_KEY": str(tmp_path / "ada.pem"), "NAUTILUS_DOOR_URL": door, "NAUTILUS_DOOR_KEY": "k"}
    program = str(whole[AGENT].with_name("nautilus-agent-mcp"))
    command = StdioServerParameters(command=program, args=[], env=clean_environment(**variables), cwd=str(tmp_path))
    async with mcp.client.Client(stdio_client(command)) as client:
        tools = {tool.name for tool in (await client.list_tools()).tools}
        answer = await client.call_tool("find_work", {})
        server = client.server_info

    assert server is not None
    assert server.version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert tools >= {"find_work", "bid", "propose", "vote"}
    (content,) = answer.content
    assert isinstance(content, TextContent)
    assert content.text.startswith(f"expected a door at {door}, but ")


NOT_SET: dict[str, tuple[dict[str, str], str]] = {
    "the agent's key": ({}, "expected the agent's key file in NAUTILUS_AGENT_KEY, but it is not set"),
    "an agent's key that is there": (
        {"NAUTILUS_AGENT_KEY": "nowhere.pem"},
        "nowhere.pem: expected a key file, but No such file or directory",
    ),
    "the door's key": (
        {"NAUTILUS_AGENT_KEY": "ada.pem", "NAUTILUS_DOOR_URL": "http://127.0.0.1:1"},
        "expected the key that opens the door in NAUTILUS_DOOR_KEY, but it is not set",
    ),
}


@pytest.mark.parametrize(("variables", "said"), NOT_SET.values(), ids=NOT_SET)
def test_one_line_says_what_the_tools_of_a_language_model_lack(
    whole: dict[Wheel, Path], agent_key: keys.AgentKey, tmp_path: Path, variables: dict[str, str], said: str
) -> None:
    code = f"import os; os.chdir({str(tmp_path)!r}); from nautilus_agent.mcp_server import main; main()"

    ended = run(whole[AGENT], code, **variables)

    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"{said}\n")


# ---- what the README shows


def example(heading: str, longest: int) -> str:
    """The program under a heading of the README."""
    codes: list[str] = re.findall(r"```python\n(.*?)```", section(README, heading), re.DOTALL)
    assert [len(code.splitlines()) <= longest for code in codes] == [True]
    return codes[0]


async def test_hello_agent_bids_and_proposes_in_a_real_cycle(
    whole: dict[Wheel, Path], database: Database, agent_key: keys.AgentKey, tmp_path: Path
) -> None:
    (tmp_path / "hello_agent.py").write_text(example("Hello agent", 30))
    platform = builders.platform(cycle=builders.rules(), unsigned_agents=False)
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    register_agent(database, "ada", "op-ada", now, agent_key.public)
    # With fewer the vote is over before it begins.
    voters = [keys.AgentKey(name, Ed25519PrivateKey.generate()) for name in ("bob", "cyd", "dee")]
    for voter in voters:
        register_agent(database, voter.agent_id, f"op-{voter.agent_id}", now, voter.public)
    with database.transaction() as session:
        history = [builders.outcome(f"old-{n}", n % 3 > 0, now - timedelta(seconds=5)) for n in range(90)]
        record_outcomes(session, history, 1)
    anomaly = builders.anomaly(now - timedelta(seconds=10))
    cycle = workflow_id(anomaly.subject)
    async with dev_server(tmp_path, free_port(), free_port(), database_file=False) as server:
        client = await Client.connect(server.address, namespace=wire.NAMESPACE, plugins=[plugin()])
        await prepare(client)
        async with worker(client, database, platform, Settings()):
            environment = clean_environment(
                TEMPORAL_ADDRESS=server.address, NAUTILUS_AGENT_KEY=str(tmp_path / "ada.pem")
            )
            agent = await asyncio.create_subprocess_exec(
                str(whole[AGENT]), "-W", "error", "hello_agent.py", cwd=tmp_path, env=environment
            )
            try:
                request = CycleRequest(request_id="hello", anomaly=anomaly)
                await client.start_workflow(wire.IMPROVEMENT_CYCLE, request, id=cycle, task_queue=wire.TASK_QUEUE)
                # They bid nothing, so that the window ends with ada's bid.
                for voter in voters:
                    await NautilusClient(client, wire.TASK_QUEUE, voter).decline(
                        cycle, builders.decline(voter.agent_id)
                    )
                async with asyncio.timeout(PATIENCE_S):
                    async for status in NautilusClient(client).follow(cycle, every_s=0.1):
                        assert status.phase is not Phase.ENDED, status.reason
                        if status.phase is Phase.VOTING:
                            break
                assert agent.returncode is None
            finally:
                if agent.returncode is None:
                    agent.kill()
                await agent.wait()
            await client.get_workflow_handle(cycle).terminate("the test is over")

    assert list(status.bids) == ["ada"]
    assert status.proposal is not None
    assert (status.proposal.agent_id, status.proposal.value) == ("ada", 135.0)
    assert status.proposal.evidence[0].figures == {"tasks": 90, "successes": 60}
    assert status.proposal.signature is not None


def test_hello_platform_resolves_and_records_over_a_real_door(whole: dict[Wheel, Path], database: Database) -> None:
    hello = example("Hello platform", 15)
    platform = builders.platform(
        task_types=(TaskTypeDeclaration(name="support"),),
        parameters=(builders.parameter(key="support.timeout_s", task_types=("support",)),),
    )
    now = datetime.now(UTC)
    declare_parameters(database, platform, now)
    _, key = door_keys.create_platform_key(database, "web", PLATFORM_SCOPES, "olga", now)
    with serving(application(database, platform)) as url:
        ended = run(whole[PLATFORM], hello, NAUTILUS_DOOR_URL=url, NAUTILUS_DOOR_KEY=key)

    assert (ended.stdout, ended.stderr) == ("new\n", "")
    with database.reading() as session:
        (row,) = session.exec(select(OutcomeRow)).all()
    assert (row.task_type, row.failure, row.duration_s < 60) == ("support", None, True)
