"""platform.toml: what may be declared, and that a mistake is one line that says where and what was expected."""

from pathlib import Path
from typing import Any

import pytest

from activities.cron import jobs
from schema.declaration import DeclarationError, declared_platform, read_platform
from schema.messages.platform import CycleRules, JobClass, JobId, Parameter, Platform, Risk
from schema.pace import TRIAL, TRIAL_EVERY_S, Pace
from schema.parameter_roles import Role, role_of
from schema.settings import Settings
from tests import builders

GOOD = """
[[task_types]]
name = "research"
timeout_parameter = "research.timeout_s"

[[parameters]]
key = "research.timeout_s"
kind = "float"
unit = "s"
default = 90.0
minimum = 10
maximum = 600
task_types = ["research"]
"""


def read(tmp_path: Path, content: str | bytes) -> Platform:
    path = tmp_path / "platform.toml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_platform(path)


def mistake(tmp_path: Path, content: str | bytes) -> str:
    """The message, without the path and the line that it starts with."""
    with pytest.raises(DeclarationError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert "\n" not in message
    line = caught.value.problems[0].line
    prefix = f"{tmp_path / 'platform.toml'}:{line}: "
    assert message.startswith(prefix)
    return message.removeprefix(prefix)


def test_a_declaration_is_read_with_the_rules_of_the_article(tmp_path: Path) -> None:
    platform = read(tmp_path, GOOD)

    assert platform.parameters[0].default == 90.0
    assert platform.parameters[0].risk is Risk.LOW
    assert platform.task_types[0].timeout_parameter == "research.timeout_s"
    assert (platform.cycle.approval_share, platform.cycle.minimum_ballots) == (0.51, 3)
    assert platform.observatory.success_floor == 0.70
    assert platform.observatory.baseline_s == 7 * 86_400


def test_a_file_as_an_editor_on_windows_saves_it_is_read(tmp_path: Path) -> None:
    saved = b"\xef\xbb\xbf" + GOOD.encode().replace(b"\n", b"\r\n")

    assert read(tmp_path, saved) == read(tmp_path, GOOD)
    assert "below a maximum" in mistake(tmp_path, saved.replace(b"minimum = 10", b"minimum = 700"))


def test_a_job_may_declare_its_budget_its_class_and_its_priority(tmp_path: Path) -> None:
    (declared,) = read(
        tmp_path,
        '[[schedules]]\nid = "autonomy_scan"\nevery_s = 60\nbudget_s = "auto"\nmost_budget_s = 40\n'
        'class = "diagnostic"\npriority = 2',
    ).schedules

    assert (declared.budget_s, declared.least_budget_s, declared.most_budget_s) == ("auto", 5, 40)
    assert (declared.job_class, declared.priority) == (JobClass.DIAGNOSTIC, 2)


def test_an_empty_file_declares_nothing_tunable(tmp_path: Path) -> None:
    assert read(tmp_path, "").parameters == ()


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        # Wrong kinds of value.
        ("minimum = 10", 'minimum = "low"', "parameters.0.minimum: expected a valid number"),
        (
            'kind = "float"',
            'kind = "flaot"',
            "parameters.0.kind: expected 'float', 'integer', 'boolean', 'choice' or 'text'",
        ),
        ("default = 90.0", 'default = "90"', "parameters.0: the default is out of bounds: expected a number, but '90'"),
        # Bounds: nothing may be tuned without them.
        ("minimum = 10\n", "", "parameters.0: expected a minimum below a maximum, because nothing may be tuned"),
        ("maximum = 600\n", "", "parameters.0: expected a minimum below a maximum"),
        ("minimum = 10", "minimum = 600", "parameters.0: expected a minimum below a maximum"),
        (
            "default = 90.0",
            "default = 9",
            "parameters.0: the default is out of bounds: expected a value between 10 and 600 s, but 9 came",
        ),
        # NaN compares false with everything: it must not slip through a comparison.
        ("default = 90.0", "default = nan", "parameters.0.default: expected"),
        ("minimum = 10", "minimum = nan", "parameters.0.minimum: expected a finite number"),
        ("maximum = 600", "maximum = 600\nstep = nan", "parameters.0.step: expected a finite number"),
        (
            "maximum = 600",
            "maximum = 600\nstep = 10\nlargest_change = 5",
            "expected a step that fits into the largest_change, or nothing could be proposed, but a step of 10 and",
        ),
        (
            "maximum = 600",
            "maximum = 600\nstep = 1000",
            "expected a step that fits into the range, or nothing could be",
        ),
        ("maximum = 600", "maximum = 600\nlargest_change = 0", "parameters.0.largest_change: expected greater than 0"),
        # References that lead nowhere.
        (
            '= ["research"]',
            '= ["reserch"]',
            "parameter research.timeout_s: expected a declared task type, but reserch came",
        ),
        (
            'timeout_parameter = "research.timeout_s"',
            'timeout_parameter = "research.limit_s"',
            "task type research: expected a declared parameter, but research.limit_s came",
        ),
    ],
)
def test_a_mistake_in_a_parameter_names_the_key_and_what_was_expected(
    tmp_path: Path, was: str, now: str, expected: str
) -> None:
    assert was in GOOD
    assert expected in mistake(tmp_path, GOOD.replace(was, now, 1))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ('[[task_types]]\nname = "research"', "expected every task type once, but research is declared twice"),
        (
            '[[parameters]]\nkey="research.timeout_s"\nkind="boolean"\ndefault=true\ntask_types=["research"]',
            "expected every parameter once, but research.timeout_s is declared twice",
        ),
        (
            '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\nbudget_s = 1\n' * 2,
            "expected every schedule once, but metrics_snapshot is declared twice",
        ),
        (
            '[[schedules]]\nid = "metrics_snapshot"\nbudget_s = 1',
            "schedules.0: expected exactly one of every_s and cron",
        ),
        (
            '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\ncron = "0 3 * * *"\nbudget_s = 1',
            "exactly one of every_s and cron",
        ),
        (
            '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\nbudget_s = 0',
            "schedules.0.budget_s: expected greater than 0, but 0 came",
        ),
        (
            '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\nbudget_s = "quick"',
            "schedules.0.budget_s: expected seconds or auto, but 'quick' came",
        ),
        (
            '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\nbudget_s = "auto"\nleast_budget_s = 400',
            "schedules.0: expected a least_budget_s of at most most_budget_s (300)",
        ),
        (
            '[[schedules]]\nid = "consolidation"\ncron = "at three"\nbudget_s = 5',
            "schedules.0.cron: expected text like",
        ),
        (
            '[[schedules]]\nid = "consolidation"\ncron = "0 3 * * *"\nbudget_s = 5\npriority = 6',
            "schedules.0.priority: expected less than or equal to 5, but 6 came",
        ),
        (
            '[[schedules]]\nid = "consolidation"\ncron = "0 3 * * *"\nbudget_s = 5\nclass = "urgent"',
            "schedules.0.class: expected 'diagnostic', 'market' or 'memory', but 'urgent' came",
        ),
        ("[elevation]\nbelow = 70", "elevation: expected a threshold `below` that is under `above` (65)"),
        ("[cycle]\nalpha = 0.7", "cycle.alpha: expected less than 0.5, but 0.7 came"),
        ("[cycle]\napproval_share = 0.5", "cycle.approval_share: expected greater than 0.5, but 0.5 came"),
        ("[cycle]\nvoting_window_s = nan", "cycle.voting_window_s: expected a finite number"),
        ("[observatory]\nsuccess_floor = 70", "observatory.success_floor: expected less than 1, but 70 came"),
        ("[observatory]\ninterval_s = 0", "observatory.interval_s: expected greater than or equal to 1, but 0 came"),
        # What no clock, no database or no JSON could carry: a cycle would stand still at it.
        (
            "[cycle]\nbid_window_s = 1e300",
            "cycle.bid_window_s: expected a number of at most 3155760000 s (a century), but 1e+300",
        ),
        (
            "[observatory]\ninterval_s = 4000000000",
            "observatory.interval_s: expected a number of at most 3155760000 s (a century)",
        ),
        (
            "[cycle]\nmax_tasks = 9007199254740992",
            "cycle.max_tasks: expected a number of at most 9007199254740991, but 9007",
        ),
        (
            '[[parameters]]\nkey="a.b"\nkind="float"\nminimum=0\nmaximum=1e17\ndefault=2\ntask_types=["research"]',
            "parameters.1.maximum: expected a number of at most 9007199254740991, but 1e+17 came",
        ),
        ("[door]\nplatform_requests_per_s = 9007199254740992", "door.platform_requests_per_s: expected a number of at"),
        ("[cycle]\nreward = 1000001", "cycle.reward: expected a number of at most 1000000, but 1000001 came"),
        ("[cycle]\nhighest_reward = 1000001", "cycle.highest_reward: expected a number of at most 1000000, but"),
        ("[traffic]\nconcurrency = 100\nper_second = {}", "traffic.concurrency: expected less than or equal to 64"),
        (
            '[[parameters]]\nkey="a.mode"\nkind="choice"\nchoices=["x","x"]\ndefault="x"\ntask_types=["research"]',
            "parameters.1: expected at least two different choices",
        ),
        (
            '[[parameters]]\nkey="a.mode"\nkind="choice"\nchoices=["x","y"]\ndefault="z"\ntask_types=["research"]',
            "parameters.1: the default is out of bounds: expected one of x, y, but 'z' came",
        ),
        (
            '[[parameters]]\nkey="a.workers"\nkind="integer"\nminimum=1\nmaximum=8\ndefault=2.5\ntask_types=["research"]',
            "parameters.1: the default is out of bounds: expected a whole number, but 2.5 came",
        ),
        # Unknown keys, at every depth: a misspelt rule must not fall back to its default in silence.
        ("[cycle]\nalfa = 0.05", "cycle.alfa: "),
        ("[obsevatory]\ninterval_s = 60", "obsevatory: "),
    ],
)
def test_a_mistake_in_another_part_names_the_key_and_what_was_expected(
    tmp_path: Path, extra: str, expected: str
) -> None:
    assert expected in mistake(tmp_path, GOOD + extra + "\n")


