"""The periods and limits of supervision that depend on each other, in seconds."""

# Periods of a rank's heartbeat, and of its task's report on the process. The slower one determines the silence limit.
ALIVE_SECONDS = 2.0
SYSTEM_SECONDS = 5.0

# A rank or task that has missed three reports in a row counts as silent.
SILENT_SECONDS = 3 * SYSTEM_SECONDS

# The driver renews the leases of all tasks; a task that misses six renewals in a row ends its rank.
LEASE_RENEWAL_SECONDS = 5.0
LEASE_SECONDS = 6 * LEASE_RENEWAL_SECONDS

# After an abort, Spark's job is cancelled this much later: by then even ranks that did not get the command have ended
# with their lease, and their tasks have had time to report it.
ABORT_SECONDS = LEASE_SECONDS + 10.0

# After the first error of an attempt, the other ranks have this long to end by themselves and report why. The second
# value is the part of that time for unfinished publishing and sending.
GRACE_SECONDS = 5.0
EXIT_WORK_SECONDS = 4.0

# Period of the driver's checks. If a check is this late, or an event takes this long to handle, the driver itself has
# stood still and received nothing.
TICK_SECONDS = 1.0
STALL_SECONDS = 5 * TICK_SECONDS
