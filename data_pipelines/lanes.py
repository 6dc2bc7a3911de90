"""How many lanes the order of an epoch has at most; :mod:`data_pipelines.order` says what a lane is.

By itself, for those that only count with it, and do without compiled code.
"""

MAX_LANES = 64
