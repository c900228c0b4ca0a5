"""Settings: where things are. From the environment (NAUTILUS_*), never from what agents can reach."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from schema.pace import Pace


class Settings(BaseSettings):
    """`home` holds the embedded server's files and, unless `database_url` says otherwise, the SQLite database.

    `pace` overrides that of the file at `platform`; `research_url` is where research tasks get their passages, without
    one from the corpus of this machine. An empty variable counts as none.
    """

    model_config = SettingsConfigDict(env_prefix="NAUTILUS_", env_ignore_empty=True)

    home: Path = Path(".nautilus")
    platform: Path = Path("platform.toml")
    pace: Pace | None = None
    database_url: str = ""
    research_url: str = ""
    event_poll_s: float = Field(default=2.0, gt=0)
    resolver_refresh_s: float = Field(default=5.0, gt=0)

    @property
    def database(self) -> str:
        """The database's URL: SQLite in `home` by default."""
        return self.database_url or f"sqlite:///{(self.home / 'nautilus.db').resolve()}"

    def variables(self) -> dict[str, str]:
        """These settings as a process takes them that was started elsewhere; empty is what overrides nothing."""
        fields = type(self).model_fields
        own = {name: "" if value == fields[name].default else str(value) for name, value in self}
        own |= {"home": str(self.home.resolve()), "platform": str(self.platform.resolve())}
        return {f"NAUTILUS_{name.upper()}": value for name, value in (own | {"database_url": self.database}).items()}