def test_a_cycle_that_runs_already_may_have_what_the_file_may_no_longer() -> None:
    """Its rules are in its history, which must replay."""
    assert CycleRules(reward=2_000_000, approval_window_s=4e9).reward == 2_000_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("this is not TOML", "expected TOML, but Expected '=' after a key"),
        ("[cycle]\nreward = 1\nreward = 2\n", "expected TOML, but Cannot overwrite a value"),
        (b"\xff\xfe", "expected TOML, but 'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_file_that_is_not_toml_says_where_it_stops_being_it(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    assert mistake(tmp_path, content).startswith(expected)


def test_a_file_that_is_nested_too_deeply_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"expected TOML that is nested less deeply$"):
        read(tmp_path, "x = " + "[" * 250 + "]" * 250)


def test_a_file_that_is_not_there_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError) as caught:
        read_platform(tmp_path / "platform.toml")

    assert str(caught.value) == (
        f"{tmp_path / 'platform.toml'}: expected a declaration of the platform, but there is no such file; "
        "`nautilus init` writes one"
    )


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        ("default = 90.0", 'default = 90.0\ncolour = "red"', "expected a known key"),  # Extra inputs are not permitted
        ('name = "research"\n', "", "task_types.0.name: expected"),  # Field required
        ('key = "research.timeout_s"', 'key = "timeout"', "parameters.0.key: expected"),  # String should match pattern
        ('= ["research"]', "= []", "parameters.0.task_types: expected"),  # Tuple should have at least 1 item after
        ("default = 90.0", "default = [1]", "parameters.0.default: expected"),  # parameters.0.default.bool: ... boolean
    ],
)
def test_every_mistake_says_what_was_expected_in_our_grammar(tmp_path: Path, was: str, now: str, expected: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        read(tmp_path, GOOD.replace(was, now, 1))

    assert any(str(problem).startswith(expected) or expected in problem.message for problem in caught.value.problems)


@pytest.mark.parametrize(
    "extra",
    [
        "[traffic]\nper_second = { reserch = 1.0 }",  # a task type that was never declared
        "[traffic]\nper_second = { research = -1.0 }",
        "[traffic]\nper_second = { research = nan }",
        "[cycle]\nexperiment_window_s = inf",  # no timedelta has it: the cycle would fail when it gets there
        '[cycle]\nmax_tasks = "200"',  # text for a number
        '[[parameters]]\nkey="a.x"\nkind="float"\nminimum=0\nmaximum=inf\ndefault=1\ntask_types=["research"]',
        '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\nbudget_s = inf',
        '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\nbudget_s = true',
        '[[webhooks]]\nname = "a"\nurl = "ftp://x/"\nsecret_env = "S"',
        # pragma: allowlist nextline secret
        '[[webhooks]]\nname = "a"\nurl = "https://x/"\nsecret_env = "whsec_MfKQ9r8G"',  # the secret itself
        '[[webhooks]]\nname = "a"\nurl = "https://x/"\nsecret_env = "S"\nevents = ["anomaly.detcted"]',
        '[[notifications]]\nname = "a"\nurl_env = "tgram://token/chat"',
        '[[schedules]]\nid = "metrics"\nevery_s = 5\nbudget_s = 1',  # an override of a job that does not exist
    ],
)
def test_what_cannot_work_later_is_refused_at_the_file(tmp_path: Path, extra: str) -> None:
    mistake(tmp_path, GOOD + extra + "\n")


def test_trial_pace_sets_windows_baselines_and_intervals_to_minutes_in_one_word(tmp_path: Path) -> None:
    platform = read(tmp_path, 'pace = "trial"\n' + GOOD)

    assert platform.pace is Pace.TRIAL
    assert platform.cycle.voting_window_s == 60
    assert platform.observatory.baseline_s == 600
    assert platform.elevation.least_interval_s == 10
    assert {job.declaration.id: job.declaration.every_s for job in jobs(platform)} == TRIAL_EVERY_S
    # How sure a verdict must be does not depend on the pace.
    assert platform.cycle.alpha == CycleRules().alpha


def test_what_the_file_sets_itself_goes_before_its_pace(tmp_path: Path) -> None:
    schedule = '[[schedules]]\nid = "metrics_snapshot"\nevery_s = 5\nbudget_s = 30\n'
    platform = read(tmp_path, 'pace = "trial"\n' + GOOD + "[cycle]\nvoting_window_s = 20\n" + schedule)

    assert (platform.cycle.voting_window_s, platform.cycle.bid_window_s) == (20, 30)
    assert {job.declaration.id: job.declaration.every_s for job in jobs(platform)}[JobId.METRICS_SNAPSHOT] == 5


@pytest.mark.parametrize(
    ("said", "asked", "pace", "voting_s"),
    [
        ("", None, Pace.PRODUCTION, 3_600),
        ('pace = "production"\n', None, Pace.PRODUCTION, 3_600),
        ('pace = "trial"\n', None, Pace.TRIAL, 60),
        ("", Pace.TRIAL, Pace.TRIAL, 60),
        ('pace = "trial"\n', Pace.PRODUCTION, Pace.PRODUCTION, 3_600),
    ],
)
def test_the_pace_of_a_process_goes_before_that_of_the_file(
    tmp_path: Path, said: str, asked: Pace | None, pace: Pace, voting_s: float
) -> None:
    (tmp_path / "platform.toml").write_text(said + GOOD)
    platform = declared_platform(Settings(platform=tmp_path / "platform.toml", pace=asked))

    assert (platform.pace, platform.cycle.voting_window_s) == (pace, voting_s)


def test_a_pace_that_is_none_is_refused(tmp_path: Path) -> None:
    assert mistake(tmp_path, 'pace = "fast"') == "pace: expected 'production' or 'trial', but 'fast' came"


def test_every_default_of_the_trial_pace_is_shorter_than_in_production() -> None:
    production = Platform()

    for section, defaults in TRIAL.items():
        for key, value in defaults.items():
            assert value < getattr(getattr(production, section), key), f"{section}.{key}"


EVERYTHING_WRONG = """mode = "autonomos"
obsevatory = 1

[[task_types]]
name = "research"
timeout_parameter = "research.timeout"

[[task_types]]
name = "research"

[[parameters]]
key = "research.timeout_s"
kind = "float"
default = 9.0
minimum = 10
maximum = 600
task_types = ["research", "reserch"]

[cycle]
alfa = 0.05
interval_s = 60
reward = "much"

[market]
voting_window = 9

[traffic]
per_second = { research = 1, monte = -1 }
"""


def test_everything_that_is_wrong_is_reported_at_once_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError) as caught:
        read(tmp_path, EVERYTHING_WRONG)

    assert [(problem.line, problem.key, problem.message) for problem in caught.value.problems] == [
        (1, "mode", "expected 'observe', 'recommend' or 'autonomous', but 'autonomos' came"),
        (2, "obsevatory", "expected a known key, but 'obsevatory' came; did you mean observatory?"),
        (
            6,
            "task_types.0.timeout_parameter",
            "task type research: expected a declared parameter, but research.timeout came; "
            "did you mean research.timeout_s?",
        ),
        (9, "task_types.1.name", "expected every task type once, but research is declared twice"),
        (14, "parameters.0", "the default is out of bounds: expected a value between 10 and 600, but 9.0 came"),
        (
            17,
            "parameters.0.task_types.1",
            "parameter research.timeout_s: expected a declared task type, but reserch came; did you mean research?",
        ),
        (20, "cycle.alfa", "expected a known key, but 'alfa' came; did you mean alpha?"),
        (
            21,
            "cycle.interval_s",
            "expected a known key, but 'interval_s' came; did you mean interval_s of observatory?",
        ),
        (22, "cycle.reward", "expected a valid integer, but 'much' came"),
        (
            25,
            "market.voting_window",
            "expected a known key, but 'voting_window' came; did you mean voting_window_s of cycle?",
        ),
        (28, "traffic.per_second.monte", "expected greater than or equal to 0, but -1 came"),
    ]
    assert str(caught.value).startswith(f"{tmp_path / 'platform.toml'}:1: mode: expected ")
    assert str(caught.value).endswith(" (and 10 more; `nautilus check` shows them)")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("\n\nthis is not TOML", 3),
        ("a = [1,\n2\n", 3),  # it ends before the array does
        (b"a = 1\nb = '\xff'\n", 2),
    ],
)
def test_what_is_no_toml_has_its_line_too(tmp_path: Path, content: str | bytes, line: int) -> None:
    with pytest.raises(DeclarationError) as caught:
        read(tmp_path, content)

    assert [problem.line for problem in caught.value.problems] == [line]


