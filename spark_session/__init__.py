"""Spark's session behind one small interface: the only folder that knows a session's context, JVM, jobs and tasks.

:func:`spark_session.kinds.session_of` returns what a session can do beside its tables; :mod:`spark_session.task` is the
view of a task. A session that lacks something raises one error, which says what is missing and what to use instead.
"""
