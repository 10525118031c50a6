"""Labelled sentences for `bench.phi`: easy ones, and hard ones with lower case, misread and spaced digits, broken
lines, invisible characters, words that are also names, and labels left out where the rest still tells."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from bench import phi_values as values

FILLERS = (
    "Started on metformin 500 mg twice daily after an HbA1c of 8.4%.",
    "Parkinson disease is stable on levodopa 25/100.",
    "Blood pressure was 128/76 with a pulse of 72.",
    "A Foley catheter was placed and removed after 2 days.",
    "She may continue ibuprofen 400 mg every 6-8 hours.",
    "CT abdomen without contrast showed no acute findings.",
    "Crohn disease was confirmed on biopsy.",
    "Sodium 138, potassium 4.1, creatinine 0.9 mg/dL.",
    "He will return in 2 weeks for suture removal.",
    "Pain is rated 3/10 at rest and 6/10 on walking.",
    "Graves disease was excluded; TSH 2.31 mIU/L.",
    "The rose-coloured rash faded within 48 hours.",
    "Apgar scores were 8 and 9.",
    "Take 1-2 tablets up to 4 times a day.",
    "About 1 in 10,000 people carry the mutation.",
    "LDL 131, HDL 44, triglycerides 190.",
    "Oxygen saturation 96% on 2 L.",
    "A Hodgkin lymphoma in 2009 was treated with ABVD.",
    "Ejection fraction 55-60% by echocardiography.",
    "We discussed hope, faith and coping at length.",
    "Warfarin 5 mg, INR goal 2.0-3.0.",
    "The art of listening was praised.",
)


@dataclass(frozen=True)
class Sample:
    text: str
    spans: list[tuple[int, int, str]]
    also: tuple[tuple[int, int], ...] = ()
    """Identifiers of the template itself: finding them is right, and not asked for."""


@dataclass(frozen=True)
class Kind:
    make: values.Value
    easy: tuple[str, ...]
    hard: tuple[str, ...]
    noise: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {
    "name": Kind(
        values.make_name,
        (
            "Patient: {}.",
            "Mr. {} was seen in clinic.",
            "{} was admitted overnight.",
            "Discussed with Dr. {} by pager.",
            "Attending: {}",
            "My name is {} and I have asthma.",
            "Name: {}\nReason: cough",
            "The daughter, {}, was at the bedside.",
            "Electronically signed by: {}",
            "{}, MD reviewed the films.",
        ),
        (
            "we saw {} again",
            "note for {} about the cough",
            "{} says the pain is worse",
            "I met with {}",
            "talked to {} on rounds",
            "{}'s wound is clean",
            "as {} told the night shift",
        ),
        ("lower", "upper", "ambiguous", "split", "given", "zero", "lower", "last_first"),
    ),
    "date": Kind(
        values.make_date,
        ("Seen on {}.", "DOB: {}", "Admitted {} with fever.", "Surgery was performed on {}."),
        ("follow up {} then", "since {} worse", "({})"),
        ("lower", "misread", "split", "zero", "plain"),
    ),
    "age": Kind(
        values.make_age,
        ("{}-year-old woman with a fall.", "Age: {}", "He is {} years old.", "{} yo man, frail."),
        ("pt is {} y/o", "a {} year\nold lady", "{}yo f with cough", "aged {} and living alone"),
        ("plain",),
    ),
    "ssn": Kind(
        values.make_ssn,
        ("SSN: {}", "Her social security number is {}.", "SS# {}"),
        ("id given as {}", "{} on the card", "ssn {}"),
        ("misread", "spaced", "split", "zero", "plain", "full_width"),
    ),
    "phone": Kind(
        values.make_phone,
        ("Phone: {}", "Call {} with results.", "Tel. {}", "Mobile: {}"),
        ("reach him {} evenings", "{} is best", "ring {}"),
        ("misread", "split", "zero", "plain", "full_width"),
    ),
    "fax": Kind(
        values.make_phone,
        ("Fax: {}", "Please fax to {}."),
        ("fax {} attn records", "F: {}"),
        ("misread", "zero", "plain", "full_width"),
    ),
    "email": Kind(
        values.make_email,
        ("Email: {}", "Write to {}.", "Contact {} for records."),
        ("mail {} pls", "({})", "{}"),
        ("upper", "zero", "spaced_at", "plain"),
    ),
    "url": Kind(
        values.make_url,
        ("See {} for the images.", "Portal: {}"),
        ("logged in at {} yesterday", "<{}>"),
        ("upper", "plain"),
    ),
    "ip": Kind(
        values.make_ip, ("IP address {}", "Logged in from {}."), ("host {} timed out", "({})"), ("plain", "full_width")
    ),
    "mrn": Kind(
        values.make_code,
        ("MRN: {}", "MRN {}", "Medical record number {}.", "Patient ID: {}"),
        ("mrn# {}", "chart no. {}", "med rec {}", "hospital number\n{}", "record #{}"),
        ("plain", "zero", "full_width"),
    ),
    "account": Kind(
        values.make_code,
        ("Account number: {}", "Acct # {}"),
        ("acct no {}", "account\n{}", "invoice no. {}"),
        ("plain", "zero"),
    ),
    "device": Kind(
        values.make_code,
        ("Serial number: {}", "Device ID: {}", "Pacemaker serial no. {}"),
        ("s/n {}", "sn: {}", "implant id {}"),
        ("plain", "zero"),
    ),
    "udi": Kind(
        values.make_udi,
        ("UDI {} scanned.", "Implant {}."),
        ("{}", "label {} read"),
        ("plain", "spaced_udi", "full_width"),
    ),
    "licence": Kind(
        values.make_code,
        ("License number: {}", "Driver's license {}."),
        ("lic# {}", "dl: {}", "certificate no {}"),
        ("plain", "zero"),
    ),
    "plate": Kind(
        values.make_plate, ("License plate: {}", "Plate number {}."), ("plate {}", "car tag no. {}"), ("plain",)
    ),
    "card": Kind(
        values.make_card,
        ("Credit card {}.", "Paid by Visa {}."),
        ("{} exp soon", "copay on {}"),
        ("misread", "split", "zero", "plain", "full_width"),
    ),
    "iban": Kind(
        values.make_iban, ("IBAN: {}", "Refund to {}."), ("{}", "transfer {} pending"), ("lower", "zero", "plain")
    ),
    "npi": Kind(
        values.make_npi, ("NPI: {}", "NPI {} on file."), ("prescriber {}", "({})"), ("zero", "plain", "full_width")
    ),
    "dea": Kind(values.make_dea, ("DEA: {}", "DEA number {}."), ("rx by {}", "({})"), ("lower", "zero", "plain")),
    "vin": Kind(
        values.make_vin, ("VIN: {}", "Vehicle {} was towed."), ("car {} hit a tree", "{}"), ("lower", "zero", "plain")
    ),
    "mbi": Kind(
        values.make_mbi, ("Medicare number: {}", "MBI {}."), ("({})", "card {} copied"), ("lower", "zero", "plain")
    ),
    "zip": Kind(
        values.make_zip,
        ("ZIP: {}", "Zip code {}.", "Duluth, MN {}"),
        ("boise id {}", "zip code is {}", "postal code\n{}"),
        ("plain", "zero"),
    ),
    "street": Kind(
        values.make_street,
        ("Lives at {}.", "Address: {}", "Home address {}, Apt 4."),
        ("moved to {} recently", "{}", "found at {} by ems"),
        ("lower", "upper", "split", "plain"),
    ),
    "city": Kind(
        values.make_city,
        ("Lives in {}.", "City: {}", "Address: 12 Elmwood Ave, {}, MN 55802"),
        ("she resides in {} now", "hometown: {}", "grew up in {}"),
        ("plain",),
    ),
}
NAMES = ("name",)


def make_samples(seed: int, count: int, *, hard: bool) -> dict[str, list[Sample]]:
    """So many of each class, the same for the same seed."""
    rng = random.Random(f"{seed}-{hard}")
    return {name: [_make_sample(rng, name, kind, hard=hard) for _ in range(count)] for name, kind in KINDS.items()}


def _make_sample(rng: random.Random, name: str, kind: Kind, *, hard: bool) -> Sample:
    value = kind.make(rng)
    template = rng.choice(kind.hard if hard else kind.easy)
    if hard:
        value = _NOISES[rng.choice(kind.noise)](rng, value)
    before = rng.choice(FILLERS) + rng.choice((" ", "\n")) if rng.random() < 0.7 else ""
    after = rng.choice((" ", "\n")) + rng.choice(FILLERS) if rng.random() < 0.7 else ""
    lead, tail = template.split("{}")
    start = len(before + lead)
    text = before + lead + value + tail + after
    also = tuple(match.span() for match in _OF_TEMPLATES.finditer(text))
    return Sample(text, [(start, start + len(value), name)], also)


_OF_TEMPLATES = re.compile(r"12 Elmwood Ave|\b55802\b|Duluth|boise|Apt 4")


def _misread(rng: random.Random, value: str) -> str:
    places = [index for index, character in enumerate(value) if character in "015"]
    if not places:
        return value
    place = rng.choice(places)
    return value[:place] + {"0": "O", "1": "l", "5": "S"}[value[place]] + value[place + 1 :]


def _split(rng: random.Random, value: str) -> str:
    places = [index for index, character in enumerate(value) if character in " -"]
    if not places:
        return value
    place = rng.choice(places)
    return value[: place + (value[place] == "-")] + "\n" + value[place + 1 :]


def _put_zero_width(rng: random.Random, value: str) -> str:
    place = rng.randrange(1, len(value))
    return value[:place] + rng.choice("\u200b\u00ad\u200e") + value[place:]


def _swap_name(value: str) -> str:
    given, _, surname = value.partition(" ")
    return f"{surname.split()[-1]}, {given}"


_NOISES: dict[str, Callable[[random.Random, str], str]] = {
    "plain": lambda _rng, value: value,
    "lower": lambda _rng, value: value.lower(),
    "upper": lambda _rng, value: value.upper(),
    "misread": _misread,
    "split": _split,
    "zero": _put_zero_width,
    "spaced": lambda _rng, value: " ".join(value),
    "spaced_at": lambda _rng, value: value.replace("@", " @ "),
    "spaced_udi": lambda _rng, value: f"{value[:4]} {value[4:]}",
    "full_width": lambda _rng, value: "".join(chr(ord(c) + 0xFEE0) if c.isdigit() else c for c in value),
    "ambiguous": lambda rng, _value: " ".join(rng.choice(values.AMBIGUOUS)),
    "given": lambda _rng, value: value.split()[0],
    "last_first": lambda _rng, value: _swap_name(value),
}
