"""Acting: what a person does at the command line is signed where the platform asks for it.

The key is in the file that NAUTILUS_PERSON_KEY names. What is written to the database is asked for by the ledger's last
declaration of people, and not by the file at hand: to edit that on one's own machine must not be a way around it.
"""

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING

from starter.command import CommandError, open_database

if TYPE_CHECKING:
    from activities.database import Database
    from schema.messages.people import People
    from starter.keys import PersonKey

VARIABLE = "NAUTILUS_PERSON_KEY"


def own_key(who: str) -> "tuple[str, PersonKey | None]":
    """Who acts, and the key that NAUTILUS_PERSON_KEY names; without the variable, `who` and None. Raises CommandError.

    A `who` that was not given (it is the user's name) becomes that of the key.
    """
    from starter import keys

    file = os.environ.get(VARIABLE, "")
    if not file:
        return who, None
    key = keys.read_person(Path(file))
    if who not in (key.name, getpass.getuser()):
        raise CommandError(f"expected --who {key.name}, whose key {VARIABLE} names, but {who} came")
    return key.name, key


def to_act(who: str) -> "tuple[Database, str]":
    """The database for what a person does, and the person: the ledger's entries are signed where that is asked for.

    Raises CommandError where the person has not the key of a declared one.
    """
    database = open_database()
    people = people_in_force(database)
    if not people.signed:
        return database, who
    from rules.identity import key_of_person

    name, key = own_key(who)
    if key is None:
        makes = "`nautilus person keygen` makes a key, and [[people]] in platform.toml declares it"
        raise CommandError(f"expected the file of your key in {VARIABLE}, because acts are signed here; {makes}")
    if key_of_person(name, people) != key.public:
        names = ", ".join(person.name for person in people.people)
        raise CommandError(f"expected the key of a declared person ({names}), but {key.public} of {name} is none's")
    return open_database(key.sign_entry), name


def people_in_force(database: "Database") -> "People":
    """Who may act, by the ledger. Raises CommandError where platform.toml, if it is here, declares something else."""
    from activities import people

    difference = differing(database)
    if difference is not None:
        raise CommandError(f"{difference}; bring the file up to date, or start the platform with it")
    with database.reading() as session:
        return people.last_declared(session)[1]


def differing(database: "Database") -> str | None:
    """How the ledger's last declaration of people differs from platform.toml; None where they agree, or have no say."""
    from activities import people
    from schema.declaration import read_platform
    from schema.settings import Settings

    file = Settings().platform
    if not file.exists():
        return None
    in_file = people.declared(read_platform(file))
    with database.reading() as session:
        sequence, in_ledger = people.last_declared(session)
    if in_file == in_ledger or not (in_file.signed or in_ledger.signed):
        return None
    where = f"entry {sequence} of the ledger" if sequence else "the ledger, which has none"
    return f"expected in {file} the people (and signed_acts) of {where}, but they differ"
