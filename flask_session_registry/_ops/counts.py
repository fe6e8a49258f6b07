"""Counts of things, as text for people."""

from __future__ import annotations


def count_of(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def sessions_of(count: int, adjective: str = "") -> str:
    return count_of(count, f"{adjective}session")


def entries_of(count: int) -> str:
    return f"{count} entr{'y' if count == 1 else 'ies'}"
