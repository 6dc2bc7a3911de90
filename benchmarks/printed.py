"""Tables of Markdown on standard output, a row at a time while a measurement goes on."""

from collections.abc import Iterable


def print_titles(*names: str) -> None:
    """Print the header of a table."""
    print(flush=True)
    print_cells(*names)
    print(f"|{'---|' * len(names)}", flush=True)


def print_cells(*cells: object) -> None:
    """Print a row of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def table_lines(said: Iterable[str]) -> list[str]:
    """Return the tables of what was printed, line by line, an empty line before each; all else is progress."""
    lines: list[str] = []
    for line in said:
        if not line.startswith("|"):
            continue
        if line.startswith("|---") and len(lines) > 1:
            lines.insert(-1, "")
        lines.append(line.rstrip())
    return lines
