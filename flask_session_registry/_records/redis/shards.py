"""The shards in Redis: their keys, and the scripts that run in one of them."""

from __future__ import annotations

import hashlib
import typing as t
import uuid
from collections.abc import Iterable, Iterator, Sequence

from .. import user_keys
from ..base import batches_of
from .scripts import Script

_SHARDS = [f"{number:02x}" for number in range(256)]


class Shards:
    """See :class:`RedisClient`, whose base class it is."""

    def __init__(self, client: t.Any, prefix: str) -> None:
        self.client = client
        self._prefix = prefix

    def _base(self, shard: str) -> str:
        return f"{self._prefix}{{{shard}}}:"

    def _bases(self) -> Iterator[str]:
        return map(self._base, _SHARDS)

    def _key(self, id: uuid.UUID, kind: str = "s") -> str:
        return f"{self._base(id.hex[:2])}{kind}:{id.hex}"

    def _pointer(self, store_id: str) -> str:
        return f"{self._prefix}k:{store_id}"

    def _run(self, script: Script, ids: Sequence[str], *arguments: t.Any) -> t.Any:
        """Run a script on sessions or tombstones of one shard."""
        return self._run_in(self._base(ids[0][:2]), script, "".join(ids), *arguments)

    def _run_in(self, base: str, script: Script, *arguments: t.Any) -> t.Any:
        try:
            return self.client.evalsha(script.digest, 1, base, *arguments)
        except Exception as error:
            if not _is_unknown(error):
                raise
        # This Redis has not run it yet, or has been restarted.
        return self.client.eval(script.text, 1, base, *arguments)


def _is_unknown(error: Exception) -> bool:
    """Return whether an error says that Redis doesn't know a script."""
    return type(error).__name__ == "NoScriptError" or str(error).startswith("NOSCRIPT")


def shard_of(user_id: t.Any) -> str:
    return hashlib.sha256(user_keys.as_text(user_id).encode()).hexdigest()[:2]


def by_shard(ids: Iterable[uuid.UUID | str]) -> Iterator[list[str]]:
    """Yield the ids of each shard, in batches, as hexadecimal digits."""
    shards: dict[str, list[str]] = {}
    for id in ids:
        text = id if isinstance(id, str) else id.hex
        shards.setdefault(text[:2], []).append(text)
    for part in shards.values():
        yield from batches_of(part)
