"""What people do at the command line is signed where that is asked for, and the ledger shows what was not."""

import io
import json
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from activities import agents, anomalies, door_keys, identity, ledger, parameters, people
from activities.database import Database
from activities.events import emit
from activities.market import MarketActivities
from rules.detection import Detection
from schema import wire
from schema.messages.cycle import RecordedAct
from schema.messages.door import Scope
from schema.messages.events import ParameterPromoted
from schema.messages.experiment import Promotion
from schema.messages.ledger import SIGNED, EntryKind
from schema.messages.people import People, Person
from schema.messages.platform import Platform
from schema.tables.events import UndeliveredRow
from starter import keys
from starter.cli import main
from tests import builders
from tests.builders import NOW, TIMEOUT
from tests.test_identity import key_of as agent_key
from tests.test_signed_acts import DECLARED, NEXT, OLGA, PIET, act, key_of, platform_of

Said = tuple[int, str, str]


def in_toml(declared: People, signed: bool = True) -> str:
    persons = [
        f'[[people]]\nname = "{person.name}"\npublic_key = "{person.public_key}"\n' for person in declared.people
    ]
    return f"signed_acts = {str(signed).lower()}\n" + DECLARATION + "".join(persons)


DECLARATION = """
[[task_types]]
name = "research_synthesis"

[[parameters]]
key = "research_synthesis.timeout_s"
kind = "float"
unit = "s"
default = 90.0
minimum = 10.0
maximum = 600.0
largest_change = 120.0
task_types = ["research_synthesis"]
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation where acts are signed, and olga's key file."""
    monkeypatch.setenv("NAUTILUS_HOME", str(tmp_path))
    monkeypatch.setenv("NAUTILUS_PLATFORM", str(tmp_path / "platform.toml"))
    monkeypatch.setenv("USER", "user")
    monkeypatch.setenv("NAUTILUS_PERSON_KEY", str(tmp_path / "olga.pem"))
    (tmp_path / "platform.toml").write_text(in_toml(DECLARED))
    keys.write(tmp_path / "olga.pem", OLGA)
    keys.write(tmp_path / "next.pem", NEXT)
    keys.write(tmp_path / "mallory.pem", key_of("mallory"))
    return tmp_path


@pytest.fixture
def store(database: Database, home: Path) -> Database:
    """A database with something for every act: a promotion, an agent, an open anomaly, a door key, a dead letter."""
    platform = platform_of()
    parameters.declare_parameters(database, platform, NOW)
    people.declare(database, platform, NOW)
    agents.register_agent(database, "ada", "op", NOW, agent_key("ada").public)
    with database.transaction() as session:
        promotion = Promotion(cycle_id="c#1", parameter=TIMEOUT, expected_version=1, value=180.0, reason="better")
        parameters.swap(session, promotion, ParameterPromoted, NOW)
        emit(session, builders.event_data(wire.EventType.PARAMETER_FROZEN), TIMEOUT, "an event", NOW)
        anomalies.announce(session, platform, Detection(states={}, raised=(builders.anomaly(),)), NOW)
    return database


