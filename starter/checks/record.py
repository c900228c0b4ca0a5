"""Checks of the database: schema, clock, snapshots, budgets, events on their way, ledger, parameters."""

from datetime import timedelta
from sqlite3 import Error as SqliteError

from starter.checks.finding import Judgement, ok, problem, warning
from starter.checks.site import Away, Site

# A clock this wrong moves deadlines and puts outcomes into the wrong interval.
LARGEST_SKEW = timedelta(seconds=5)
# A run may begin late and take some time; what is missing after two intervals does not come.
LATE = timedelta(minutes=1)
# The longest pause between two retries is five minutes: what waits for longer has failed twice.
LONGEST_WAIT = timedelta(minutes=10)
# Verified in about a second.
NEWEST_ENTRIES = 10_000
DAY = timedelta(days=1)


def database(site: Site) -> Judgement:
    """The database can be read."""
    from sqlalchemy.engine import make_url

    try:
        site.readable()
    except Away as away:
        mend = "`nautilus up` makes one; or correct NAUTILUS_DATABASE_URL or NAUTILUS_HOME, or restore a backup"
        return problem(str(away), mend)
    url = make_url(site.settings.database)
    return ok(f"{url.render_as_string(hide_password=True)} answers")


def schema(site: Site) -> Judgement:
    """The database has the newest version of the schema."""
    from activities import condition
    from activities.schema_version import compared

    found = compared(condition.stored_version(site.readable()))
    return ok(found.finding) if found.mistake is None else problem(found.finding, found.mend)


def database_clock(site: Site) -> Judgement:
    """This machine's clock is the database's."""
    from activities import condition

    readable = site.readable()
    before = site.now()
    at = condition.time_of(readable)
    return clock_judgement("database", max(before - at, at - site.now()))


def clock_judgement(whose: str, skew: timedelta) -> Judgement:
    """A judgement of the least difference between this clock and another that explains what was read."""
    if skew > LARGEST_SKEW:
        mend = "have both machines set their clocks by NTP (`timedatectl set-ntp true`)"
        return warning(f"this clock and that of the {whose} differ by {skew.total_seconds():.0f} s", mend)
    return ok(f"within {LARGEST_SKEW.total_seconds():g} s of the {whose}'s")


def snapshot(site: Site) -> Judgement:
    """The last snapshot is as recent as its schedule says: without snapshots nothing is detected."""
    from activities import condition
    from activities.cron import jobs
    from schema.messages.platform import JobId

    readable = site.readable()
    (job,) = (job for job in jobs(site.platform()) if job.declaration.id is JobId.METRICS_SNAPSHOT)
    every = timedelta(seconds=job.declaration.every_s) if job.declaration.every_s else DAY
    last = condition.last_snapshot_at(readable)
    since = last or condition.first_entry_at(readable)
    which = f"the last snapshot is of {last:%Y-%m-%d %H:%M:%S} UTC" if last else "there is no snapshot yet"
    if since is not None and site.now() - since > 2 * every + LATE:
        mend = "fix what `schedules`, `paused`, `runs` and `workers` report: each says how"
        return problem(f"{which}, expected one every {every.total_seconds():g} s", mend)
    return ok(f"{which}; one every {every.total_seconds():g} s")


def budgets(site: Site) -> Judgement:
    """No job has used its budget up within a day."""
    from activities import condition

    runs = condition.overruns(site.readable(), site.now() - DAY)
    if runs:
        which = ", ".join(f"{job} {count} times" for job, count in sorted(runs.items()))
        mend = (
            "see what was left on the job's page; raise budget_s under [[schedules]], then `nautilus schedules apply`"
        )
        return warning(f"used up within a day: {which}", mend)
    return ok("none was used up within a day")


def dead_letters(site: Site) -> Judgement:
    """No event waits for a person."""
    from activities import condition

    letters = condition.dead_letters(site.readable())
    if letters:
        which = ", ".join(f"{subscriber} {count}" for subscriber, count in letters.items())
        mend = "`nautilus events dead` says why; fix the receiver, then `nautilus events redrive --all`"
        return problem(f"dead letters: {which}", mend)
    return ok("none")


