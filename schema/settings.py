"""Settings: where things are. From the environment (NAUTILUS_*), never from what agents can reach."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """`home` holds the embedded server's files and, unless `database_url` says otherwise, the SQLite database.

    `research_url` is where research tasks get their passages; without one, from the corpus of this machine.
    """

    model_config = SettingsConfigDict(env_prefix="NAUTILUS_")

    home: Path = Path(".nautilus")
    platform: Path = Path("platform.toml")
    database_url: str = ""
    research_url: str = ""
    event_poll_s: float = Field(default=2.0, gt=0)
    resolver_refresh_s: float = Field(default=5.0, gt=0)

    @property
    def database(self) -> str:
        """The database's URL: SQLite in `home` by default."""
        return self.database_url or f"sqlite:///{(self.home / 'nautilus.db').resolve()}"

    def variables(self) -> dict[str, str]:
        """These settings as another process on this machine takes them, from wherever it runs."""
        absolute = {"home": self.home.resolve(), "platform": self.platform.resolve(), "database_url": self.database}
        values = self.model_dump(exclude_defaults=True) | absolute
        return {f"NAUTILUS_{name.upper()}": str(value) for name, value in values.items() if value != ""}
