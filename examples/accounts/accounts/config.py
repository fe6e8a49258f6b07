"""Read the app's configuration from the environment.

========================  =======================================================================
``DATABASE_URL``          the database; otherwise SQLite, in the instance folder
``REDIS_URL``             where sessions are kept; otherwise in files, in the instance folder
``SECRET_KEY``            otherwise generated once, and kept in the instance folder
``HTTPS``                 ``1`` if the app is served over HTTPS: cookies are for HTTPS only
``TRUSTED_HOSTS``         the app's host names, separated by commas; otherwise this machine's
                          own. Flask 3.0 ignores them
``ACCOUNTS_INSTANCE``     another instance folder
``MAIL_SERVER``           the server that sends mail; otherwise mail is shown on the terminal
``MAIL_PORT``             its port; otherwise 25, and 587 with TLS
``MAIL_USE_TLS``          ``1`` if it requires STARTTLS
``MAIL_USERNAME``         the login for it, if it requires one
``MAIL_PASSWORD``         its password
``MAIL_DEFAULT_SENDER``   the sender's address; required with a server
========================  =======================================================================
"""

import contextlib
import os
import secrets
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

# The driver to use if a URL names only the database.
DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}


def from_environ(instance: Path) -> dict[str, Any]:
    """Return the app's configuration. ``instance`` is an existing folder."""
    https = os.environ.get("HTTPS") == "1"
    hosts = os.environ.get("TRUSTED_HOSTS") or "localhost,127.0.0.1"
    return {
        "SECRET_KEY": os.environ.get("SECRET_KEY") or _kept_secret(instance / "secret_key"),
        # The password reset link is made with the host of the request.
        "TRUSTED_HOSTS": [host.strip() for host in hosts.split(",")],
        "PREFERRED_URL_SCHEME": "https" if https else "http",
        "MAX_CONTENT_LENGTH": 64 * 1024,
        # The session ends with the browser, or after this long without a request…
        "SESSION_PERMANENT": False,
        "PERMANENT_SESSION_LIFETIME": timedelta(hours=12),
        "SESSION_COOKIE_HTTPONLY": True,
        "SESSION_COOKIE_SAMESITE": "Lax",
        "SESSION_COOKIE_SECURE": https,
        # …unless "remember me" renews it.
        "REMEMBER_COOKIE_DURATION": timedelta(days=30),
        "REMEMBER_COOKIE_HTTPONLY": True,
        "REMEMBER_COOKIE_SAMESITE": "Lax",
        "REMEMBER_COOKIE_SECURE": https,
        # A form is valid as long as its session.
        "WTF_CSRF_TIME_LIMIT": None,
        "SESSION_REGISTRY_BASE_TEMPLATE": "base.html",
        **_database(instance),
        **_session_store(instance),
        **_mail(),
    }


def _database(instance: Path) -> dict[str, Any]:
    url = os.environ.get("DATABASE_URL")
    if not url:
        return {"SQLALCHEMY_DATABASE_URI": f"sqlite:///{instance / 'accounts.sqlite'}"}
    scheme, separator, rest = url.partition("://")
    return {
        "SQLALCHEMY_DATABASE_URI": DRIVERS.get(scheme, scheme) + separator + rest,
        "SQLALCHEMY_ENGINE_OPTIONS": {"pool_pre_ping": True},
    }


def _session_store(instance: Path) -> dict[str, Any]:
    url = os.environ.get("REDIS_URL")
    if url:
        import redis

        return {"SESSION_TYPE": "redis", "SESSION_REDIS": redis.from_url(url)}
    from cachelib import FileSystemCache

    # An absolute path, the same for every process. A threshold would lose sessions.
    folder = str(instance / "sessions")
    return {
        "SESSION_TYPE": "cachelib",
        "SESSION_CACHELIB": FileSystemCache(folder, threshold=0, mode=0o600),
    }


def _mail() -> dict[str, Any]:
    server, sender = os.environ.get("MAIL_SERVER"), os.environ.get("MAIL_DEFAULT_SENDER")
    if server and not sender:
        raise RuntimeError(
            "There is a 'MAIL_SERVER', but nobody whom mail could come from. Set"
            " 'MAIL_DEFAULT_SENDER' to an address."
        )
    tls = os.environ.get("MAIL_USE_TLS") == "1"
    return {
        "MAIL_SERVER": server,
        "MAIL_PORT": int(os.environ.get("MAIL_PORT") or (587 if tls else 25)),
        "MAIL_USE_TLS": tls,
        "MAIL_USERNAME": os.environ.get("MAIL_USERNAME"),
        "MAIL_PASSWORD": os.environ.get("MAIL_PASSWORD"),
        "MAIL_DEFAULT_SENDER": sender,
    }


def _kept_secret(path: Path) -> str:
    """Return the secret in this file. The first call creates it, even with concurrent processes."""
    if not path.exists():
        handle, draft = tempfile.mkstemp(dir=path.parent)  # readable by its owner only
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        # Atomic: only one process can create it, and none sees half of it.
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        Path(draft).unlink()
    return path.read_text()
