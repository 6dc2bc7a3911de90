"""Train on Spark and score with the result: ``python -m training.run --workers N``, installed as ``mirrorspark``."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from callbacks.credentials import without_credentials
from data_pipelines.features import FeatureSpecError
from models.settings import ModelSettingsError
from training.command_line import parse
from training.config import ConfigError, RunConfig
from training.summary import Summary
from training.supervisor import TrainingFailedError

EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 finished, 1 failed, 2 bad usage."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        _check_summary_file(config)
    except (ConfigError, FeatureSpecError, ModelSettingsError) as error:
        return _say(_one_line(error), EXIT_USAGE)
    if not config.verbose:
        warnings.filterwarnings("ignore")
    try:
        return _dry_run(config) if config.dry_run else _run(config)
    except ConfigError as error:
        return _say(_one_line(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from the last checkpoint", EXIT_FAILED)
    except Exception as error:
        _explain(error, config)
        if config.summary:
            Summary(status="failed", error=_one_line(error)).save(Path(config.summary))
        return _say(_one_line(error), EXIT_FAILED)


def _check_summary_file(config: RunConfig) -> None:
    # Before the work, not after it.
    if config.summary and Path(config.summary).is_dir():
        raise ConfigError(f"summary {config.summary} is a folder; give the name of a file")


def _run(config: RunConfig) -> int:
    from training import pipeline  # seconds of imports, for which --help and a wrong flag need not wait

    summary = pipeline.run(config)
    if config.summary:
        summary.save(Path(config.summary))
    summary.save(Path(summary.run_folder or config.output) / "summary.json")
    print(summary.as_text())
    return EXIT_FINISHED


def _dry_run(config: RunConfig) -> int:
    from training import pipeline

    print(config.as_yaml())
    checks = pipeline.dry_run(config)
    for check in checks:
        print(f"{'ok  ' if check.passed else 'FAIL'} {check.name:<14}{check.detail}")
    return EXIT_FINISHED if all(check.passed for check in checks) else EXIT_FAILED


def _explain(error: Exception, config: RunConfig) -> None:
    """Show where the user's own code failed, or the whole trace when asked for it."""
    if isinstance(error, TrainingFailedError) and error.attempts[-1].first_error.cause == "user":
        print(error.attempts[-1].first_error.traceback, file=sys.stderr)
    elif config.verbose:
        traceback.print_exc()


def _one_line(error: Exception) -> str:
    return without_credentials(" ".join(str(error).split())) or type(error).__name__


def _say(message: str, status: int) -> int:
    print(f"mirrorspark: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
