"""Checks of this machine: declaration, playbook, secrets, folder, disk, key files, and the door that it calls."""

import json
import os
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from starter.checks.finding import Judgement, ok, problem, warning
from starter.checks.site import Site

GIGABYTE = 1_000_000_000
# A database and a server that run out of room stop in the middle of their work.
LEAST_FREE, LEAST_FREE_SHARE = GIGABYTE, 0.05
DOOR_URL = "NAUTILUS_DOOR_URL"
DOOR_PATIENCE_S = 5.0


def declaration(site: Site) -> Judgement:
    """`platform.toml` is valid."""
    from schema.declaration import DeclarationError, declared_platform

    file = site.settings.platform
    try:
        platform = declared_platform(site.settings)
    except DeclarationError as error:
        mend = "`nautilus check` shows every mistake" if file.exists() else "`nautilus init`, or set NAUTILUS_PLATFORM"
        return problem(str(error), mend)
    counts = f"{len(platform.task_types)} task types, {len(platform.parameters)} parameters"
    return ok(f"{file} is valid: {counts}, pace {platform.pace}")


def playbook(site: Site) -> Judgement:
    """The built-in agents' playbook is valid, with the operator's own where there is one."""
    from schema.declaration import DeclarationError
    from starter.agents.playbook import playbook as read

    own = site.settings.playbook
    try:
        read(own)
    except DeclarationError as error:
        return problem(str(error), "correct the file, or unset NAUTILUS_PLAYBOOK; `nautilus check` shows every mistake")
    return ok(f"{own} is valid" if own else "the one that ships; NAUTILUS_PLAYBOOK would name your own")


def secrets(site: Site) -> Judgement:
    """The secrets of declared subscribers are set, and can be used. A worker may have others than this shell."""
    from activities.deliveries import mistakes

    platform = site.platform()
    wrong = mistakes(platform, site.environment)
    if wrong:
        mend = "set the variable where the worker (or `nautilus up`) is started, and start it again"
        return warning("in this shell: " + "; ".join(wrong.values()), mend)
    declared = len(platform.webhooks) + len(platform.notifications)
    return ok(f"of {declared} subscribers, all set" if declared else "no subscriber needs one")


def folder(site: Site) -> Judgement:
    """The folders of the installation and of a SQLite database can be written."""
    for path in _folders(site):
        if not path.is_dir():
            return problem(f"expected the folder {path}, but there is none", "`nautilus up`, or set NAUTILUS_HOME")
        if not os.access(path, os.W_OK | os.X_OK):
            return problem(f"{path} cannot be written by this user", f"`chown` or `chmod u+wx` {path}")
    if (file := _sqlite_file(site)) is not None and file.exists() and not os.access(file, os.W_OK):
        return problem(f"{file} cannot be written by this user", f"`chown` or `chmod u+w` {file}")
    return ok(f"{', '.join(map(str, _folders(site)))} can be written")


def disk(site: Site) -> Judgement:
    """There is room on the disks of those folders."""
    rooms = []
    for folder in _folders(site):
        # Of a folder that is yet to be made, the disk that it will be on.
        path = next(place for place in (folder, *folder.parents) if place.exists())
        free, total = site.free_and_total(path)
        room = f"{free / GIGABYTE:.1f} GB ({free / total:.0%}) free in {path}"
        if free < LEAST_FREE or free < LEAST_FREE_SHARE * total:
            mend = "free some room or enlarge the disk before it is full"
            return warning(f"only {room}; expected 1 GB and {LEAST_FREE_SHARE:.0%}", mend)
        rooms.append(room)
    return ok("; ".join(dict.fromkeys(rooms)))


def _folders(site: Site) -> list[Path]:
    file = _sqlite_file(site)
    return list(dict.fromkeys([site.settings.home.resolve(), *([file.parent] if file else [])]))


def _sqlite_file(site: Site) -> Path | None:
    """The database's file; None where it is on a server."""
    kind, _, path = site.settings.database.partition(":///")
    return Path(path.partition("?")[0]).resolve() if kind == "sqlite" and path else None


def key_files(site: Site) -> Judgement:
    """The key files of this installation can be read by their owner, and by nobody else."""
    from starter import keys

    files = _key_files(site)
    for file in files:
        try:
            keys.read(file)
        except keys.KeyFileError as error:
            mend = f"`chmod 600 {file}`" if "chmod" in str(error) else f"bring {file} back from a backup"
            return problem(str(error), mend)
    return ok(f"{len(files)} keys that only their owner can read" if files else "no agent runs from this folder")


