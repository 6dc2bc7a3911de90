"""Kernels of vocabularies: hash tables from fingerprints of tokens, or from numbers, to the positions of the tokens."""

import numpy as np
import numpy.typing as npt
from numba import types

from mirrorspark.data_pipelines.features.kinds import FIRST_VOCABULARY_ID, OUT_OF_VOCABULARY_ID
from mirrorspark.data_pipelines.kernels import compile_kernel

_NO_POSITION = -1

_FINGERPRINTS = types.Array(types.uint64, 1, "C", readonly=True)
_INTEGERS = types.Array(types.int64, 1, "C", readonly=True)
_POSITIONS = types.Array(types.int32, 1, "C", readonly=True)


@compile_kernel(types.Tuple((types.uint64[::1], types.int32[::1], types.int32[::1]))(_FINGERPRINTS))
def build(
    fingerprints: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return an open-addressing table of ``fingerprints``, at most two thirds full, probed slot after slot."""
    capacity = 16
    while 2 * capacity < 3 * fingerprints.size:
        capacity *= 2
    mask = np.uint64(capacity - 1)
    keys = np.zeros(capacity, np.uint64)
    positions = np.full(capacity, _NO_POSITION, np.int32)
    colliding = np.empty(fingerprints.size, np.int32)
    collisions = 0
    for position in range(fingerprints.size):
        fingerprint = fingerprints[position]
        slot = fingerprint & mask
        while positions[slot] != _NO_POSITION and keys[slot] != fingerprint:
            slot = (slot + np.uint64(1)) & mask
        if positions[slot] == _NO_POSITION:
            keys[slot] = fingerprint
            positions[slot] = position
        else:
            colliding[collisions] = position
            collisions += 1
    return keys, positions, colliding[:collisions].copy()


@compile_kernel(types.int64[::1](_FINGERPRINTS, _FINGERPRINTS, _POSITIONS))
def find(
    fingerprints: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], positions: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Return the position of each fingerprint, or -1 if it is not in the table."""
    mask = np.uint64(keys.size - 1)
    found = np.empty(fingerprints.size, np.int64)
    for index in range(fingerprints.size):
        fingerprint = fingerprints[index]
        slot = fingerprint & mask
        while positions[slot] != _NO_POSITION and keys[slot] != fingerprint:
            slot = (slot + np.uint64(1)) & mask
        found[index] = positions[slot]
    return found


@compile_kernel(types.uint64(types.int64))
def _mix(number: np.int64) -> np.uint64:
    """Return a unique number for every number, whose low bits depend on all of its bits.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    mixed = np.uint64(number)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@compile_kernel(types.uint64[::1](_INTEGERS))
def mixed(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Return :func:`_mix` of each."""
    found = np.empty(numbers.size, np.uint64)
    for index in range(numbers.size):
        found[index] = _mix(numbers[index])
    return found


@compile_kernel(types.int64[::1](_INTEGERS, _FINGERPRINTS, _POSITIONS, _INTEGERS))
def ids_of_integers(
    numbers: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.int32],
    tokens: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the id of each number from a table of mixed numbers, whose position ``i`` means token ``tokens[i]``."""
    mask = np.uint64(keys.size - 1)
    ids = np.empty(numbers.size, np.int64)
    for index in range(numbers.size):
        key = _mix(numbers[index])
        slot = key & mask
        while positions[slot] != _NO_POSITION and keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        position = positions[slot]
        ids[index] = OUT_OF_VOCABULARY_ID if position == _NO_POSITION else tokens[position] + FIRST_VOCABULARY_ID
    return ids
