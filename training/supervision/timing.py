"""The periods and limits of supervision, in seconds: each stands here because another one depends on it."""

# A rank says that it is alive; its task says how its process is. The slower of the two decides what silence is.
ALIVE_SECONDS = 2.0
SYSTEM_SECONDS = 5.0

# Who has missed three words in a row has fallen silent.
SILENT_SECONDS = 3 * SYSTEM_SECONDS

# The driver says that it is alive; a task that misses six such words in a row ends its rank.
LEASE_RENEWAL_SECONDS = 5.0
LEASE_SECONDS = 6 * LEASE_RENEWAL_SECONDS

# Ranks that were told to abort, and may not hear it, have ended by themselves when their lease is over, and their tasks
# have had time to say so; then Spark's job is cancelled.
ABORT_SECONDS = LEASE_SECONDS + 10.0

# After the first error of an attempt, the other ranks have this long to end by themselves and say why. Of that, what
# they have still to publish or to send gets so much.
GRACE_SECONDS = 5.0
EXIT_WORK_SECONDS = 4.0

# The driver looks after the ranks. When it comes this late, or an event takes this long to handle, it has itself stood
# still and heard nobody.
TICK_SECONDS = 1.0
STALL_SECONDS = 5 * TICK_SECONDS
