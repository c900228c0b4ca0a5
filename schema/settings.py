"""Settings: where things are. From the environment (NAUTILUS_*), never from what agents can reach."""

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

from schema.pace import Pace


class Settings(BaseModel):
    """`home` holds the embedded server's files and, unless `database_url` is set, the SQLite database.

    `pace` overrides that of the file at `platform`; `research_url` is where research tasks get their passages; without
    one, from the corpus of this machine. `playbook` extends the one that ships with the built-in agents. `build_id`
    names the release that a worker runs; without one, the hash of its code does. `metrics_address` is where a worker
    serves the SDK's metrics; empty: nowhere. `health_address` is where a worker or the built-in agents answer a probe.
    An empty variable is ignored.
    """

    home: Path = Path(".nautilus")
    platform: Path = Path("platform.toml")
    pace: Pace | None = None
    database_url: str = ""
    research_url: str = ""
    playbook: Path | None = None
    build_id: str = Field(default="", max_length=200)
    event_poll_s: float = Field(default=2.0, gt=0)
    resolver_refresh_s: float = Field(default=5.0, gt=0)
    metrics_address: str = ""
    health_address: str = ""

    @model_validator(mode="before")
    @classmethod
    def _of_environment(cls, given: dict[str, Any]) -> dict[str, Any]:
        """`home` is NAUTILUS_HOME, and so on; what is given in code takes precedence."""
        variables = {name: os.environ.get(f"NAUTILUS_{name.upper()}") for name in cls.model_fields}
        return {name: value for name, value in variables.items() if value} | given

    @property
    def database(self) -> str:
        """The database's URL: SQLite in `home` by default."""
        return self.database_url or f"sqlite:///{(self.home / 'nautilus.db').resolve()}"

    def variables(self) -> dict[str, str]:
        """These settings for a process that starts in another folder; an empty one overrides nothing."""
        fields = type(self).model_fields
        own = {name: "" if value == fields[name].default else str(value) for name, value in self}
        own |= {"home": str(self.home.resolve()), "platform": str(self.platform.resolve())}
        if self.playbook is not None:
            own["playbook"] = str(self.playbook.resolve())
        return {f"NAUTILUS_{name.upper()}": value for name, value in (own | {"database_url": self.database}).items()}
