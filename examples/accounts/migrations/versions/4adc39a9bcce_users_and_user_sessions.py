"""users and user sessions

Revision ID: 4adc39a9bcce
Revises:

"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "4adc39a9bcce"
down_revision = None
branch_labels = None
depends_on = None


def moment() -> sa.types.TypeEngine[datetime]:
    # With microseconds, also on MariaDB and MySQL.
    return sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("password_hash", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("email", name=op.f("uq_users_email")),
    )
    op.create_table(
        "user_sessions",
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("store_id", sa.String(length=255), nullable=True),
        sa.Column("ip_address", sa.String(length=45), nullable=True),
        sa.Column("user_agent", sa.String(length=512), nullable=True),
        sa.Column("created_at", moment(), nullable=False),
        sa.Column("last_seen_at", moment(), nullable=False),
        sa.Column("rotated_at", moment(), nullable=True),
        sa.Column("authenticated_at", moment(), nullable=False),
        sa.Column("remember_until", moment(), nullable=True),
        sa.Column("fingerprint", sa.String(length=64), nullable=True),
        sa.Column("revoked_at", moment(), nullable=True),
        sa.Column("revoked_reason", sa.String(length=64), nullable=True),
        sa.Column("revocation", sa.Uuid(), nullable=True),
        sa.Column("purged_at", moment(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("fk_user_sessions_user_id_users"),
            onupdate="CASCADE",
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_sessions")),
    )
    if op.get_bind().dialect.name == "postgresql":
        # Rows are updated in place: leave room in each page for their next versions.
        op.execute("ALTER TABLE user_sessions SET (fillfactor = 50)")
    op.create_index(op.f("ix_user_sessions_store_id"), "user_sessions", ["store_id"], unique=False)
    op.create_index(op.f("ix_user_sessions_user_id"), "user_sessions", ["user_id"], unique=False)
    op.create_table(
        "user_session_tombstones",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("user_session_id", sa.Uuid(), nullable=True),
        sa.Column("store_id", sa.String(length=255), nullable=True),
        sa.Column("created_at", moment(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_session_tombstones")),
    )
    for column in ("store_id", "user_session_id"):
        op.create_index(
            op.f(f"ix_user_session_tombstones_{column}"),
            "user_session_tombstones",
            [column],
            unique=False,
        )


def downgrade() -> None:
    op.drop_table("user_session_tombstones")
    op.drop_table("user_sessions")
    op.drop_table("users")
