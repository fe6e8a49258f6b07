"""All benchmarks, in under 15 minutes: ``python -m benchmarks``.

What they print is printed; their ratios go as tables and plots into ``benchmarks/results``.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import click
import matplotlib as mpl

from . import http, request, revoke, scale
from .common import Ratio, UnavailableError

RESULTS = Path(__file__).resolve().parent / "results"
#: What the results depend on.
PACKAGES = ("Flask", "Flask-Login", "Flask-Session", "Flask-SQLAlchemy", "SQLAlchemy", "redis")

Section = tuple[str, str, Mapping[str, Ratio]]


def of_requests(rounds: int) -> list[Section]:
    found: list[Section] = []
    for title, setup in request.SETUPS.values():
        click.echo(f"\n{title}\n")
        try:
            with setup() as config:
                ratios = request.report_throughput(config, rounds, 60)
        except UnavailableError as error:
            click.echo(f"Left out. {error}")
        else:
            found.append((f"A request: {title}", "throughput, without the registry = 1", ratios))
    return found


def of_http(rounds: int) -> list[Section]:
    click.echo("\nOver HTTP\n")
    ratios = http.report(rounds)
    return [("Over HTTP, two workers", "throughput, without the registry = 1", ratios)]


def of_password_changes(rounds: int) -> list[Section]:
    click.echo("\nA password change\n")
    return [
        (f"A password change with {size:,} sessions", "cost, floor = 1", ratios)
        for size, ratios in revoke.report_sizes(rounds).items()
    ]


def of_sizes(rows: Sequence[int], rounds: int) -> list[Section]:
    click.echo("\nThe number of sessions\n")
    found = scale.report([scale.SMALL, *rows], rounds)
    return [
        (
            f"With {count:,} sessions",
            f"cost, with {scale.SMALL:,} = 1",
            {verb: ratios[number] for verb, ratios in found.items()},
        )
        for number, count in enumerate(rows)
    ]


def as_markdown(sections: Sequence[Section]) -> str:
    ground = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        "# Results",
        "",
        "Made by `python -m benchmarks`. Only ratios mean anything, and only those of one run.",
        "",
        f"Python {platform.python_version()}; {ground}.",
    ]
    for title, unit, ratios in sections:
        lines += ["", f"## {title}", "", f"| {unit} | median | 95 % |", "|---|---|---|"]
        lines += [
            f"| {name} | {ratio.paired:.3f} | {ratio.low:.3f} to {ratio.high:.3f} |"
            for name, ratio in ratios.items()
        ]
    return "\n".join([*lines, ""])


def plot(sections: Sequence[Section], name: str) -> None:
    """A bar for each ratio, with its interval, as PNG and as SVG."""
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "benchmarks"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(sections), figsize=(5.5 * len(sections), 3), squeeze=False, layout="constrained"
    )
    for (title, unit, ratios), axis in zip(sections, axes[0], strict=True):
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
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(unit, fontsize=9)
        axis.tick_params(labelsize=9)
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(RESULTS / f"{name}.{suffix}", dpi=150, metadata=metadata)
    plt.close(figure)


@click.command(help=__doc__)
@click.option("--rounds", default=40, show_default=True, type=click.IntRange(min=1))
@click.option("--long", is_flag=True, help="Also with 10 million sessions: half an hour more.")
def main(rounds: int, long: bool) -> None:
    RESULTS.mkdir(exist_ok=True)
    rows = [1_000_000, 10_000_000] if long else [1_000_000]
    parts = {
        "request": lambda: of_requests(rounds),
        "http": lambda: of_http(max(1, rounds // 4)),
        "revoke": lambda: of_password_changes(max(1, rounds // 10)),
        "scale": lambda: of_sizes(rows, max(1, rounds // 2)),
    }
    sections: list[Section] = []
    for name, measure in parts.items():
        try:
            found = measure()
        except UnavailableError as error:
            click.echo(f"Left out. {error}")
            continue
        if found:
            plot(found, name)
        sections += found
    (RESULTS / "results.md").write_text(as_markdown(sections))
    click.echo(f"\nWritten into {RESULTS.relative_to(Path.cwd())}.")


if __name__ == "__main__":
    main()
