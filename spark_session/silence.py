"""Start of Spark without its log, unless the user has configured one."""

import logging
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyspark

from mirrorspark.spark_session.class_archive import Launch, launch_of
from mirrorspark.spark_session.versions import hide_query_errors

SILENT: Mapping[str, str] = {"spark.log.level": "OFF", "spark.ui.showConsoleProgress": "false"}


def user_settings() -> dict[str, str]:
    """Return the settings in Spark's configuration folder, which ours must not replace."""
    home = os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent
    folder = Path(os.environ.get("SPARK_CONF_DIR") or Path(home) / "conf")
    found = {"spark.log.level": ""} if (folder / "log4j2.properties").is_file() else {}
    file = folder / "spark-defaults.conf"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    # Java properties: blanks, "=" or ":" separate name and value.
    pairs = (re.split(r"\s*[=:]\s*|\s+", line.strip(), maxsplit=1) for line in lines)
    return found | {name: "".join(value) for name, *value in pairs}


def hide_interrupts() -> None:
    """Keep py4j's stacks of an interrupted call off the terminal; its errors are raised all the same."""
    logging.getLogger().addFilter(_is_not_of_a_call)


def _is_not_of_a_call(record: logging.LogRecord) -> bool:
    # The second is of PySpark's handler, which cancels the jobs by a call within the interrupted one.
    return record.msg not in ("KeyboardInterrupt while sending command.", "Exception while sending command.")


class quiet_launch:  # noqa: N801 - reads as a statement
    """A context that keeps the JVM's start-up lines ("Using Spark's default log4j profile ...") off the terminal.

    The JVM writes them before any log level applies, straight to its standard error. From then on PySpark
    does not print errors of queries, each a line of JSON with Java's stack, either: they are raised.
    """

    def __init__(self, target: int | None = None) -> None:
        """Take the file descriptor that gets the lines; by default they are lost."""
        self._target = subprocess.DEVNULL if target is None else target
        self._java: subprocess.Popen[bytes] | None = None
        self.archive: Path | None = None

    def __enter__(self) -> None:
        hide_query_errors()
        _gateway().Popen = self._start

    def _start(self, *arguments: Any, **options: Any) -> "subprocess.Popen[bytes]":
        # Only Java's: this process's own lines, and an error that ends it, may be written by another thread meanwhile.
        launch = launch_of(options["env"]) if "env" in options else Launch({})
        self.archive = launch.archive
        self._java = subprocess.Popen(*arguments, **options | launch.options | {"stderr": self._target})
        return self._java

    def __exit__(self, error: object, *_: object) -> None:
        from pyspark import SparkContext

        _gateway().Popen = subprocess.Popen
        # Ctrl-C while it starts: PySpark forgets it, and it would run for ever.
        if error is not None and self._java is not None and SparkContext._gateway is None:
            self._java.kill()
            self._java.wait()


def _gateway() -> Any:
    """Return PySpark's module that starts Java, which a client of Spark Connect lacks."""
    from pyspark import java_gateway

    return java_gateway