@pytest.fixture
def nautilus(
    store: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Runs a command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["nautilus", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        with pytest.raises(SystemExit) as left:
            main()
        structlog.reset_defaults()
        return left.value.code if isinstance(left.value.code, int) else 0, *capsys.readouterr()

    return run


WHY = ("--why", "a release")
# Each act that is written to the ledger, and how many entries it has there.
ACTS: dict[str, tuple[tuple[str, ...], EntryKind]] = {
    "freeze": (("params", "freeze", TIMEOUT, *WHY), EntryKind.PARAMETER_FROZEN),
    "freeze everything": (("params", "freeze", *WHY), EntryKind.PARAMETER_FROZEN),
    "rollback": (("params", "rollback", TIMEOUT, *WHY), EntryKind.PARAMETER_ROLLED_BACK),
    "close": (("anomaly", "close", builders.anomaly().anomaly_id, *WHY), EntryKind.ANOMALY_CLOSED),
    "register": (
        ("agent", "register", "bob", "--operator", "op", "--public-key", agent_key("bob").public),
        EntryKind.AGENT_KEY_REGISTERED,
    ),
    "rotate": (
        ("agent", "rotate", "ada", "--public-key", agent_key("ada's next").public, *WHY),
        EntryKind.AGENT_KEY_REGISTERED,
    ),
    "revoke": (("agent", "revoke", "ada", *WHY), EntryKind.AGENT_KEY_REVOKED),
    "door key": (("door", "key", "create", "--platform", "web"), EntryKind.DOOR_KEY_CREATED),
}


@pytest.mark.parametrize(("command", "kind"), ACTS.values(), ids=ACTS)
def test_an_act_at_the_command_line_is_signed_and_proved(
    nautilus: Callable[..., Said], store: Database, command: tuple[str, ...], kind: EntryKind
) -> None:
    code, _, complaint = nautilus(*command)
    entry = ledger.entries(store)[-1]

    assert (code, entry.kind) == (0, kind), complaint
    assert entry.body[SIGNED]["person"] == "olga"
    assert entry.body[SIGNED]["public_key"] == OLGA.public
    assert entry.body.get("who", "olga") == "olga"
    assert nautilus("ledger", "verify")[0] == 0


@pytest.mark.parametrize(("command", "kind"), ACTS.values(), ids=ACTS)
@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "expected the file of your key in NAUTILUS_PERSON_KEY, because acts are signed here"),
        ("missing.pem", "expected a key file, but No such file"),
        ("mallory.pem", "expected the key of a declared person (olga, piet)"),
        ("next.pem", "expected the key of a declared person (olga, piet)"),
    ],
)
def test_an_act_without_the_key_of_a_declared_person_is_refused_and_changes_nothing(
    nautilus: Callable[..., Said],
    store: Database,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    kind: EntryKind,
    key: str | None,
    says: str,
) -> None:
    before = len(ledger.entries(store))
    if key is None:
        monkeypatch.delenv("NAUTILUS_PERSON_KEY")
    else:
        monkeypatch.setenv("NAUTILUS_PERSON_KEY", str(home / key))

    code, _, complaint = nautilus(*command)

    assert code == 1
    assert says in complaint
    assert len(complaint.splitlines()) == 1
    assert len(ledger.entries(store)) == before


def test_the_acts_that_follow_another_are_signed_too(nautilus: Callable[..., Said], store: Database) -> None:
    nautilus("params", "freeze", *WHY)
    thawed = nautilus("params", "thaw", *WHY)
    created = json.loads(nautilus("door", "key", "create", "--platform", "web", "--json")[1])
    revoked = nautilus("door", "key", "revoke", created["key_id"], *WHY)
    with store.transaction() as session:
        letter = UndeliveredRow(subscriber="s", sequence=1, subject=TIMEOUT, due_at=NOW, dead_at=NOW, error="e")
        session.add(letter)
    dropped = nautilus("events", "drop", "s", "1", *WHY)

    assert (thawed[0], revoked[0], dropped[0]) == (0, 0, 0), (thawed, revoked, dropped)
    assert all(SIGNED in entry.body for entry in ledger.entries(store)[-5:])
    assert nautilus("ledger", "verify")[0] == 0


def test_who_acts_is_whose_key_it_is(nautilus: Callable[..., Said]) -> None:
    code, _, complaint = nautilus("params", "freeze", *WHY, "--who", "piet")

    assert code == 1
    assert "expected --who olga, whose key NAUTILUS_PERSON_KEY names, but piet came" in complaint


def test_to_edit_the_file_at_hand_is_no_way_around_a_signature(nautilus: Callable[..., Said], home: Path) -> None:
    (home / "platform.toml").write_text(in_toml(DECLARED, signed=False))

    code, _, complaint = nautilus("params", "freeze", *WHY)
    verified, difference, _ = nautilus("ledger", "verify")

    assert (code, verified) == (1, 1)
    assert "platform.toml the people (and signed_acts) of entry 2 of the ledger, but they differ" in complaint
    assert "but they differ" in difference


