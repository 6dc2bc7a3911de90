"""Writes notebooks/databricks.py, the source file for a workspace, from the executed notebook."""

from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "databricks.ipynb"
SOURCE = NOTEBOOK.with_suffix(".py")


def source() -> str:
    """Return the cells in the form of Databricks' source files."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    parts = [cell.source if cell.cell_type == "code" else _magic(f"%md\n{cell.source}") for cell in cells]
    return "# Databricks notebook source\n" + "\n\n# COMMAND ----------\n\n".join(parts) + "\n"


def _magic(text: str) -> str:
    return "\n".join(f"# MAGIC {line}".rstrip() for line in text.splitlines())


if __name__ == "__main__":
    SOURCE.write_text(source(), encoding="utf-8")