def registered_keys(site: Site) -> Judgement:
    """The key files are those of the keys in force: what another key signs is refused."""
    from activities import condition
    from rules.identity import REVOKED
    from starter import keys

    registered = condition.agent_keys(site.readable())
    files = _key_files(site)
    for file in files:
        try:
            key = keys.read(file)
        except keys.KeyFileError as error:
            raise ValueError(error) from None  # `key files` says it
        in_force = registered.get(key.agent_id)
        if in_force == key.public:
            continue
        registers = f"`nautilus agent rotate {key.agent_id} --public-key {key.public} --why ...`"
        if in_force == REVOKED:
            return warning(f"the key of {key.agent_id} is revoked: it takes part in nothing", f"{registers}, a new key")
        has = "another key in force" if in_force else "no key in force"
        return problem(f"{file}: {key.agent_id} has {has}", f"bring the right file here, or {registers}")
    return ok(f"{len(files)} keys are as registered")


def _key_files(site: Site) -> list[Path]:
    from starter import keys

    return sorted(keys.path_of(site.settings.home, "any").parent.glob("*.pem"))


def encryption(site: Site) -> Judgement:
    """The codec keys can be used, where there are any, and nobody else can read their file."""
    from schema.codec import FILE, KEYS, KeysError, configured

    try:
        keyring = configured()
    except KeysError as error:
        mend = f"`chmod 600` the file that {FILE} names" if "chmod" in str(error) else f"correct {FILE} or {KEYS}"
        return problem(str(error), mend)
    if not keyring.keys:
        return ok("off: Temporal keeps everything in plain", "`nautilus codec keygen` would make a key")
    others = [key_id for key_id in keyring.keys if key_id != keyring.encrypts_with]
    decrypt = f"{', '.join(others)} only decrypts" if others else "no other key"
    if keyring.encrypts_with is None:
        return ok(f"off, and ready: {decrypt}", "`nautilus codec rotate` would switch it on")
    return ok(f"on: {keyring.encrypts_with} encrypts, {decrypt}")


def tls_files(site: Site) -> Judgement:
    """The files of Temporal's TLS can be read, the private key by its owner alone."""
    from temporalio.envconfig import ClientConfigProfile

    try:
        profile = ClientConfigProfile.load()
    except RuntimeError as error:
        return problem(str(error), "correct temporal.toml, or unset TEMPORAL_PROFILE or TEMPORAL_CONFIG_FILE")
    if profile.tls is None or profile.tls.disabled:
        return ok("no TLS is configured" + ("; an API key is" if profile.api_key else ""))
    tls = profile.tls
    for file in (tls.server_root_ca_cert, tls.client_cert, tls.client_private_key):
        if isinstance(file, Path) and not os.access(file, os.R_OK):
            return problem(f"{file} cannot be read", "correct temporal.toml or the TEMPORAL_TLS_ variables")
    key = tls.client_private_key
    if isinstance(key, Path) and (mode := key.stat().st_mode & 0o777) & 0o077:
        return warning(f"{key} is a private key that others can read: its mode is {mode:o}", f"`chmod 600 {key}`")
    return ok(f"TLS, {'with' if tls.client_cert else 'without'} a client certificate")


def door(site: Site) -> Judgement:
    """The door answers, with a configuration that is not stale."""
    url = site.environment.get(DOOR_URL, "").rstrip("/")
    if not url:
        return ok(f"{DOOR_URL} is not set: no door was asked")
    mend = f"start `nautilus door` (or `nautilus up`), or correct {DOOR_URL}; under `up` its log is door.log"
    if not url.startswith(("http://", "https://")):
        return problem(f"expected {DOOR_URL} to begin with http:// or https://, but {url} came", mend)
    try:
        with urlopen(f"{url}/ready", timeout=DOOR_PATIENCE_S) as response:
            state = json.loads(response.read(10_000))
    except HTTPError as error:
        return problem(f"{url}/ready answers {error.code}: the door cannot read the database, or is none", mend)
    except (URLError, OSError, ValueError) as error:
        return problem(f"no door answers at {url}: {getattr(error, 'reason', error)}", mend)
    if not isinstance(state, dict) or state.get("status") != "ready":
        return problem(f"what answers at {url} is no door", mend)
    return ok(f"{url} is ready")
