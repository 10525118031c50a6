"""Addresses of networks, and pictures and encoded texts inside a text."""

import base64
import ipaddress
import re
from collections.abc import Iterator, Set

from trainer_core.data.phi.finding import LABELLED, SHAPED, Finding
from trainer_core.data.phi.windows import Window

_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+\s?(?:@|\(at\)|\[at\])\s?\w[\w-]*(?:\s?\.\s?\w[\w-]*)*(?<![.-])")
_SPELLED_EMAIL = re.compile(
    r"(?i)[\w.+-]+\s?(?:\(at\)|\[at\]|\bat\b)\s?[\w-]+(?:\s?(?:\(dot\)|\[dot\]|\bdot\b)\s?[\w-]+)+"
)
_URL = re.compile(r"(?i)\b(?:https?|ftps?|sftp|file|wss?)\s?:\s?//[^\s<>\"')\]]+|\bwww\.[^\s<>\"')\]]+|\bhxxps?://\S+")
_DOMAINS = (
    r"com|org|net|edu|gov|io|info|biz|health|hospital|clinic|local|internal|lan|co\.uk|org\.uk|nhs\.uk|ac\.uk"
    r"|de|fr|ca|au|us|eu"
)
_DOMAIN = re.compile(
    rf"(?i)(?<![@\w.-])(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.){{1,4}}(?:{_DOMAINS})(?![\w-]|\.\w)(?:/[^\s<>\"')\]]*)?"
)
_DOMAIN_HINT = re.compile(rf"\.(?:{_DOMAINS})\b")
_IPV4 = re.compile(
    r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\s?\.\s?){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w]|\.\d)(?:[:/]\d{1,5})?"
)
_IPV6 = re.compile(r"(?i)(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{0,4}(?![\w:])")
_IPV6_HINT = re.compile(r":[0-9A-Fa-f]{0,4}:")
_DATA_URI = re.compile(r"data:(?:image|audio|video|application)/[\w.+-]+;base64,[A-Za-z0-9+/=\s]*")
_BLOB = re.compile(r"[A-Za-z0-9+/]{200,}={0,2}")
_HALF_BLOB = 100
"""Of every 200 characters in a row, a hundred from a multiple of a hundred on are a part."""
_MIN_ENCODED = 14
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
_RUNS = bytes(97 if byte in _BASE64 else 32 for byte in range(256))
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_ENCODED = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")


def find_network(text: str, lower: str, words: Set[str]) -> Iterator[Finding]:
    """`lower`: the text in lower case; `words`: its words."""
    if "@" in text or ("at" in words and ("at)" in lower or "at]" in lower)):
        yield from _build(_EMAIL, text, "email", "email.form")
    if "dot" in words and (" dot " in lower or "dot)" in lower or "dot]" in lower):
        yield from _build(_SPELLED_EMAIL, text, "email", "email.spelled")
    if "//" in text or "www" in words:
        yield from _build(_URL, text, "url", "url.form", trim=".,;:!?")
    if _DOMAIN_HINT.search(lower):
        yield from _build(_DOMAIN, text, "url", "url.domain", trim=".,;:!?", rank=SHAPED)
    if _IPV6_HINT.search(text):
        yield from _find_ipv6(text)
    yield from _find_blobs(text)


def find_ipv4(digits: str, window: Window) -> Iterator[Finding]:
    if window.num_digits >= 4:
        for match in _IPV4.finditer(digits, window.start, min(len(digits), window.end + 8)):
            yield Finding(*match.span(), "ip", "ip.v4", LABELLED)


def _build(
    pattern: re.Pattern[str], text: str, phi_class: str, rule: str, *, trim: str = "", rank: int = LABELLED
) -> Iterator[Finding]:
    for match in pattern.finditer(text):
        yield Finding(match.start(), match.start() + len(match[0].rstrip(trim)), phi_class, rule, rank)


def _find_ipv6(text: str) -> Iterator[Finding]:
    for match in _IPV6.finditer(text):
        try:
            address = ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        if address.packed[:15] != bytes(15):  # `::` and `::1` are nobody's
            yield Finding(*match.span(), "ip", "ip.v6", LABELLED)


def _find_blobs(text: str) -> Iterator[Finding]:
    if "base64," in text:
        yield from _build(_DATA_URI, text, "image", "image.data_uri")
    starts = range(0, len(text) - _HALF_BLOB + 1, _HALF_BLOB)
    if any(" " not in text[start : start + _HALF_BLOB] for start in starts):
        yield from _build(_BLOB, text, "image", "image.base64", rank=SHAPED)
    yield from _find_encoded(text)


def _find_encoded(text: str) -> Iterator[Finding]:
    """Base64 of a text, whatever that says. Runs are looked for in bytes: far faster than by a pattern."""
    runs = text.encode("latin-1", "replace").translate(_RUNS)
    long = b"a" * _MIN_ENCODED
    start = runs.find(long)
    while start >= 0:
        match = _ENCODED.match(text, start)
        assert match is not None
        if _holds_text(match[0]):
            yield Finding(*match.span(), "encoded", "encoded.base64", LABELLED)
        start = runs.find(long, match.end())


def _holds_text(run: str) -> bool:
    """Words of lower-case letters alone are words."""
    if run.isalpha() and run.islower():
        return False
    code = run.rstrip("=").encode().translate(_TO_STANDARD)
    try:
        decoded = base64.b64decode(code + b"=" * (-len(code) % 4)).decode()
    except ValueError:
        return False
    return re.sub(r"\s", " ", decoded).isprintable()