def test_where_nobody_asks_for_signatures_nothing_is_signed(
    database: Database, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters.freeze(database, TIMEOUT, "anybody", "a release", NOW)

    assert people.unproved(database) == []
    assert SIGNED not in ledger.entries(database)[-1].body


# ---- what somebody wrote into the database


def forge_freeze(store: Database) -> None:
    parameters.freeze(store, TIMEOUT, "olga", "a release", NOW)


def forge_thaw(store: Database) -> None:
    with signing(store, OLGA) as signed:
        parameters.thaw(signed, wire.EVERYTHING, "olga", "a release", NOW + timedelta(hours=1))


def signing(store: Database, key: Any) -> closing[Database]:
    return closing(Database(store.url.render_as_string(hide_password=False), key.sign_entry))


def copied(store: Database) -> None:
    """A true entry of olga's, with its signature, once more under another time."""
    with signing(store, OLGA) as signed:
        parameters.freeze(signed, TIMEOUT, "olga", "a release", NOW)
    with store.transaction() as session:
        body = json.loads(ledger.entries(store)[-1].model_dump_json())["body"]
        ledger.append(session, EntryKind.PARAMETER_FROZEN, "another key", TIMEOUT, NOW, body)


def as_another(store: Database) -> None:
    with signing(store, PIET) as signed:
        parameters.freeze(signed, TIMEOUT, "olga", "a release", NOW)


def by_nobody(store: Database) -> None:
    with signing(store, key_of("mallory")) as signed:
        parameters.freeze(signed, TIMEOUT, "mallory", "a release", NOW)


def by_hand(store: Database) -> None:
    parameters.roll_back_by_hand(store, TIMEOUT, "olga", "slower", NOW)


def rotated(store: Database) -> None:
    identity.rotate(store, "ada", agent_key("ada's next").public, "olga", "a new machine", NOW)


def opened(store: Database) -> None:
    door_keys.create_platform_key(store, "web", (Scope.OUTCOMES,), "olga", NOW)


def steered(store: Database) -> None:
    record(store, act())


def steered_with_another_signature(store: Database) -> None:
    record(store, OLGA.sign(act(), "cycle:another", "run-1", wire.VETO))


def steered_twice(store: Database) -> None:
    signed = OLGA.sign(act(), "cycle:c", "run-1", wire.VETO)
    record(store, signed)
    record(store, signed, cycle_id="c#2")


def record(store: Database, sent: Any, cycle_id: str = "c#1") -> None:
    fields = {"workflow_id": "cycle:c", "run_id": "run-1", "public_key": OLGA.public}
    recorded = RecordedAct(cycle_id=cycle_id, kind=wire.VETO, act=sent, at=NOW, **fields)
    MarketActivities(store, Platform()).record_act(recorded)


FORGED: dict[str, tuple[Callable[[Database], None], str]] = {
    # what is written beside the command line, what the audit says
    "unsigned": (forge_freeze, "expected a signature, because acts were to be signed then"),
    "a copy of a true one": (copied, "the signature of olga does not fit"),
    "in another's name": (as_another, "expected a signature of olga, but it is of piet"),
    "by nobody who is declared": (by_nobody, "but mallory was not"),
    "a rollback": (by_hand, "expected a signature"),
    "another key of an agent": (rotated, "expected a signature"),
    "a door key": (opened, "expected a signature"),
    "an act in a cycle": (steered, "this one of olga is not signed"),
    "an act in a cycle, signed for another": (steered_with_another_signature, "does not fit"),
    "an act in a cycle, once more": (steered_twice, "expected an act once, but a-1 of olga was done before"),
}


@pytest.mark.parametrize(("forge", "says"), FORGED.values(), ids=FORGED)
def test_what_was_not_signed_by_the_person_is_reported(
    nautilus: Callable[..., Said], store: Database, forge: Callable[[Database], None], says: str
) -> None:
    assert nautilus("ledger", "verify")[0] == 0

    forge(store)
    code, lines, complaint = nautilus("ledger", "verify")
    document = json.loads(nautilus("ledger", "verify", "--json")[1])

    assert code == 1
    assert says in lines
    assert "its acts are not proved" in complaint
    assert (document["ok"], document["broken"]) == (False, None)
    assert any(says in line for line in document["unproved"])


def test_an_act_is_judged_by_who_was_declared_when_it_was_done(store: Database) -> None:
    only_piet = People(signed=True, people=DECLARED.people[1:])
    with signing(store, OLGA) as signed:
        parameters.freeze(signed, TIMEOUT, "olga", "a release", NOW)
    people.declare(store, platform_of(only_piet), NOW)
    before = people.unproved(store)
    with signing(store, OLGA) as signed:
        parameters.thaw(signed, TIMEOUT, "olga", "released", NOW)

    assert before == []
    assert [line.partition(": ")[2] for line in people.unproved(store)] == [
        "expected a signature of a person who was declared then, but olga was not"
    ]


def test_what_was_done_before_signatures_were_asked_for_and_after_needs_none(database: Database) -> None:
    parameters.freeze(database, "a", "olga", "a release", NOW)
    people.declare(database, platform_of(), NOW)
    people.declare(database, platform_of(People(people=DECLARED.people)), NOW)
    parameters.freeze(database, "b", "olga", "a release", NOW)

    assert people.unproved(database) == []


def test_a_declaration_of_people_is_recorded_once_and_announced(database: Database) -> None:
    for platform in (Platform(), platform_of(), platform_of(), platform_of(People())):
        people.declare(database, platform, NOW)

    entries = [entry for entry in ledger.entries(database) if entry.kind is EntryKind.PEOPLE_DECLARED]
    assert [(entry.body["signed"], len(entry.body["people"])) for entry in entries] == [(True, 2), (False, 0)]


def test_a_key_that_any_signature_fits_is_not_declared(database: Database) -> None:
    zero = Person(name="olga", public_key="A" * 43 + "=")

    with pytest.raises(ValueError, match=r"olga in \[\[people\]\]: expected a public key that only one secret fits"):
        people.declare(database, platform_of(People(signed=True, people=(zero,))), NOW)


MISTAKES = {
    "nobody could act": ("signed_acts = true\n", "expected at least one of [[people]]"),
    "the same name twice": (in_toml(People(people=(DECLARED.people[0], DECLARED.people[0]))), "olga is declared twice"),
    "the same key twice": (
        in_toml(People(people=(DECLARED.people[0], Person(name="piet", public_key=OLGA.public)))),
        "expected every person's key once",
    ),
    "no key": ('signed_acts = true\n[[people]]\nname = "olga"\npublic_key = "secret"\n', "public_key"),
}


@pytest.mark.parametrize(("text", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_declaration_of_people_is_reported(
    nautilus: Callable[..., Said], home: Path, text: str, says: str
) -> None:
    (home / "platform.toml").write_text(text)

    code, output, complaint = nautilus("check")

    assert code == 1
    assert says in output + complaint


def test_a_person_makes_a_key_and_sees_who_may_act(nautilus: Callable[..., Said], home: Path) -> None:
    made = nautilus("person", "keygen", "dana", "--out", home / "dana.pem")
    again = nautilus("person", "keygen", "dana", "--out", home / "dana.pem")
    listed = json.loads(nautilus("person", "list", "--json")[1])
    shown = nautilus("person", "list")[1]

    key = keys.read_person(home / "dana.pem")
    assert made[1] == f'[[people]]\nname = "dana"\npublic_key = "{key.public}"\n'
    assert again[0] == 1
    assert (listed["signed"], [person["name"] for person in listed["people"]]) == (True, ["olga", "piet"])
    assert "what people do must be signed" in shown
