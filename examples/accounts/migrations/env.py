"""Run Alembic: Flask-Migrate's template, without the parts that this app doesn't need."""

import logging
from logging.config import fileConfig

from alembic import context
from alembic.operations import MigrationScript
from alembic.runtime.migration import MigrationContext
from flask import current_app

config = context.config
logger = logging.getLogger("alembic.env")

# Keep the logging that a server or a test has already configured.
if config.config_file_name and not logging.getLogger().handlers:
    fileConfig(config.config_file_name, disable_existing_loggers=False)

migrate = current_app.extensions["migrate"]
engine = migrate.db.engine
metadata = migrate.db.metadatas[None]


def _is_empty(script: MigrationScript) -> bool:
    return script.upgrade_ops is not None and script.upgrade_ops.is_empty()


def leave_out_empty(
    _context: MigrationContext, _revision: object, directives: list[MigrationScript]
) -> None:
    """Create no revision if nothing has changed."""
    if getattr(config.cmd_opts, "autogenerate", False) and _is_empty(directives[0]):
        directives[:] = []
        logger.info("No changes in schema detected.")


def run_offline() -> None:
    """Print the SQL without a connection."""
    context.configure(
        url=engine.url.render_as_string(hide_password=False),
        target_metadata=metadata,
        literal_binds=True,
    )
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    options = {"process_revision_directives": leave_out_empty, **migrate.configure_args}
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        if is_sqlite:
            # Alembic changes a SQLite table by creating a new one and dropping the old one. With
            # foreign keys on, that would set the user of every session to NULL.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.commit()
        context.configure(connection=connection, target_metadata=metadata, **options)
        with context.begin_transaction():
            context.run_migrations()
        if is_sqlite:
            # The next user of this connection gets a new one, with foreign keys on.
            connection.invalidate()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
