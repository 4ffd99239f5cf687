"""How the scores of a world model are printed, and which distribution they are about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iwm.cli.options import console

if TYPE_CHECKING:
    from iwm.evaluation import MRRReport
    from iwm.evaluation.mrr import Distribution, Protocol
    from iwm.world_model import WorldModel


def default_distribution(model: WorldModel, protocol: Protocol) -> Distribution:
    """`full`, but `jitter` for applying actions where training targets had jitter alone."""
    return "full" if model.config.actions.symmetric or protocol == "undo" else "jitter"


def print_report(report: MRRReport) -> None:
    """Print one protocol's scores, by transformation, above its baselines."""
    from rich.table import Table

    table = Table(
        title=f"{report.protocol}: photographs {report.images}, views of each {report.bank_size}, "
        f"{report.distribution} distribution{f', {report.strength} strength' if report.strength else ''}",
        title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold",
    )  # fmt: skip
    for column in ("", "MRR", "hits@1", "hits@5", "hits@10", "queries"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    rows = {"all": report.overall} | report.per_transformation
    baselines = {f"baseline: {name.replace('_', ' ')}": s for name, s in report.baselines.items()}
    for name, scores in (rows | baselines).items():
        table.add_row(
            name, f"{scores.mrr:.3f}", f"{scores.hits[1]:.3f}", f"{scores.hits[5]:.3f}", f"{scores.hits[10]:.3f}", str(scores.queries),
            style="dim" if name in baselines else None,
        )  # fmt: skip
    console.print(table)
    console.print()
