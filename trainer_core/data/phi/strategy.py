"""Strategy: how the tokens of a replacement are made. What each means before the law: docs/clinical-safety.md."""

import enum


class Strategy(enum.StrEnum):
    """The two that a replacement knows."""

    SAFE_HARBOR = "safe_harbor"
    """Numbers by the order in which values first appear: not derived from them."""
    EXPERT_DETERMINATION = "expert_determination"
    """HMAC-SHA256 of the value under a secret key: the same in every file, derived from the value."""
