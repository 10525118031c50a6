"""Numbers that prove themselves: check digits and strict grammars."""

import re

_VIN_VALUES = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", map(int, "12345678123457923456789"), strict=True))
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_LETTER = "[AC-HJKMNP-RT-Y]"
_MBI = re.compile(rf"[1-9]{_LETTER}(?:{_LETTER}|\d)\d{_LETTER}(?:{_LETTER}|\d)\d{_LETTER}{{2}}\d\d")


def is_luhn(digits: str) -> bool:
    """Cards and others: ISO/IEC 7812."""
    total = sum(map(int, digits[-1::-2]))
    return (total + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


def is_npi(digits: str) -> bool:
    """US National Provider Identifier: Luhn behind the prefix 80840."""
    return len(digits) == 10 and digits[0] in "12" and is_luhn("80840" + digits)


def is_card(digits: str) -> bool:
    return 12 <= len(digits) <= 19 and digits[0] in "123456" and len(set(digits)) > 1 and is_luhn(digits)


def is_dea(text: str) -> bool:
    """Number of the US Drug Enforcement Administration: two letters (or a letter and 9), seven digits."""
    digits = [int(digit) for digit in text[2:]]
    return (sum(digits[0:6:2]) + 2 * sum(digits[1:6:2])) % 10 == digits[6]


def is_vin(text: str) -> bool:
    """Vehicle identification number with the North American check digit: 49 CFR 565.15."""
    values = [int(c) if c.isdigit() else _VIN_VALUES.get(c, -1) for c in text.upper()]
    if len(values) != 17 or -1 in values:
        return False
    rest = sum(value * weight for value, weight in zip(values, _VIN_WEIGHTS, strict=True)) % 11
    return text[8].upper() == "0123456789X"[rest]


def is_gtin(digits: str) -> bool:
    """GTIN-14 of a device: GS1's check digit."""
    weighted = sum(int(digit) * (3, 1)[index % 2] for index, digit in enumerate(digits[:13]))
    return len(digits) == 14 and (weighted + int(digits[13])) % 10 == 0


def is_iban(text: str) -> bool:
    """ISO 13616: remainder 97."""
    text = text.upper()
    return 15 <= len(text) <= 34 and int("".join(str(int(c, 36)) for c in text[4:] + text[:4])) % 97 == 1


def is_mbi(text: str) -> bool:
    """Medicare Beneficiary Identifier: CMS's grammar, which leaves out S, L, O, I, B and Z."""
    return _MBI.fullmatch(text.upper()) is not None


def is_ssn(area: str, group: str, serial: str) -> bool:
    """US Social Security number, or ITIN, which begins with 9: never with zeros in one part, nor with 666."""
    return area not in ("000", "666") and group != "00" and serial != "0000"
