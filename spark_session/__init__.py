"""Spark's session behind one small interface: the only folder that uses its context, its JVM and task contexts.

``session_of`` returns a session's capabilities. A missing capability raises one error, with the remedy.
"""

from typing import TYPE_CHECKING

from mirrorspark.lazy import lazy_exports

if TYPE_CHECKING:
    from mirrorspark.spark_session import versions
    from mirrorspark.spark_session.ahead import SessionAhead
    from mirrorspark.spark_session.errors import (
        SESSION_ERRORS,
        SPARK_ERRORS,
        SparkStartError,
        first_line,
        lack_of_memory,
        lost_server,
        task_message,
    )
    from mirrorspark.spark_session.flags import add_master
    from mirrorspark.spark_session.interfaces import DriverAddressError
    from mirrorspark.spark_session.interpreter import is_local
    from mirrorspark.spark_session.kinds import session_of
    from mirrorspark.spark_session.server import (
        AnotherSessionError,
        reached,
        server_of,
        why_unreachable,
    )
    from mirrorspark.spark_session.session import (
        CASE_SENSITIVE,
        MissingCapabilityError,
        NotPlainParquetError,
        ParquetPlan,
        Session,
        TaskTotal,
    )
    from mirrorspark.spark_session.silence import user_settings
    from mirrorspark.spark_session.start import (
        MOST_LOCAL_SLOTS,
        java_major_version,
        local_slots,
        open_command_session,
        open_session,
        require_own_installation,
        starts_java,
    )
    from mirrorspark.spark_session.stopped import (
        StoppedSessionError,
        naming_lost_session,
        on_running_session,
        require_running,
    )
    from mirrorspark.spark_session.task import (
        BarrierTask,
        archive_folder,
        as_barrier_task,
        barrier_task,
        files_folder,
        is_in_task,
        partition_id,
        task_cores,
        task_property,
    )
    from mirrorspark.spark_session.time_zone import task_zone
else:
    __getattr__, __dir__ = lazy_exports(__name__)

__all__ = [
    "CASE_SENSITIVE",
    "MOST_LOCAL_SLOTS",
    "SESSION_ERRORS",
    "SPARK_ERRORS",
    "AnotherSessionError",
    "BarrierTask",
    "DriverAddressError",
    "MissingCapabilityError",
    "NotPlainParquetError",
    "ParquetPlan",
    "Session",
    "SessionAhead",
    "SparkStartError",
    "StoppedSessionError",
    "TaskTotal",
    "add_master",
    "archive_folder",
    "as_barrier_task",
    "barrier_task",
    "files_folder",
    "first_line",
    "is_in_task",
    "is_local",
    "java_major_version",
    "lack_of_memory",
    "local_slots",
    "lost_server",
    "naming_lost_session",
    "on_running_session",
    "open_command_session",
    "open_session",
    "partition_id",
    "reached",
    "require_own_installation",
    "require_running",
    "server_of",
    "session_of",
    "starts_java",
    "task_cores",
    "task_message",
    "task_property",
    "task_zone",
    "user_settings",
    "versions",
    "why_unreachable",
]
