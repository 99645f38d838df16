"""Pieces of HTML that escape whatever text they are given."""

import html
from collections.abc import Iterable, Sequence

from dpfpl_server.report_text import DASH, printable

__all__ = ["details", "paragraph", "section", "table", "text"]


def text(value: object) -> str:
    """Text from outside, safe inside an element or a quoted attribute."""
    return html.escape(printable(value), quote=True)


def paragraph(sentences: Iterable[str], css_class: str = "") -> str:
    """A paragraph of plain sentences; empty if there are none."""
    content = " ".join(text(sentence) for sentence in sentences)
    attribute = f' class="{text(css_class)}"' if css_class else ""
    return f"<p{attribute}>{content}</p>" if content else ""


def section(title: str, *pieces: str) -> str:
    """A headed section of finished pieces of HTML."""
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(pieces) + "\n</section>"


def details(summary: str, *pieces: str) -> str:
    """Finished pieces of HTML, folded behind a line of plain text."""
    return f"<details>\n<summary>{text(summary)}</summary>\n" + "\n".join(pieces) + "\n</details>"


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], numeric: Iterable[int] = ()) -> str:
    """A table of plain text whose first column names the row.

    Args:
        caption: what it shows; stands above the region that scrolls where the table is too wide.
        head: one text a column.
        rows: one value a column.
        numeric: columns to align to the right.
    """
    right = frozenset(numeric)
    classes = [' class="number"' if column in right else "" for column in range(len(head))]
    top = "".join(f'<th scope="col"{css}>{text(name)}</th>' for name, css in zip(head, classes, strict=True))
    body = "\n".join(f"<tr>{_cells(row, classes)}</tr>" for row in rows)
    return (
        f'<p class="caption">{text(caption)}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{text(caption)}">\n'
        f'<table aria-label="{text(caption)}">\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cells(row: Sequence[object], classes: Sequence[str]) -> str:
    cells = []
    for column, (value, css) in enumerate(zip(row, classes, strict=True)):
        shown = '<abbr title="not available">' + DASH + "</abbr>" if value == DASH else text(value)
        cells.append(f"<td{css}>{shown}</td>" if column else f'<th scope="row"{css}>{shown}</th>')
    return "".join(cells)
