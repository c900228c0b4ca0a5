"""Audits what is installed and what is committed: dependencies for known vulnerabilities, files for secrets.

    python -m benchmarks.audit [--strict]

Fails where a vulnerability or a secret is found. Advisories need a network: without one it says that nothing was
audited, which fails with `--strict` alone. A false alarm is marked at its line by `pragma: allowlist secret`.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from detect_secrets.core.secrets_collection import SecretsCollection
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.settings import transient_settings

# The development requirements contain the run-time ones. Both are audited: nothing else says that they do.
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")
OSV_URL = "https://api.osv.dev/v1/query"
SECONDS_TO_CONNECT = "5"

# What may be in this repository by mistake. The library has more, of makes that nobody here has an account with; each
# reads every line.
DETECTORS = (
    *("AWSKeyDetector", "BasicAuthDetector", "GitHubTokenDetector", "GitLabTokenDetector", "JwtTokenDetector"),
    *("NpmDetector", "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector", "SlackDetector", "StripeDetector"),
    *("KeywordDetector", "HexHighEntropyString", "Base64HighEntropyString"),
)
# Hashes, base64 and ids by the thousand, written by programs: every line would be a false alarm.
GENERATED = re.compile(r"requirements(-dev)?\.txt|tests/schemas\.json|tests/histories/.*\.json|.*\.png")
# The name of the variable that holds a webhook's secret, which is what platform.toml has in its place.
NAME_OF_A_SECRET = r'secret_env ?= ?"[A-Z_]+"'
FILTERS = (
    *("allowlist.is_line_allowlisted", "heuristic.is_indirect_reference", "heuristic.is_likely_id_string"),
    *("heuristic.is_not_alphanumeric_string", "heuristic.is_potential_uuid", "heuristic.is_prefixed_with_dollar_sign"),
    *("heuristic.is_sequential_string", "heuristic.is_templated_secret"),
)


class DoorKeyDetector(RegexBasedDetector):
    """Our own: a key of the door (activities/door_keys.py)."""

    secret_type = "Key of Nautilus's door"
    denylist = (re.compile(r"nautilus_[0-9a-f]{12}_[A-Za-z0-9_-]{43}"),)


def secrets_in(root: Path) -> list[str]:
    """What looks like a secret in the files that git has or would take, a line each; the secret itself is not shown.

    Raises ValueError where git lists no files.
    """
    root = root.resolve()
    listed = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(listed, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        raise ValueError(f"expected a git checkout in {root}, but {last_line(listing.stderr)}")
    plugins = [{"name": name} for name in DETECTORS]
    plugins.append({"name": DoorKeyDetector.__name__, "path": f"file://{Path(__file__).resolve()}"})
    filters: list[dict[str, object]] = [{"path": f"detect_secrets.filters.{name}"} for name in FILTERS]
    filters.append({"path": "detect_secrets.filters.regex.should_exclude_line", "pattern": [NAME_OF_A_SECRET]})
    searched = [
        name for name in listing.stdout.split("\0") if not GENERATED.fullmatch(name) and (root / name).is_file()
    ]
    found = SecretsCollection(str(root))
    with transient_settings({"plugins_used": plugins, "filters_used": filters}):
        found.scan_files(*searched)
    return sorted(
        {f"{Path(secret.filename).relative_to(root)}:{secret.line_number}: {secret.type}" for _, secret in found}
    )


def pip_audit(*options: str) -> subprocess.CompletedProcess[str]:
    files = [option for name in REQUIREMENTS for option in ("-r", name)]
    fixed = ["--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    command = [sys.executable, "-m", "pip_audit", *files, *fixed, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "it said nothing"


def unpinned() -> str | None:
    """Why the requirements are not each one version with its hashes, or do not fit together; None where they do."""
    collected = pip_audit("--dry-run")
    if collected.returncode != 0:
        return f"expected every requirement pinned to a version and its hashes, but {last_line(collected.stderr)}"
    checked = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    if checked.returncode != 0:
        return f"expected requirements that fit together, but {last_line(checked.stdout)}"
    return None


def vulnerabilities(osv_url: str) -> tuple[list[str], list[str]]:
    """(known vulnerabilities, why something was not audited), a line each."""
    asked = pip_audit("--vulnerability-service", "osv", "--osv-url", osv_url, "--timeout", SECONDS_TO_CONNECT)
    try:
        dependencies = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        return [], [f"expected the advisories of {osv_url} to answer, but {last_line(asked.stderr)[:300]}"]
    weak, skipped = [], []
    for dependency in dependencies:
        for found in dependency.get("vulns", ()):
            mended = ", ".join(found["fix_versions"]) or "no version yet"
            of = f"{dependency['name']} {dependency['version']}"
            weak.append(f"{of} has {found['id']}, mended in {mended}: {found['description'][:200]}")
        if "skip_reason" in dependency:
            skipped.append(f"expected advisories of {dependency['name']}, but {dependency['skip_reason']}")
    if not dependencies:
        skipped.append("expected dependencies, but none was audited")
    return weak, skipped


def main() -> int:
    parser = argparse.ArgumentParser(description="Audit the dependencies and search the files for secrets.")
    parser.add_argument("--strict", action="store_true", help="fail also where advisories could not be asked for")
    parser.add_argument("--osv-url", default=OSV_URL, help="where to ask for advisories; speaks OSV's API")
    parser.add_argument("--only", choices=("dependencies", "secrets"), help="one half")
    parser.add_argument("--root", type=Path, default=Path(), help="the checkout whose files are searched")
    options = parser.parse_args()
    failed = False
    if options.only != "secrets":
        failed = audit_dependencies(options.osv_url, options.strict)
    if options.only != "dependencies":
        failed = search_for_secrets(options.root) or failed
    return 1 if failed else 0


def search_for_secrets(root: Path) -> bool:
    """Whether it failed."""
    try:
        secrets = secrets_in(root)
    except ValueError as error:
        print(f"secrets: {error}")
        return True
    for line in secrets:
        print(f"secret: {line}")
    advice = "take them out and revoke them; a false alarm gets the comment `pragma: allowlist secret`"
    print(f"secrets: {len(secrets)} found; {advice}" if secrets else "secrets: none found")
    return bool(secrets)


def audit_dependencies(osv_url: str, strict: bool) -> bool:
    """Whether it failed. What could not be audited is said, and never counts as audited."""
    if (mistake := unpinned()) is not None:
        print(f"dependencies: {mistake}")
        return True
    weak, skipped = vulnerabilities(osv_url)
    for line in weak:
        print(f"vulnerability: {line}")
    for line in skipped:
        print(f"NOT AUDITED: {line}; run `make audit` where it can be reached")
    if not weak and not skipped:
        print("dependencies: no known vulnerability")
    return bool(weak) or (strict and bool(skipped))


if __name__ == "__main__":
    sys.exit(main())