def deliveries(site: Site) -> Judgement:
    """No event has been on its way for long."""
    from activities import condition
    from rules.subscriptions import subscriptions

    readable = site.readable()
    slow = []
    waiting = 0
    for subscriber, subscription in subscriptions(site.platform()).items():
        backlog = condition.backlog(readable, subscriber, subscription)
        if backlog is None:
            return problem(f"{subscriber} has never been started", "`nautilus events apply`")
        waiting += backlog.events
        if backlog.oldest is not None and site.now() - backlog.oldest > LONGEST_WAIT:
            slow.append(f"{subscriber} {backlog.events} since {backlog.oldest:%Y-%m-%d %H:%M} UTC")
    if slow:
        mend = "`nautilus events list` says what fails; fix `workers`, `event bus` or the receiver"
        return warning(f"events wait: {', '.join(slow)}", mend)
    return ok(f"{waiting} events are on their way")


def ledger(site: Site) -> Judgement:
    """The ledger's chain holds."""
    from sqlalchemy.exc import SQLAlchemyError

    from activities import condition

    readable = site.readable()
    mend = "find out who wrote to the database; restore a backup from before (`nautilus ledger verify` checks it)"
    try:
        entries, broken = (
            condition.verify_all(readable) if site.full else condition.verify_newest(readable, NEWEST_ENTRIES)
        )
    except (SqliteError, SQLAlchemyError, ValueError) as error:  # damage can make a text unreadable
        return problem(f"the ledger cannot be read: {error}", mend)
    if broken is not None:
        return problem(broken, mend)
    which = "all" if site.full or entries < NEWEST_ENTRIES else "the newest, --full for all"
    return ok(f"{entries} entries ({which}), unbroken")


def signed_acts(site: Site) -> Judgement:
    """What people did is signed by them, where that is asked for."""
    from activities import condition, people

    readable = site.readable()
    in_file = people.declared(site.platform())
    mend = "`nautilus ledger verify` says where; ask who is named, and find out who can write to the database"
    try:
        in_ledger = condition.declared_people(readable)
        unproved = condition.unproved_acts(readable) if site.full else []
    except ValueError as error:  # an entry that was damaged
        return problem(f"the ledger cannot be read: {error}", mend)
    asked_for = in_file.signed or in_ledger.signed
    if asked_for and in_file != in_ledger:
        found = f"{site.settings.platform} declares other people, or another signed_acts, than the ledger has"
        return problem(found, "`nautilus apply` declares them, if the file is right; find out who changed it if not")
    if unproved:
        return problem(f"acts without proof of who did them: {len(unproved)}; {unproved[0]}", mend)
    if not asked_for:
        return ok("not asked for (signed_acts): whoever reaches Temporal or the database acts under any name")
    if not site.full:
        return ok("asked for; --full checks every signature")
    return ok("every act since they were asked for is signed by the person whom it names")


def parameters(site: Site) -> Judgement:
    """Every declared parameter is in force, with a value within its bounds."""
    from activities import reading

    in_force = reading.in_force(site.readable())
    declared = site.platform().parameters
    for parameter in declared:
        if parameter.key not in in_force:
            return problem(
                f"{parameter.key} is declared, but not in the database",
                "`nautilus apply` (or `nautilus up`) declares it",
            )
        stored, _ = in_force[parameter.key]
        if (refusal := parameter.refusal(stored)) is not None:
            mend = f"`nautilus params rollback {parameter.key} --why ...`, or correct its bounds in platform.toml"
            return problem(f"{parameter.key}: {refusal}; its default is in force instead", mend)
    return ok(f"{len(declared)} in force, within their bounds")


def freezes(site: Site) -> Judgement:
    """What people have frozen: a note, and nothing wrong."""
    from activities import reading
    from schema.wire import EVERYTHING

    frozen = reading.freezes(site.readable())
    if (freeze := frozen.get(EVERYTHING)) is not None:
        found = f"everything is frozen, by {freeze.who} since {freeze.at:%Y-%m-%d %H:%M} UTC: {freeze.why}"
        return ok(found, "`nautilus params thaw --why ...` lets agents change parameters again")
    return ok(f"frozen: {', '.join(sorted(frozen))}" if frozen else "nothing is frozen")
