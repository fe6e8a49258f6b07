"""The findings of the doctor."""

from __future__ import annotations

import typing as t

from ..._diagnosis import Diagnosis


class Finding(t.NamedTuple):
    """A problem of the installation: one sentence on what is wrong, one on what to do."""

    level: t.Literal["error", "warning"]
    problem: str
    remedy: str


def error(problem: str, remedy: str) -> Finding:
    return Finding("error", problem, remedy)


def error_of(diagnosis: Diagnosis) -> Finding:
    return error(diagnosis.problem, diagnosis.remedy)


def warning(problem: str, remedy: str) -> Finding:
    return Finding("warning", problem, remedy)