@pytest.mark.parametrize(
    ("unit", "value", "seconds"),
    [("s", 90.0, 90.0), ("min", 1.5, 90.0), ("ms", 1500, 1.5), ("h", 2, 7_200.0), ("", 90, 90.0)],
)
def test_a_limit_counts_in_the_unit_of_its_parameter(unit: str, value: float, seconds: float) -> None:
    limit = builders.parameter(unit=unit, minimum=0.1, maximum=10_000.0)
    platform = builders.platform(parameters=(limit,))

    assert platform.limit_s("research_synthesis", {builders.TIMEOUT: value}, 3_600.0) == pytest.approx(seconds)
    assert platform.limit_s("monte_carlo", {}, 3_600.0) == 3_600.0


@pytest.mark.parametrize(
    ("name", "fields", "role"),
    [
        ("llm_timeout_s", {}, Role.LIMIT),
        ("batch_timeout_s", {}, Role.LIMIT),
        ("retry_deadline_ms", {"unit": "ms"}, Role.LIMIT),
        ("cache_cutoff", {"unit": ""}, Role.LIMIT),
        (
            "retry_on_timeout",
            {"kind": "boolean", "default": True, "unit": "", "minimum": None, "maximum": None},
            "retries",
        ),
        ("concurrency_limit", {"unit": ""}, Role.CONCURRENCY),
        ("max_wait_s", {}, Role.BACKOFF),
    ],
)
def test_what_is_cut_off_at_a_time_is_a_limit_whatever_else_its_name_says(
    name: str, fields: dict[str, Any], role: str
) -> None:
    declared = {"kind": "float", "default": 90.0, "unit": "s", "minimum": 10, "maximum": 600} | fields

    assert role_of(Parameter(key=f"research.{name}", task_types=("research",), **declared)) == role


def test_the_limit_that_a_task_type_names_is_one_unless_it_declares_a_role(tmp_path: Path) -> None:
    named = GOOD.replace("research.timeout_s", "research.max_wait_s")
    with_role = named.replace('unit = "s"', 'unit = "s"\nrole = "backoff"')

    assert role_of(read(tmp_path, named).parameters[0]) is Role.LIMIT
    assert role_of(read(tmp_path, with_role).parameters[0]) is Role.BACKOFF
    assert role_of(read(tmp_path, named.replace("timeout_parameter", "# was")).parameters[0]) is Role.BACKOFF
