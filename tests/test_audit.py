"""The audit finds what is planted, passes what is clean, and says so where it could not find out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI, Request

from tests.ports import free_port
from tests.serving import serving

ROOT = Path(__file__).parent.parent
# Put together here, so that the audit of this repository does not find them in this file.
DOOR_KEY = "nautilus_" + "0a1b2c" + "3d4e5f" + "_" + "aB3-dE6_gH9" * 3 + "jK1mN2oP3q"
PRIVATE_KEY = "-----BEGIN " + "PRIVATE KEY-----"
AWS_KEY = "AKIA" + "Z7QMXW2KRT5YB3NC"


def audit(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.audit", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def advisories(vulnerable: str | None = None) -> FastAPI:
    """A service that speaks OSV's API and knows one vulnerability, of the package of that name."""
    app = FastAPI()

    @app.post("/v1/query")
    async def query(request: Request) -> dict[str, object]:
        asked = json.loads(await request.body())  # it comes without a content type
        if asked["package"]["name"] != vulnerable:
            return {}
        ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "999.0"}]}]
        affected = [{"package": {"name": vulnerable, "ecosystem": "PyPI"}, "ranges": ranges}]
        return {"vulns": [{"id": "PYSEC-2026-1", "summary": "keys leak", "affected": affected}]}

    return app


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An empty git checkout."""
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "line", "kind"),
    [
        ("keys.py", f"KEY = '{DOOR_KEY}'", "Key of Nautilus's door"),
        ("notes.md", f"the platform's key is {DOOR_KEY}, do not lose it", "Key of Nautilus's door"),
        ("ada.pem", PRIVATE_KEY, "Private Key"),
        ("settings.toml", f'aws = "{AWS_KEY}"', "AWS Access Key"),
    ],
)
def test_a_planted_secret_is_found_whether_it_is_committed_or_not(tree: Path, name: str, line: str, kind: str) -> None:
    (tree / name).write_text(f"a line before\n{line}\n")

    uncommitted = audit("--only", "secrets", "--root", str(tree))
    subprocess.run(["git", "-C", str(tree), "add", name], check=True)
    committed = audit("--only", "secrets", "--root", str(tree))

    assert (uncommitted.returncode, committed.returncode) == (1, 1)
    assert f"secret: {name}:2: {kind}" in uncommitted.stdout
    assert f"secret: {name}:2: {kind}" in committed.stdout
    assert line not in committed.stdout + committed.stderr


def test_a_line_that_a_person_marked_and_a_file_that_git_ignores_are_let_through(tree: Path) -> None:
    (tree / "example.py").write_text(f"KEY = '{DOOR_KEY}'  # pragma: allowlist secret\n")
    (tree / ".gitignore").write_text("mine.pem\n")
    (tree / "mine.pem").write_text(PRIVATE_KEY)

    searched = audit("--only", "secrets", "--root", str(tree))

    assert (searched.returncode, searched.stdout.strip()) == (0, "secrets: none found")


def test_a_folder_that_is_no_checkout_is_not_taken_for_one_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "ada.pem").write_text(PRIVATE_KEY)

    searched = audit("--only", "secrets", "--root", str(tmp_path))

    assert searched.returncode == 1
    assert searched.stdout.startswith("secrets: expected a git checkout")


def test_a_dependency_with_a_known_vulnerability_fails_the_audit() -> None:
    with serving(advisories(vulnerable="cryptography")) as url:
        audited = audit("--only", "dependencies", "--osv-url", f"{url}/v1/query")

    assert audited.returncode == 1
    assert "vulnerability: cryptography" in audited.stdout
    assert "has PYSEC-2026-1, mended in 999.0: keys leak" in audited.stdout


def test_dependencies_without_a_known_vulnerability_pass_the_strict_audit_too() -> None:
    with serving(advisories()) as url:
        audited = audit("--only", "dependencies", "--strict", "--osv-url", f"{url}/v1/query")

    assert (audited.returncode, audited.stdout.strip()) == (0, "dependencies: no known vulnerability")


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--strict",), 1)])
def test_advisories_that_do_not_answer_are_never_read_as_good_news(options: tuple[str, ...], status: int) -> None:
    audited = audit("--only", "dependencies", "--osv-url", f"http://127.0.0.1:{free_port()}/v1/query", *options)

    assert audited.returncode == status
    (line,) = audited.stdout.strip().splitlines()
    assert line.startswith("NOT AUDITED: expected the advisories of http://127.0.0.1")
    assert line.endswith("run `make audit` where it can be reached")


def test_advisories_that_answer_something_else_are_never_read_as_good_news() -> None:
    with serving(FastAPI()) as url:  # every path is a 404 in JSON
        audited = audit("--only", "dependencies", "--strict", "--osv-url", f"{url}/v1/query")

    assert audited.returncode == 1
    assert audited.stdout.startswith("NOT AUDITED: ")
