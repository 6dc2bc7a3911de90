"""The most lanes that the order of an epoch has; :mod:`data_pipelines.reading.order` explains lanes.

A module of its own, so that callers of the number alone do not load Numba.
"""

MAX_LANES = 64
