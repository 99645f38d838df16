"""Text from outside (file names, class names, answers, other programs' messages) made harmless where it is shown."""

from collections.abc import Callable

__all__ = ["first_line", "harmless_cell", "print_version", "printable", "printable_lines"]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet would run a cell that starts with one of these, the last four being their full-width forms."""


def printable(value: object) -> str:
    """One line without control, escape and direction characters, which could disturb a terminal or a page."""
    return "".join(char if char.isprintable() else "\ufffd" for char in str(value))


def printable_lines(text: str) -> str:
    """The same for a text of several lines, whose line ends and tabs stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def first_line(error: Exception, most: int = 200) -> str:
    """What another library's error says, in one line of at most so many characters; its type where it says nothing."""
    said = str(error).strip() or type(error).__name__
    return printable(said.splitlines()[0][:most])


def harmless_cell(text: str) -> str:
    """A cell of a table that a spreadsheet takes for text and a terminal for one line.

    What would begin a formula gets an apostrophe before it; control characters are written out, like ``\\x1b``. Bytes
    of a file name that are not UTF-8 stay.
    """
    shown = "".join(
        char if char.isprintable() or "\udc80" <= char <= "\udcff" else char.encode("unicode_escape").decode()
        for char in text
    )
    return f"'{shown}" if text.lstrip(" ").startswith(FORMULA_STARTS) else shown


def print_version(distribution: str) -> Callable[[bool], None]:
    """The callback of ``--version``: prints a distribution's version and ends the program, where the flag is given."""

    def show(wanted: bool) -> None:
        if wanted:
            from importlib.metadata import version

            print(f"{distribution} {version(distribution)}")
            raise SystemExit(0)

    return show
