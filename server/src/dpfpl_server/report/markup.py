"""Pieces of HTML that escape whatever text they are given."""

import html
from collections.abc import Iterable, Sequence

from dpfpl_common.ops.text import printable
from dpfpl_server.runs.words import DASH

__all__ = ["Html", "bullets", "details", "paragraph", "section", "table", "text"]


class Html(str):
    """A finished piece of HTML; any other text is escaped where it is put into a page."""

    __slots__ = ()


def text(value: object) -> str:
    """Text from outside, safe inside an element or a quoted attribute; a finished piece stays as it is."""
    return value if isinstance(value, Html) else html.escape(printable(value), quote=True)


def paragraph(sentences: Iterable[str], css_class: str = "", between: str = " ") -> Html:
    """A paragraph of sentences; empty if there are none."""
    content = between.join(text(sentence) for sentence in sentences if sentence)
    attribute = f' class="{text(css_class)}"' if css_class else ""
    return Html(f"<p{attribute}>{content}</p>" if content else "")


def bullets(items: Iterable[str]) -> Html:
    """A list of sentences."""
    return Html("<ul>\n" + "\n".join(f"<li>{text(item)}</li>" for item in items if item) + "\n</ul>")


def section(title: str, *pieces: str) -> Html:
    """A headed section of finished pieces of HTML."""
    return Html(f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(pieces) + "\n</section>")


def details(summary: str, *pieces: str) -> Html:
    """Finished pieces of HTML, folded behind a line of text."""
    return Html(f"<details>\n<summary>{text(summary)}</summary>\n" + "\n".join(pieces) + "\n</details>")


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    numeric: Iterable[int] = (),
    missing: str = "not available",
    label: str = "",
) -> Html:
    """A table whose first column names the row.

    Args:
        caption: what it shows; stands above the region that scrolls where the table is too wide.
        head: one text a column.
        rows: one value a column.
        numeric: columns to align to the right.
        missing: what the dash for a missing value means, for those who hear the page.
        label: the caption without markup, where the caption has some.
    """
    right = frozenset(numeric)
    classes = [' class="number"' if column in right else "" for column in range(len(head))]
    top = "".join(f'<th scope="col"{css}>{text(name)}</th>' for name, css in zip(head, classes, strict=True))
    body = "\n".join(f"<tr>{_cells(row, classes, missing)}</tr>" for row in rows)
    spoken = text(label or caption)
    return Html(
        f'<p class="caption">{text(caption)}</p>\n'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{spoken}">\n'
        f'<table aria-label="{spoken}">\n<thead><tr>{top}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _cells(row: Sequence[object], classes: Sequence[str], missing: str) -> str:
    cells = []
    for column, (value, css) in enumerate(zip(row, classes, strict=True)):
        shown = f'<abbr title="{text(missing)}">{DASH}</abbr>' if value == DASH else text(value)
        cells.append(f"<td{css}>{shown}</td>" if column else f'<th scope="row"{css}>{shown}</th>')
    return "".join(cells)
