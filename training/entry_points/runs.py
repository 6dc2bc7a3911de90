"""``mirrorspark runs``: lists, compares, diffs, resumes and replays the runs under an output folder."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mirrorspark.callbacks.mlflow import tracking_store
from mirrorspark.spark_session import add_master
from mirrorspark.storage import terminal_text
from mirrorspark.training.protocol import EVENTS_FILE, STATE_FILE
from mirrorspark.training.results.report import strict
from mirrorspark.training.run_records import run_history, run_state

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2

_SQL = "sql"
_TRAINED = "trained, seconds"
_CELL_CHARACTERS = 28
_MOST_OF_A_GROUP = 8
_MISSING = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 the resumed run failed, 2 bad usage."""
    try:
        flags = _build_parser().parse_args(arguments)
    except SystemExit as stop:  # --help leaves with 0, a wrong flag with 2
        return int(stop.code or 0)
    try:
        return int(flags.command(flags))
    except run_history.RunNotFoundError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # The reader, `| head` for example, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def _list(flags: argparse.Namespace) -> int:
    runs = run_history.history(Path(flags.output))
    if flags.json:
        _print_json([_document(run) for run in runs])
    elif runs:
        print("\n".join(list_table(runs)))
    else:
        print(f"no runs in {Path(flags.output) / 'runs'}; `mirrorspark train` begins one (another --output?)")
    return EXIT_DONE


def _compare(flags: argparse.Namespace) -> int:
    runs = [run_history.find(Path(flags.output), name) for name in flags.runs]
    if flags.json:
        changed = {name: list(values) for name, values in run_history.differences([run.config for run in runs]).items()}
        _print_json({"runs": [_document(run) for run in runs], "metrics": metric_rows(runs), "config": changed})
    else:
        print("\n".join(comparison(runs)))
    if flags.png is None:
        return EXIT_DONE
    return _draw(runs, Path(flags.png))


def _draw(runs: Sequence[run_history.RunRecord], png: Path) -> int:
    from mirrorspark.pages.figures import run_curves  # matplotlib takes longer than all the rest

    histories = {run.name: run.curves.columns() for run in runs if run.curves.epochs}
    if not histories:
        return _refuse("none of the runs has finished an epoch, so there are no curves to draw")
    best = {run.name: run.best_epoch for run in runs if run.name in histories and run.best_epoch is not None}
    figure = run_curves(histories, best_epochs=best)
    try:
        figure.savefig(png, format="png")
    except OSError as error:
        return _refuse(f"png {png} cannot be written ({error.strerror}); give another file")
    print(f"\ncurves: {png}", file=sys.stderr)
    return EXIT_DONE


def _diff(flags: argparse.Namespace) -> int:
    before, after = (run_history.find(Path(flags.output), name) for name in flags.runs)
    changed = run_history.differences([before.config, after.config])
    if flags.json:
        _print_json({name: list(values) for name, values in changed.items()})
    else:
        print("\n".join(config_diff(before.name, after.name, changed)))
    return EXIT_DONE


def _resume(flags: argparse.Namespace) -> int:
    run = run_history.find(Path(flags.output), flags.run)
    refusal = why_not_resumed(run)
    if refusal is not None:
        return _refuse(refusal)
    from mirrorspark.models import ModelSettingsError  # Imports take seconds, which would delay a refusal.
    from mirrorspark.training import run as command
    from mirrorspark.training.configuration import ConfigError, RunConfig

    # The run goes on in the folder's present place, independent of the former working directory.
    changes: dict[str, Any] = {"output": str(run.path.parents[1]), "resume": True, "dry_run": False}
    changes |= {name: getattr(flags, name) for name in ("tracking_uri", "master") if getattr(flags, name) is not None}
    try:
        config = RunConfig(**{**run.config, **changes})
    except (ConfigError, ModelSettingsError, TypeError, ValueError) as error:
        return _refuse(f"run {run.name} cannot go on with its {error}; this version may not be the one that began it")
    if config.identity != run.state.identity.partition("-")[0]:
        return _refuse(
            f"run {run.name} was begun by another version, whose settings mean something else in this one; use that "
            f"version, or begin anew: mirrorspark train --recipe {config.recipe}"
        )
    # Among several equal unfinished runs, the one touched last is resumed.
    os.utime(run.path / STATE_FILE)
    status = command.execute(config)
    folders = [path.parent for path in run.path.parent.glob(f"*/{STATE_FILE}")]
    taken = [
        path.name for path in folders if (state := run_state.read_state(path)) is not None and state.is_of_this_process
    ]
    if taken and run.name not in taken:
        # The same configuration on other rows is another run.
        print(f"mirrorspark: the data has changed since {run.name} began, so it was left as it is", file=sys.stderr)
    elif status != EXIT_DONE and flags.tracking_uri is None and "://" in str(config.tracking_uri or ""):
        print("mirrorspark: where the tracking URI had a password, give it anew as --tracking-uri", file=sys.stderr)
    return status


