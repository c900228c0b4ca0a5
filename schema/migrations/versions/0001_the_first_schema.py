"""The first schema. Databases that began with it are at this revision, and later ones carry them on.

It creates nothing: a new database gets all tables from the models at once (activities.database.migrate), and is at the
newest revision from its beginning.
"""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing to do."""
