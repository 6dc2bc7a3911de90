"""How many lanes the order of an epoch has at most; :mod:`data_pipelines.order` says what a lane is.

A module of its own: who needs the number alone should not have to load Numba.
"""

MAX_LANES = 64
