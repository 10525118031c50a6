"""The texts of a row with the names of their places: every string and number that it holds, whatever its format."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

_WORD = re.compile(r"[A-Za-z_][A-Za-z_-]{0,39}\d{0,2}")
_CLASSES = {
    "name": "patient_name first_name last_name middle_name full_name given_name family_name maiden_name surname"
    " doctor_name physician_name provider_name",
    "mrn": "mrn patient_id patient_number medical_record_number record_number hospital_number nhs_number encounter_id",
    "ssn": "ssn social_security_number",
    "date": "dob date_of_birth birth_date birthdate admission_date discharge_date date_of_death",
    "phone": "phone phone_number telephone telephone_number mobile mobile_number cell_phone home_phone",
    "fax": "fax fax_number",
    "email": "email e_mail email_address",
    "street": "street street_address home_address",
    "zip": "zip zip_code zipcode postal_code postcode",
    "account": "account_number account_no",
    "health_plan": "member_id insurance_id policy_number beneficiary_id medicare_number mbi",
    "ip": "ip_address",
}
_CLASS_OF_KEY = {key: phi_class for phi_class, keys in _CLASSES.items() for key in keys.split()}
"""Keys whose whole value is an identifier: there the rules have no label to go by."""


class Pairs(list[tuple[str, object]]):
    """An object of JSON with every key as often as it stands there."""


class Text(NamedTuple):
    """`path` is such as `instruction`, or `messages[0].content`; `phi_class` what the key says that the text is."""

    path: str
    text: str
    phi_class: str | None = None


def iter_texts(record: Mapping[str, object] | Pairs) -> Iterator[Text]:
    """In the order in which they stand. A key that is no plain word is a text too, and no part of a path.

    What stands in a list or an object is what its key says, unless a key inside says something else.
    """
    stack: list[tuple[str, str | None, object]] = [("", None, record)]
    while stack:
        path, phi_class, value = stack.pop()
        if isinstance(value, str):
            yield Text(path, value, phi_class)
        elif isinstance(value, dict | Pairs):
            items = value if isinstance(value, Pairs) else value.items()
            stack += list(_iter_items(path and f"{path}.", phi_class, items))[::-1]
        elif isinstance(value, list):
            stack += [(f"{path}[{index}]", phi_class, inner) for index, inner in reversed(list(enumerate(value)))]
        elif isinstance(value, bytes):
            yield Text(path, value.decode(errors="replace"), phi_class)
        elif value is not None and not isinstance(value, bool):  # a number, or of Parquet such as a date
            yield Text(path, str(value), phi_class)


def is_plain_key(key: str) -> bool:
    """Such as `patient_id`: no text of its own."""
    return _WORD.fullmatch(key) is not None


def _iter_items(
    prefix: str, phi_class: str | None, items: Iterable[tuple[str, object]]
) -> Iterator[tuple[str, str | None, object]]:
    for index, (key, value) in enumerate(items):
        name = key
        if not is_plain_key(key):
            name = f"value[{index}]"
            yield f"{prefix}key[{index}]", None, key
        yield f"{prefix}{name}", _CLASS_OF_KEY.get(re.sub(r"[\s-]", "_", key.strip().lower()), phi_class), value
