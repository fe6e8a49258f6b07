"""Run all benchmarks, in under 15 minutes: ``python -m benchmarks``.

Prints what they print, and writes their ratios as tables and plots to ``benchmarks/results``.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import click
import matplotlib as mpl

from . import crowd, database, http, instructions, request, revoke, scale
from .common import KINDS, Ratio, Section, UnavailableError

RESULTS = Path(__file__).resolve().parent / "results"
#: The packages that the results depend on.
PACKAGES = ("Flask", "Flask-Login", "Flask-Session", "Flask-SQLAlchemy", "SQLAlchemy", "redis")

MILLION = 1_000_000
#: Minutes under load for the app with the registry, and as many for the app without it.
MINUTES = 10


def of_requests(rounds: int) -> list[Section]:
    found: list[list[Section]] = []
    for title, setup in request.SETUPS.values():
        click.echo(f"\n{title}\n")
        try:
            ratios = request.report_throughput(setup, rounds, 60)
        except UnavailableError as error:
            click.echo(f"Left out. {error}")
        else:
            found.append(_of_kinds(title, "throughput", ratios, min))
    # Each kind of user on one database beside the same kind on the other.
    return [section for sections in zip(*found, strict=True) for section in sections]


def of_instructions() -> list[Section]:
    click.echo("\nInstructions\n")
    title, _ = request.SETUPS["sqlite"]
    return _of_kinds(title, "instructions", instructions.report("sqlite"), max)


def _of_kinds(
    title: str,
    unit: str,
    found: Mapping[str, Mapping[str, Ratio]],
    worst: Callable[..., str],
) -> list[Section]:
    sections = [
        Section(
            f"A request, {KINDS[kind][0]}: {title}", f"{unit}, without the registry = 1", ratios
        )
        for kind, ratios in found.items()
    ]
    sections[0] = sections[0]._replace(notes=[request.as_worst(unit, found, worst)])
    return sections


def of_http(rounds: int) -> list[Section]:
    click.echo("\nOver HTTP\n")
    ratios = http.report(rounds)
    return [Section("Over HTTP, two workers", "throughput, without the registry = 1", ratios)]


def of_password_changes(rounds: int) -> list[Section]:
    click.echo("\nA password change\n")
    return [
        Section(f"A password change with {size:,} sessions", "cost, floor = 1", ratios)
        for size, ratios in revoke.report_sizes(rounds).items()
    ]


def of_sizes(database: str, rows: Sequence[int], rounds: int) -> list[Section]:
    click.echo(f"\nThe number of sessions on {database}\n")
    return scale.report(database, [scale.SMALL, *rows], rounds)


def of_database(rows: int, rounds: int) -> list[Section]:
    click.echo("\nA database\n")
    return [database.report(rows, rounds)]


def of_crowd() -> list[Section]:
    click.echo("\nMany at once\n")
    return [crowd.as_section(crowd.report(2 * MINUTES), 2 * MINUTES)]


def of_everybody() -> list[Section]:
    click.echo("\nEverybody\n")
    return [revoke.report_everybody(MILLION)]


def as_markdown(sections: Sequence[Section]) -> str:
    ground = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        "# Results",
        "",
        "Made by `python -m benchmarks`. Only ratios mean anything, and only those of one run.",
        "",
        f"Python {platform.python_version()}; {ground}.",
    ]
    for title, unit, ratios, notes in sections:
        lines += ["", f"## {title}", "", f"| {unit} | median | 95 % |", "|---|---|---|"]
        lines += [
            f"| {name} | {ratio.paired:.3f} | {ratio.low:.3f} to {ratio.high:.3f} |"
            for name, ratio in ratios.items()
        ]
        lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join([*lines, ""])


def plot(sections: Sequence[Section], name: str) -> None:
    """Draw a bar with its interval for each ratio, as PNG and as SVG.

    Up to three sections lie side by side, more in pairs.
    """
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    import matplotlib.pyplot as plt

    columns = len(sections) if len(sections) <= 3 else 2
    rows = math.ceil(len(sections) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(5.5 * columns, 3 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(sections) :]:
        axis.remove()
    for (title, unit, ratios, _), axis in zip(sections, axes.flat[: len(sections)], strict=True):
        names = list(ratios)[::-1]
        values = [ratios[one].paired for one in names]
        errors = [
            [max(0, ratios[one].paired - ratios[one].low) for one in names],
            [max(0, ratios[one].high - ratios[one].paired) for one in names],
        ]
        bars = axis.barh(names, values, xerr=errors, color="#4477aa", ecolor="#333333", capsize=3)
        axis.bar_label(
            bars, [f"{value:.2f}" for value in values], label_type="center", color="white"
        )
        axis.axvline(1, color="#333333", linewidth=0.8, linestyle="--")
        axis.set_title(title.replace(": ", ":\n", 1), fontsize=10)
        axis.set_xlabel(unit, fontsize=9)
        axis.tick_params(labelsize=9)
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(RESULTS / f"{name}.{suffix}", dpi=150, metadata=metadata)
    plt.close(figure)


PARTS: dict[str, Callable[[int], list[Section]]] = {
    "request": of_requests,
    "instructions": lambda _: of_instructions(),
    "http": lambda rounds: of_http(max(1, rounds // 4)),
    "revoke": lambda rounds: of_password_changes(max(1, rounds // 10)),
    "scale": lambda rounds: of_sizes("PostgreSQL", [MILLION], max(1, rounds // 2)),
    "scale-mariadb": lambda rounds: of_sizes("MariaDB", [MILLION], max(1, rounds // 2)),
    "database": lambda rounds: of_database(MILLION, max(1, rounds // 10)),
}
#: These take longer than all the others together.
LONG: dict[str, Callable[[int], list[Section]]] = {
    "scale": lambda rounds: of_sizes("PostgreSQL", [MILLION, 10 * MILLION], max(1, rounds // 2)),
    "crowd": lambda _: of_crowd(),
    "everybody": lambda _: of_everybody(),
}


@click.command(help=__doc__)
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--long",
    is_flag=True,
    help="Also run with 10 million sessions, with many clients for 20 minutes, and revoke a million"
    " sessions. Takes another hour.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([*PARTS, *(name for name in LONG if name not in PARTS)]),
    help="Run only this part. May be given several times.",
)
def main(rounds: int, long: bool, only: tuple[str, ...]) -> None:
    RESULTS.mkdir(exist_ok=True)
    parts = PARTS | LONG if long else PARTS
    if missing := set(only) - set(parts):
        raise click.UsageError(f"'--only {missing.pop()}' needs '--long'.")
    for name in only or parts:
        try:
            found = parts[name](rounds)
        except UnavailableError as error:
            click.echo(f"Left out. {error}")
            continue
        if found:
            plot(found, name)
            (RESULTS / f"{name}.md").write_text(as_markdown(found))
            click.echo(f"\nWritten into {RESULTS.name}: {name}.md, {name}.png, {name}.svg.")


if __name__ == "__main__":
    main()