def _replay(flags: argparse.Namespace) -> int:
    from mirrorspark.callbacks.mlflow import report

    if (file := Path(flags.run)).is_file():
        state = run_state.read_state(file.parent) if file.name == EVENTS_FILE else None
    else:
        run = run_history.find(Path(flags.output), flags.run)
        file, state = run.path / EVENTS_FILE, run.state
    if state is None:
        return report(file, flags.tracking_uri)
    if run_state.watch_driver(file.parent, state) in ("alive", "unknown"):
        return _refuse(
            f"run {file.parent.name} is under way on {state.host}, and its driver sends MLflow the missing records"
        )
    return report(file, flags.tracking_uri, keeps_file=True)


def why_not_resumed(run: run_history.RunRecord) -> str | None:
    """Return the reason for which a run cannot be resumed from here, or None."""
    if run.state.status == "finished":
        return f"run {run.name} is finished; there is nothing left to resume"
    driver = run_state.watch_driver(run.path, run.state)
    if driver == "alive":
        return f"run {run.name} is under way (process {run.state.process} on {run.state.host}); wait for it, or stop it"
    if driver == "unknown":
        return (
            f"run {run.name} has its driver on {run.state.host}, which gives no signs of life that could be seen "
            f"from here; resume it there"
        )
    if not run.config.get("tables"):
        return (
            f"run {run.name} was started from Python, which has its dataset; call train(dataset, config) again there "
            f"with output '{run.path.parents[1]}'"
        )
    return None


def list_table(runs: Sequence[run_history.RunRecord | run_history.UnreadableRun]) -> list[str]:
    """Return the lines of ``list``."""
    header = ["run", "status", "recipe", "workers", "epochs", "best", "test", "trained", "MLflow run"]
    rows = [_list_row(run) for run in runs if isinstance(run, run_history.RunRecord)]
    lines = table([header, *rows], right={3, 4}) if rows else []
    unreadable = [run for run in runs if isinstance(run, run_history.UnreadableRun)]
    if unreadable:
        lines += ["", "not readable:"] if lines else ["not readable:"]
        lines += table([["", run.name, run.reason] for run in unreadable])
    return lines


def _list_row(run: run_history.RunRecord) -> list[str]:
    test = run.test_metric
    seconds = run.curves.seconds
    return [
        run.name,
        run.status,
        run.recipe,
        str(run.config.get("workers", _MISSING)),
        f"{max(run.curves.epochs, default=0)}/{run.config.get('epochs', '?')}",
        f"{run.monitor} {run.best:.4f} @{run.best_epoch}" if run.best is not None else _MISSING,
        f"{test[0]} {test[1]:.4f}" if test else _MISSING,
        _MISSING if seconds is None else duration(seconds),
        run.state.mlflow_run_id or _MISSING,
    ]


def comparison(runs: Sequence[run_history.RunRecord]) -> list[str]:
    """Return the lines of ``compare``: the runs with their letters, their metrics, and the settings that differ."""
    letters = [_letter(position) for position in range(len(runs))]
    lines = table([[letter, run.name, run.status] for letter, run in zip(letters, runs, strict=True)])
    numbers = set(range(1, len(runs) + 1))
    for title, rows in metric_rows(runs).items():
        cells = [[name, *(_number(name, value) for value in values)] for name, values in rows.items()]
        lines += ["", *table([[title, *letters], *cells], right=numbers)]
    changed = run_history.differences([run.config for run in runs])
    if not changed:
        return [*lines, "", "the settings are the same"]
    return [*lines, "", *table([["settings that differ", *letters], *_setting_rows(changed)])]


def metric_rows(runs: Sequence[run_history.RunRecord]) -> dict[str, dict[str, list[float | None]]]:
    """Return the rows of each part of the comparison: a value per run, None for a missing one."""
    about: list[dict[str, float | None]] = [
        {
            "epochs": max(run.curves.epochs, default=0),
            "best epoch": run.best_epoch,
            _TRAINED: run.curves.seconds,
            "attempts": run.curves.attempts,
            "examples/s": run.summary.get("examples_per_second"),
        }
        for run in runs
    ]
    at_best = [dict(run.curves.epochs.get(run.best_epoch or 0, {})) for run in runs]
    parts: Mapping[str, Sequence[Mapping[str, float | None]]] = {
        "run": about,
        "at the best epoch": at_best,
        **{f"exported model, {split}": [run.metrics(split) for run in runs] for split in ("validation", "test")},
    }
    rows = {title: _joined(of_runs) for title, of_runs in parts.items()}
    return {title: of for title, of in rows.items() if of}


def config_diff(before: str, after: str, changed: Mapping[str, tuple[Any, ...]]) -> list[str]:
    """Return the lines of ``diff``: each changed setting, then the query as a unified diff."""
    if not changed:
        return [f"{before} and {after} have the same settings"]
    settings = [[name, *map(_text, values)] for name, values in changed.items() if name != _SQL]
    lines = table([["setting", before, after], *settings]) if settings else []
    if _SQL in changed:
        old, new = (str("" if text == run_history.UNSET else text).splitlines() for text in changed[_SQL])
        lines += ["", *difflib.unified_diff(old, new, f"{before}/{_SQL}", f"{after}/{_SQL}", lineterm="")]
    return lines


