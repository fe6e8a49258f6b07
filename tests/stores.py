"""The session stores that the tests run on, and access to their entries."""

from __future__ import annotations

import functools
import socket
import time
import typing as t
import urllib.parse
import warnings
from pathlib import Path

import pytest
import redis
import servers
import sqlalchemy as sa
from cachelib import FileSystemCache, SimpleCache
from flask import Flask
from flask_session import Session
from flask_sqlalchemy import SQLAlchemy


class Store:
    """Signed cookies, which store nothing. Also the base class of the others."""

    def __init__(self, app: Flask, folder: Path, prefix: str) -> None:
        self.app = app
        self.folder = folder
        self.prefix = prefix

    def configure(self) -> dict[str, t.Any]:
        """Return the settings of Flask-Session."""
        return {}

    def set_up(self, db: SQLAlchemy) -> None:
        """Call ``Session(app)``."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Session(self.app)

    def entries(self) -> dict[str, str]:
        """Return all entries as text, by key."""
        return {}

    def close(self) -> None:
        """Delete everything this store has written."""


class Cookie(Store):
    def set_up(self, db: SQLAlchemy) -> None:
        pass


class RedisStore(Store):
    def configure(self) -> dict[str, t.Any]:
        self.client: t.Any = redis.Redis.from_url(servers.redis_url())
        return {"SESSION_TYPE": "redis", "SESSION_REDIS": self.client}

    def entries(self) -> dict[str, str]:
        keys = list(self.client.scan_iter(f"{self.prefix}*"))
        return {key.decode(): repr(self.client.get(key)) for key in keys}

    def close(self) -> None:
        for key in self.client.scan_iter(f"{self.prefix}*"):
            self.client.delete(key)
        self.client.close()


class Cluster(RedisStore):
    """A Redis Cluster, which Flask-Session doesn't recognize as Redis."""

    def configure(self) -> dict[str, t.Any]:
        self.client = servers.redis_cluster()
        return {"SESSION_TYPE": "redis", "SESSION_REDIS": self.client}

    def set_up(self, db: SQLAlchemy) -> None:
        super().set_up(db)
        t.cast(t.Any, self.app.session_interface).client = self.client


class Sentinel(RedisStore):
    def configure(self) -> dict[str, t.Any]:
        self.client = servers.redis_sentinel().master_for("sessions")
        return {"SESSION_TYPE": "redis", "SESSION_REDIS": self.client}


class Memcached(Store):
    """memcached through pymemcache."""

    def configure(self) -> dict[str, t.Any]:
        self.host, self.port = servers.memcached_address()
        return {"SESSION_TYPE": "memcached", "SESSION_MEMCACHED": self.make_client()}

    def make_client(self) -> t.Any:
        from pymemcache import Client

        return Client((self.host, self.port), timeout=10)

    def entries(self) -> dict[str, str]:
        # The client doesn't wait for a reply to its writes. This read returns after all of them.
        t.cast(t.Any, self.app.session_interface).client.get("nothing")
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            file = connection.makefile("rb")
            listing = b"lru_crawler metadump hash\r\n"
            # Walk the hash table: a walk along the LRU queues can miss an entry that moves between
            # them.
            connection.sendall(listing)
            keys = []
            while (line := file.readline()) not in (b"END\r\n", b""):
                if line.startswith((b"BUSY", b"ERROR", b"LOCKED")):
                    # memcached lists its keys for one client at a time, and another test is doing
                    # so.
                    time.sleep(0.01)
                    connection.sendall(listing)
                    continue
                key = urllib.parse.unquote(line.split()[0].decode().removeprefix("key="))
                if key.startswith(self.prefix):
                    keys.append(key)
            found = {}
            for key in keys:
                connection.sendall(f"get {key}\r\n".encode())
                header = file.readline().split()
                if header[0] == b"VALUE":
                    found[key] = repr(file.read(int(header[3]) + 2))
                    file.readline()
            return found

    def close(self) -> None:
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            for key in self.entries():
                connection.sendall(f"delete {key}\r\n".encode())
                connection.recv(100)
        client: t.Any = self.app.config["SESSION_MEMCACHED"]
        (client.disconnect_all if hasattr(client, "disconnect_all") else client.close)()


class PooledMemcached(Memcached):
    def make_client(self) -> t.Any:
        from pymemcache import PooledClient

        return PooledClient((self.host, self.port), timeout=10)


class HashedMemcached(Memcached):
    """A client that spreads keys over servers (one, here) and retries."""

    def make_client(self) -> t.Any:
        from pymemcache import HashClient
        from pymemcache.client.retrying import RetryingClient

        return RetryingClient(HashClient([(self.host, self.port)], timeout=10), attempts=2)


class Pylibmc(Memcached):
    def make_client(self) -> t.Any:
        pytest.importorskip("pylibmc", reason="pylibmc has no wheel for this Python")
        from pylibmc import Client

        # Without behaviors, pylibmc trips over its own default on Python 3.13.
        return Client([f"{self.host}:{self.port}"], behaviors={"tcp_nodelay": True})


class PythonMemcached(Memcached):
    def make_client(self) -> t.Any:
        from memcache import Client

        return Client([f"{self.host}:{self.port}"])


