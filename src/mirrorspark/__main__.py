"""The program ``mirrorspark``: one command for each thing that it does."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

from mirrorspark import extras
from mirrorspark.clear_error import ClearError
from mirrorspark.storage import likely_meant, terminal_text, without_credentials

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

_HELP = ("-h", "--help")


@dataclass(frozen=True)
class Command:
    """A command: the module whose ``main`` it calls, and a description of one line."""

    module: str
    summary: str


COMMANDS: Mapping[str, Command] = {
    "train": Command("mirrorspark.training.run", "convert a table, train on it, register the model and score with it"),
    "pipeline": Command(
        "mirrorspark.lifecycle.pipeline.command", "run a recipe's pipeline for a date, up to promotion"
    ),
    "score": Command("mirrorspark.scoring.run", "score files with a model"),
    "promotion": Command("mirrorspark.lifecycle.command", "validate a model, make it the champion, and go back"),
    "export": Command("mirrorspark.serving.export.command", "write a model for TensorFlow Serving or as ONNX"),
    "serve": Command("mirrorspark.lifecycle.experiments.live.command", "answer online over HTTP, with a model"),
    "lookup": Command("mirrorspark.serving.lookup", "answer by key over HTTP, from scores that are there"),
    "fleet": Command("mirrorspark.fleet.runs.command", "score files with a fleet, in runs that can be resumed"),
    "runs": Command("mirrorspark.training.entry_points.runs", "list, compare, diff and resume runs"),
    "doctor": Command("mirrorspark.training.entry_points.doctor", "check whether training can run here"),
    "sweep": Command("mirrorspark.training.sweep", "search for the best settings"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 where there is no such command.

    Only the chosen command's modules are imported.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["--help"]
    if name in _HELP:
        print(_page())
        return EXIT_DONE if arguments else EXIT_USAGE
    if name == "--version":
        from mirrorspark import __version__

        print(f"mirrorspark {__version__}")
        return EXIT_DONE
    if name not in COMMANDS:
        print(f"mirrorspark: {_refusal(name)} (see mirrorspark --help)", file=sys.stderr)
        return EXIT_USAGE
    try:
        status: int = import_module(COMMANDS[name].module).main(rest)
    except BaseException as error:
        if terminal_text.is_interrupt(error):
            print("mirrorspark: interrupted", file=sys.stderr)
            return terminal_text.EXIT_INTERRUPTED
        if isinstance(error, ImportError):
            error = extras.missing(error, f"mirrorspark {name}") or error
        if not isinstance(error, ClearError):
            raise
        line = without_credentials(f"mirrorspark: {error}")
        print(terminal_text.for_stream(line, sys.stderr), file=sys.stderr)
        return EXIT_FAILED
    return status


def run() -> None:
    """Run the command of the process's arguments, and exit with its status unless that is 0.

    An entry point's result is the status of the process only where pip's script calls it: a job of Databricks calls
    it in a process of its own, where an exception alone is a failure.
    """
    if status := main():
        sys.exit(status)


def _page() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: mirrorspark COMMAND [FLAGS]\n\n"
        "Train TensorFlow models on Spark, and get their scores back into a table.\n\n"
        f"commands:\n{commands}\n\n"
        "mirrorspark COMMAND --help lists the flags of a command, mirrorspark --version prints the version."
    )


def _refusal(name: str) -> str:
    if name.startswith("-"):
        return f"{name} is not a command; the flags of a run follow its command: mirrorspark train {name} …"
    remedy = likely_meant([name], COMMANDS, otherwise=f"use one of {list(COMMANDS)}")
    return f"command '{name}' is unknown; {remedy}"


if __name__ == "__main__":
    run()