def duration(seconds: float) -> str:
    """Return seconds in their two largest units: ``2h 05m``, ``1m 24s``, ``9.3s``."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60}h {minutes % 60:02}m"


def _joined(of_runs: Sequence[Mapping[str, float | None]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for values in of_runs for name in values)
    rows = {name: [values.get(name) for values in of_runs] for name in names}
    return {name: values for name, values in rows.items() if any(value is not None for value in values)}


def _document(run: run_history.RunRecord | run_history.UnreadableRun) -> dict[str, Any]:
    if isinstance(run, run_history.UnreadableRun):
        return {"run": run.name, "path": str(run.path), "status": "unreadable", "reason": run.reason}
    test = run.test_metric
    return {
        "run": run.name,
        "path": str(run.path),
        "status": run.state.status,
        "driver": run.driver,
        "recipe": run.recipe,
        "workers": run.config.get("workers"),
        "epochs": max(run.curves.epochs, default=0),
        "epochs_at_most": run.config.get("epochs"),
        "monitor": run.monitor,
        "best": run.best,
        "best_epoch": run.best_epoch,
        "test_metric": test[0] if test else None,
        "test": test[1] if test else None,
        "training_seconds": run.curves.seconds,
        "attempts": run.curves.attempts,
        "mlflow_run_id": run.state.mlflow_run_id,
        "error": run.summary.get("error"),
    }


def _letter(position: int) -> str:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return letters[position % 26] * (position // 26 + 1)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return _MISSING
    if isinstance(value, int) or name == "examples/s":
        return f"{value:,.0f}"
    return f"{value:,.1f}" if name == _TRAINED else f"{value:,.4f}"


def _setting_rows(changed: Mapping[str, tuple[Any, ...]]) -> list[list[str]]:
    """Return the rows of a narrow table; long values and large groups are left to ``diff``."""
    groups: dict[str, list[str]] = {}
    for name in changed:
        groups.setdefault(name.partition(".")[0], []).append(name)
    rows = []
    for group, names in groups.items():
        if group == _SQL or len(names) > _MOST_OF_A_GROUP:
            what = group if group == _SQL else f"{group}, {len(names)} settings"
            rows.append([what, *(["see diff"] * len(changed[names[0]]))])
        else:
            rows += [[name, *map(_cell, changed[name])] for name in names]
    return rows


def _cell(value: Any) -> str:
    text = _MISSING if value == run_history.UNSET else _text(value)
    return text if len(text) <= _CELL_CHARACTERS else f"…{text[1 - _CELL_CHARACTERS :]}"


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value, default=str)


def table(rows: Sequence[Sequence[str]], right: set[int] | None = None) -> list[str]:
    """Return the lines of a table, its columns two spaces apart; the columns in ``right`` are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in (right or ()) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _print_json(document: Any) -> None:
    print(json.dumps(strict(document), indent=2, allow_nan=False))


def _refuse(message: str) -> int:
    print(terminal_text.for_stream(f"mirrorspark: {message}", sys.stderr), file=sys.stderr)
    return EXIT_USAGE


def _build_parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument(
        "--output", default=tracking_store.DEFAULT_OUTPUT, help="output folder of the runs (default: %(default)s)"
    )
    as_json = argparse.ArgumentParser(add_help=False, parents=[shared])
    as_json.add_argument("--json", action="store_true", help="print a JSON document instead of a table")
    parser = argparse.ArgumentParser(
        prog="mirrorspark runs",
        allow_abbrev=False,
        description="The runs under an output folder.",
        epilog=f"RUN is the name of a run, the beginning of one that no other has, or '{run_history.LATEST}'.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, parents, text in (
        ("list", _list, [as_json], "all runs, newest first"),
        ("compare", _compare, [as_json], "metrics and settings of several runs side by side"),
        ("resume", _resume, [shared], "go on with a run that did not finish"),
        ("replay", _replay, [shared], "send MLflow the missing records of a run that has ended"),
        ("diff", _diff, [as_json], "the settings in which two runs differ"),
    ):
        sub = commands.add_parser(name, parents=parents, allow_abbrev=False, help=text, epilog=parser.epilog)
        sub.set_defaults(command=command)
        if name == "compare":
            sub.add_argument("runs", nargs="+", metavar="RUN")
            sub.add_argument("--png", metavar="FILE", help="draw the learning curves on top of each other")
        elif name == "diff":
            sub.add_argument("runs", nargs=2, metavar="RUN")
        elif name == "resume":
            sub.add_argument("run", metavar="RUN")
            sub.add_argument("--tracking-uri", metavar="URI", help="anew, where it had a password: none is saved")
            add_master(sub, "that of the run")
        elif name == "replay":
            sub.add_argument("run", metavar="RUN", help="a run, or the file that an MLflowLogger or a sweep has left")
            sub.add_argument("--tracking-uri", metavar="URI", help="the MLflow server or store, if it has moved")
    return parser


if __name__ == "__main__":
    sys.exit(main())
