"""Settings: where things are. From the environment (NAUTILUS_*), never from what agents can reach."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """`home` holds the embedded server's files and, unless `database_url` says otherwise, the SQLite database."""

    model_config = SettingsConfigDict(env_prefix="NAUTILUS_")

    home: Path = Path(".nautilus")
    platform: Path = Path("platform.toml")
    database_url: str = ""
    event_poll_s: float = Field(default=2.0, gt=0)
    resolver_refresh_s: float = Field(default=5.0, gt=0)

    @property
    def database(self) -> str:
        """The database's URL: SQLite in `home` by default."""
        return self.database_url or f"sqlite:///{(self.home / 'nautilus.db').resolve()}"