class Files(Store):
    """cachelib, in files."""

    def configure(self) -> dict[str, t.Any]:
        self.cache: t.Any = FileSystemCache(str(self.folder / "sessions"), threshold=0)
        return {"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": self.cache}

    def entries(self) -> dict[str, str]:
        # File names are hashes of the keys.
        files = [p for p in (self.folder / "sessions").iterdir() if "count" not in p.name]
        counter = self.cache._get_filename(self.cache._fs_count_file)
        return {p.name: repr(p.read_bytes()) for p in files if str(p) != counter}


class FileSystem(Files):
    """Flask-Session's deprecated file system store."""

    def configure(self) -> dict[str, t.Any]:
        return {
            "SESSION_TYPE": "filesystem",
            "SESSION_FILE_DIR": str(self.folder / "sessions"),
            "SESSION_FILE_THRESHOLD": 0,
        }

    def set_up(self, db: SQLAlchemy) -> None:
        super().set_up(db)
        self.cache = t.cast(t.Any, self.app.session_interface).cache


class Memory(Store):
    """cachelib, in the memory of this process."""

    def configure(self) -> dict[str, t.Any]:
        self.cache: t.Any = SimpleCache(threshold=10**6)
        return {"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": self.cache}

    def entries(self) -> dict[str, str]:
        return {key: repr(self.cache.get(key)) for key in self.cache._cache}


class CachelibRedis(RedisStore):
    """cachelib, in Redis."""

    def configure(self) -> dict[str, t.Any]:
        from cachelib import RedisCache

        self.client = redis.Redis.from_url(servers.redis_url())
        cache = RedisCache(self.client)
        return {"SESSION_TYPE": "cachelib", "SESSION_CACHELIB": cache}

    def entries(self) -> dict[str, str]:
        found = self.client.scan_iter(f"*{self.prefix}*")
        # Exclude the user sessions, which might be in the same database.
        keys = [key for key in found if not key.startswith(b"records:")]
        return {key.decode(): repr(self.client.get(key)) for key in keys}


class Sql(Store):
    """A table of the app's database."""

    def set_up(self, db: SQLAlchemy) -> None:
        self.db = db
        self.app.config.update(SESSION_TYPE="sqlalchemy", SESSION_SQLALCHEMY=db)
        super().set_up(db)

    def entries(self) -> dict[str, str]:
        table = t.cast(t.Any, self.app.session_interface).sql_session_model.__table__
        with self.app.app_context():
            engine = self.db.engines[table.metadata.info.get("bind_key")]
            with engine.connect() as connection:
                rows = connection.execute(sa.select(table.c.session_id, table.c.data))
                return {row[0]: repr(row[1]) for row in rows}


class MongoDB(Store):
    """MongoDB, replaced by mongomock because no server can be installed freely."""

    def configure(self) -> dict[str, t.Any]:
        import mongomock

        self.client: t.Any = mongomock.MongoClient()
        return {
            "SESSION_TYPE": "mongodb",
            "SESSION_MONGODB": self.client,
            "SESSION_MONGODB_DB": "sessions",
            "SESSION_MONGODB_COLLECT": self.prefix.rstrip(":"),
        }

    def set_up(self, db: SQLAlchemy) -> None:
        import flask_session.mongodb.mongodb as module
        import mongomock

        real, module.MongoClient = module.MongoClient, mongomock.MongoClient
        try:
            super().set_up(db)
        finally:
            module.MongoClient = real

    def entries(self) -> dict[str, str]:
        store = t.cast(t.Any, self.app.session_interface).store
        return {document["id"]: repr(document["val"]) for document in store.find()}


@functools.cache
def dynamodb_resource() -> t.Any:
    import boto3

    return boto3.resource(
        "dynamodb",
        endpoint_url=servers.dynamodb_url(),
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


class DynamoDB(Store):
    """DynamoDB, served here by moto."""

    def configure(self) -> dict[str, t.Any]:
        return {
            "SESSION_TYPE": "dynamodb",
            "SESSION_DYNAMODB": dynamodb_resource(),
            "SESSION_DYNAMODB_TABLE": self.prefix.rstrip(":"),
        }

    def entries(self) -> dict[str, str]:
        items = t.cast(t.Any, self.app.session_interface).store.scan()["Items"]
        return {item["id"]: repr(item["val"].value) for item in items}

    def close(self) -> None:
        t.cast(t.Any, self.app.session_interface).store.delete()


KINDS: dict[str, type[Store]] = {
    "cookie": Cookie,
    "redis": RedisStore,
    "files": Files,
    "memory": Memory,
    "sqlalchemy": Sql,
    "filesystem": FileSystem,
    "memcached": Memcached,
    "mongodb": MongoDB,
    "dynamodb": DynamoDB,
    # The same servers through other clients.
    "cluster": Cluster,
    "sentinel": Sentinel,
    "cachelib-redis": CachelibRedis,
    "pymemcache-pooled": PooledMemcached,
    "pymemcache-hashed": HashedMemcached,
    "pylibmc": Pylibmc,
    "python-memcached": PythonMemcached,
}
#: The stores that every store scenario is tested on.
STORES = tuple(KINDS)[:9]
