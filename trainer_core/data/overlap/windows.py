"""Hashes of all windows of a sequence at once: its n-grams of words, its shingles of characters."""

import functools

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; from the golden ratio
_INVERSE = pow(_BASE, -1, 2**64)


def hash_windows(values: Hashes, size: int) -> Hashes:
    """uint64 [values - size + 1]: polynomials over each window modulo 2 ** 64, from sums over the whole sequence."""
    if len(values) < size:
        return np.empty(0, np.uint64)
    powers, inverses = _list_powers((len(values) - 1).bit_length())
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return (sums[size:] - sums[:-size]) * inverses[: len(values) - size + 1]


def mix(hashes: Hashes) -> Hashes:
    """In place, so that every bit depends on all: the finalizer of MurmurHash3 (Appleby, public domain)."""
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xFF51AFD7ED558CCD)
    hashes ^= hashes >> np.uint64(33)
    hashes *= np.uint64(0xC4CEB9FE1A85EC53)
    hashes ^= hashes >> np.uint64(33)
    return hashes


@functools.cache
def _list_powers(num_bits: int) -> tuple[Hashes, Hashes]:
    """uint64 [2 ** num_bits]: of the base and of its inverse, from the power 0."""
    factors = np.array([[_BASE], [_INVERSE]], np.uint64).repeat(2**num_bits, axis=1)
    factors[:, 0] = 1
    powers = np.cumprod(factors, axis=1)
    return powers[0], powers[1]
