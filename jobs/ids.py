"""Ids: a prefix and 26 characters that sort by time (48 bits of milliseconds, 80 random bits, Crockford's base 32)."""

import secrets
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_id(prefix: str) -> str:
    """For example `job_01JD0Q3K7M8V6Y2C5W9X4ZT1RA`."""
    number = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
