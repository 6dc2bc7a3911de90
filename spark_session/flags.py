"""The flag of commands for their session. Imports no PySpark: some commands run without it."""

import argparse


def add_master(parser: argparse._ActionsContainer, default: str = "that of Spark's settings") -> None:
    """Add the flag for a session.

    Args:
        parser: A parser, or a group of its flags.
        default: The session without the flag, in words.
    """
    words = f"Spark cluster or Connect server; by default {default}"
    parser.add_argument("--master", "--remote", metavar="URL", help=words)
