"""The begin and the end of the commands that train: a dry run, the summary, the first error and the exit status."""

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Protocol

from mirrorspark.storage import one_line, terminal_text, without_credentials
from mirrorspark.training.configuration import ConfigError, RunConfig
from mirrorspark.training.driver import TrainingFailedError
from mirrorspark.training.protocol import SUMMARY_FILE
from mirrorspark.training.results.report import make_way
from mirrorspark.training.run_records import run_state

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


def begin(config: RunConfig, summary: str | None) -> int | None:
    """Do the dry run, or remove the ``summary`` of an earlier command; return the exit status if that ends this one."""
    if not config.verbose:
        warnings.filterwarnings("ignore")
    if config.dry_run:  # A dry run has no summary.
        return dry_run(config)
    if summary:
        try:
            make_way(Path(summary))
        except OSError as error:
            return _print_error(
                f"summary {summary} cannot be written ({_reason(error)}); give another file", EXIT_USAGE
            )
    return None


def dry_run(config: RunConfig) -> int:
    """Print the resolved configuration and the preflight checks, and return the exit status."""
    try:
        require_data(config)
        from mirrorspark.training import job

        checks = job.dry_run(config)
    except ConfigError as error:
        return _print_error(one_line(error), EXIT_USAGE)
    except (Exception, KeyboardInterrupt) as error:
        if terminal_text.is_interrupt(error):
            return _print_error("interrupted", terminal_text.EXIT_INTERRUPTED)
        explain(error, config)
        return _print_error(one_line(error), EXIT_FAILED)
    # A configuration that is printed has been checked.
    show(config.as_yaml())
    show("\n".join(check.as_line() for check in checks))
    return EXIT_FINISHED if all(check.passed for check in checks) else EXIT_FAILED


def require_data(config: RunConfig) -> None:
    """Raise ``ConfigError`` where the source tables are missing; this takes less time than the imports of a run."""
    from mirrorspark.training.job import source_files

    source_files(config)


class CommandSummary(Protocol):
    """The summary of a run or of a sweep."""

    @property
    def status(self) -> str:
        """``finished``, ``failed`` or ``stopped``."""

    @property
    def error(self) -> str | None:
        """The first error."""

    def save(self, path: Path) -> None:
        """Write the JSON document."""


def end(summary: CommandSummary, file: str | None, status: int, folder: str | None = None) -> int:
    """Write the summary to ``file`` and into the run's folder, log the problem, and return the exit status."""
    for path in (file, folder and str(Path(folder) / SUMMARY_FILE)):
        try:
            if path and (path == file or _takes(Path(path).parent, summary)):
                summary.save(Path(path))
        except OSError as error:
            # A caller that waits for the file would wait for ever if the exit status were 0.
            status = status or EXIT_FAILED
            _print_error(f"summary {path} cannot be written ({_reason(error)}); status: {summary.status}", status)
    return _print_error(summary.error, status) if summary.error else status


def _takes(folder: Path, summary: CommandSummary) -> bool:
    """Return True if ``summary`` belongs into the run's folder.

    A driver that has lost the run to another one must not write there, and a finished run keeps its summary.
    """
    state = run_state.read_state(folder)
    if state is None:
        return True
    return state.is_of_this_process and (state.status != "finished" or summary.status == "finished")


def explain(error: BaseException, config: RunConfig) -> None:
    """Show the place where the user's own code failed, or with ``verbose`` the whole trace."""
    if isinstance(error, TrainingFailedError) and error.attempts[-1].first_error.is_in_code:
        print(without_credentials(error.attempts[-1].first_error.traceback), file=sys.stderr)
    elif config.verbose:
        print(without_credentials("".join(traceback.format_exception(error))), file=sys.stderr, end="")


def show(text: str) -> None:
    """Print ``text``; if the reader of the output has gone, do nothing."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # The reader, `| head` for example, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _print_error(message: str, status: int) -> int:
    print(terminal_text.for_stream(f"mirrorspark: {message}", sys.stderr), file=sys.stderr)
    return status
