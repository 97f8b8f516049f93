"""The terminal table of what a transfer took out of its teacher."""

from statistics import fmean

from rich.table import Table
from rich.text import Text

from transfuse.report.load import Report
from transfuse.report.table import captioned_table
from transfuse.report.wording import NOTHING, percent_text


def extraction_table(report: Report) -> Table:
    """A line a role: blocks, the sensitivity they hold on average, their share of the entries, what the rank keeps.

    Args:
        report: one with blocks.

    Returns:
        A table that fits 80 columns.
    """
    blocks = report.transfer.blocks if report.transfer else []
    table = captioned_table("Means over the blocks. Inside by chance: their share of the matrix's entries.")
    table.add_column("Role")
    for name in ("Blocks", "Student", "Teacher", "Sensitivity inside", "By chance", "Kept by the rank"):
        table.add_column(name, justify="right", overflow="fold")
    for role in dict.fromkeys(block.role for block in blocks):
        group = [block for block in blocks if block.role == role]
        shapes = (group[0].student_shape, group[0].teacher_shape)
        table.add_row(
            Text(role, style="bold"),
            f"{len(group):,}",
            *(f"{n_rows}×{n_columns}" for n_rows, n_columns in shapes),
            _mean([b.score_share for b in group]),
            percent_text(fmean(b.area_share for b in group)),
            _mean([b.energy for b in group]),
        )
    return table


def _mean(shares: list[float | None]) -> str:
    known = [share for share in shares if share is not None]
    return percent_text(fmean(known)) if known else NOTHING
