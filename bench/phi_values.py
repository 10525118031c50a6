"""Made-up identifiers for `bench.phi`, each with the check digits that real ones have; nobody's on purpose.

Names, templates and noise are written for this benchmark alone: nothing of them comes from the engine's lists.
"""

import random
import string
from collections.abc import Callable

GIVEN = (
    "Aaliyah Abdul Adaeze Agnieszka Akira Alejandra Alistair Amara Anselm Arjun Astrid Barnaby Beatriz Bjorn Blessing"
    " Bridget Caoimhe Carmela Cedric Chidi Consuelo Cormac"
    " Dagmar Darnell Delphine Desmond Dmitri Ebony Eileen Elif Emeka Esperanza Farid Fatima Fernanda Fiona Gareth"
    " Giovanni Greta Guadalupe Hakim Harriet Hideo Hortensia"
    " Ibrahim Ignacio Ingrid Jamal Jerome Joaquin Kamala Keisha Kerstin Kofi Lakshmi LaToya Leonid Lorraine Lucinda"
    " Magnus Marguerite Mehmet Mildred Minh Mustafa Nadia"
    " Ngozi Nikolai Noor Octavia Olumide Oswald Padma Percival Philippa Quentin Rajesh Ramona Rashid Reginald"
    " Rosalind Saoirse Shaniqua Siobhan Soren Sunita Svetlana"
    " Tadeusz Takeshi Tamika Thaddeus Trung Ursula Venkat Vladimir Wendell Winifred Xiomara Yasmin Yolanda Yusuf"
    " Zainab Zoltan James Robert Linda Susan Karen Daniel Nancy"
    " Kevin Brenda Laura Steven Deborah Gary Sharon Jeffrey Cynthia Ryan Kathleen Jacob Amy Eric Angela Jonathan"
    " Melissa Larry Rebecca Scott Stephanie Justin Carolyn"
).split()
SURNAMES = (
    "Abernathy Achebe Adeyemi Almquist Anand Arslan Ashworth Bagley Balogun Banerjee Bartholomew Batista Bianchi"
    " Birnbaum Blackwood Bouchard Braithwaite Calloway Castellanos"
    " Chakraborty Chaudhry Christensen Cisneros Crenshaw Dabrowski Delacroix Delgado Dimitrov Dombrowski Eberhardt"
    " Echeverria Eriksen Estrada Fairbanks Feldman Fitzgerald"
    " Fujimoto Galindo Gallagher Ghosh Gruber Gutierrez Haddad Halvorsen Hargreaves Hashemi Hendricks Hinojosa"
    " Holloway Ibarra Iyer Jablonski Jankowski Kapoor Kaczmarek"
    " Kessler Kowalczyk Kuznetsov Lachance Leblanc Lindqvist Lombardi MacGregor Maldonado Marchetti McAllister Mbeki"
    " Moreau Nakagawa Nguyen Nwosu O'Donnell O'Sullivan"
    " Obi Okafor Okonkwo Olsson Ortega Ostrowski Papadakis Patel Pemberton Petrov Pfeiffer Quintero Ramaswamy"
    " Rasmussen Rosenthal Salazar Santangelo Schumacher Shapiro"
    " Sorensen Stavros Sundaram Takahashi Thibodeaux Tran Underhill Vandenberg Vasquez Villanueva Wachowski Weatherby"
    " Whitfield Yamamoto Yilmaz Zamora Zielinski Johnson"
    " Brown Garcia Davis Wilson Martinez Anderson Thomas Taylor Moore Lee Walker Hall Allen Hernandez Wright Lopez"
    " Adams Baker Campbell Mitchell Roberts Evans Edwards"
).split()
AMBIGUOUS = (
    ("May", "Whitfield"),
    ("Will", "Kessler"),
    ("Rose", "Gallagher"),
    ("Grace", "Okafor"),
    ("Mark", "Holloway"),
    ("Hope", "Ashworth"),
    ("Art", "Feldman"),
    ("Bill", "Hendricks"),
)
STREETS = (
    "Maple Larkspur Old Quarry Tamarack Hawthorne Whispering Pines Juniper Lakeshore Mill Pond Elmwood Sycamore Cedar"
    " Hollow Briarwood Prospect Orchard Winding Creek Highland Foxglove"
).split()
KINDS = (
    "Street",
    "St",
    "Avenue",
    "Ave",
    "Road",
    "Rd",
    "Drive",
    "Lane",
    "Ln",
    "Boulevard",
    "Blvd",
    "Court",
    "Way",
    "Terrace",
    "Circle",
    "Place",
    "Parkway",
)
CITIES = (
    ("Duluth", "MN"),
    ("Boise", "ID"),
    ("Fresno", "CA"),
    ("Tulsa", "OK"),
    ("Wichita", "KS"),
    ("Toledo", "OH"),
    ("Spokane", "WA"),
    ("Laredo", "TX"),
    ("Buffalo", "NY"),
    ("Shreveport", "LA"),
    ("Knoxville", "TN"),
    ("Worcester", "MA"),
    ("Tallahassee", "FL"),
    ("Sioux Falls", "SD"),
    ("Cedar Rapids", "IA"),
    ("Little Rock", "AR"),
    ("Santa Rosa", "CA"),
    ("Grand Forks", "ND"),
    ("Bangor", "ME"),
    ("Yonkers", "NY"),
)
DOMAINS = (
    "mailbox.example",
    "post.test",
    "stjude-ward.local",
    "icu7.internal",
    "kliniken.de",
    "healthmail.org",
    "webpost.com",
    "radiology.lan",
    "campus.edu",
)
MONTHS = "January February March April May June July August September October November December".split()

Value = Callable[[random.Random], str]


def digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(count))


def letters(rng: random.Random, count: int, alphabet: str = string.ascii_uppercase) -> str:
    return "".join(rng.choice(alphabet) for _ in range(count))


def add_luhn(body: str, prefix: str = "") -> str:
    total = 0
    for index, character in enumerate(reversed(prefix + body)):
        number = int(character) * (2 if index % 2 == 0 else 1)
        total += number - 9 if number > 9 else number
    return body + str(-total % 10)


def make_name(rng: random.Random) -> str:
    given, surname = rng.choice(GIVEN), rng.choice(SURNAMES)
    return rng.choice((f"{given} {surname}", f"{given} {letters(rng, 1)}. {surname}", f"{given} {surname}"))


def make_date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1935, 2025)
    name = MONTHS[month - 1]
    ordinal = f"{day}{'th' if 10 < day < 20 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"
    return rng.choice(
        (
            f"{month:02}/{day:02}/{year}",
            f"{month}/{day}/{year % 100:02}",
            f"{year}-{month:02}-{day:02}",
            f"{name} {day}, {year}",
            f"{day} {name} {year}",
            f"{name[:3]} {day}, {year}",
            f"the {ordinal} of {name}",
            f"{name} {ordinal}",
            f"{day:02}.{month:02}.{year}",
            f"{day}-{name[:3]}-{year}",
            f"{year}-{month:02}-{day:02} {rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
        )
    )


def make_ssn(rng: random.Random) -> str:
    return f"{rng.choice([*range(1, 666), *range(667, 900)]):03}-{rng.randint(1, 99):02}-{rng.randint(1, 9999):04}"


def make_phone(rng: random.Random) -> str:
    area, office, line = rng.randint(201, 989), rng.randint(200, 999), digits(rng, 4)
    return rng.choice(
        (
            f"({area}) {office}-{line}",
            f"{area}-{office}-{line}",
            f"{area}.{office}.{line}",
            f"+1 {area} {office} {line}",
            f"1-{area}-{office}-{line}",
            f"+44 20 {digits(rng, 4)} {digits(rng, 4)}",
            f"+49 {rng.randint(30, 899)} {digits(rng, 7)}",
            f"{area}-{office}-{line} ext. {digits(rng, 3)}",
            f"+33 {rng.randint(1, 9)} {digits(rng, 2)} {digits(rng, 2)} {digits(rng, 2)} {digits(rng, 2)}",
        )
    )


def make_email(rng: random.Random) -> str:
    given, surname = rng.choice(GIVEN).lower(), rng.choice(SURNAMES).lower().replace("'", "")
    return f"{given}{rng.choice(('.', '_', ''))}{surname}{rng.choice(('', digits(rng, 2)))}@{rng.choice(DOMAINS)}"


def make_url(rng: random.Random) -> str:
    begin, domain = rng.choice(("https://", "http://", "www.")), rng.choice(("org", "net", "health", "local", "co.uk"))
    host, page = letters(rng, 7, string.ascii_lowercase), letters(rng, 4, string.ascii_lowercase)
    return f"{begin}{host}.{domain}/{page}?id={digits(rng, 4)}"


def make_ip(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return ":".join(f"{rng.randint(0x1000, 0xFFFF):x}" for _ in range(8))
    return ".".join(str(rng.randint(1, 254)) for _ in range(4))


def make_card(rng: random.Random) -> str:
    number = add_luhn(rng.choice("45") + digits(rng, 14))
    gap = rng.choice(("", " ", "-"))
    return gap.join(number[index : index + 4] for index in range(0, 16, 4))


def make_iban(rng: random.Random) -> str:
    body = digits(rng, 18)
    check = 98 - int(f"{body}131400") % 97  # D, E and two zeros
    text = f"DE{check:02}{body}"
    return text if rng.random() < 0.5 else " ".join(text[index : index + 4] for index in range(0, 22, 4))


def make_npi(rng: random.Random) -> str:
    return add_luhn(rng.choice("12") + digits(rng, 8), prefix="80840")


def make_dea(rng: random.Random) -> str:
    body = digits(rng, 6)
    total = int(body[0]) + int(body[2]) + int(body[4]) + 2 * (int(body[1]) + int(body[3]) + int(body[5]))
    return f"{rng.choice('ABFM')}{letters(rng, 1)}{body}{total % 10}"


def make_vin(rng: random.Random) -> str:
    table = dict(
        zip("ABCDEFGHJKLMNPRSTUVWXYZ0123456789", [*map(int, "12345678123457923456789"), *range(10)], strict=True)
    )
    text = [rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ0123456789") for _ in range(17)]
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    text[8] = "0123456789X"[sum(table[c] * w for c, w in zip(text, weights, strict=True)) % 11]
    return "".join(text)


def make_mbi(rng: random.Random) -> str:
    alphabet = "ACDEFGHJKMNPQRTUVWXY"
    one, two, three = (letters(rng, 1, alphabet) for _ in range(3))
    mixed = alphabet + string.digits
    text = f"{rng.randint(1, 9)}{one}{rng.choice(mixed)}{digits(rng, 1)}{two}{rng.choice(mixed)}{digits(rng, 1)}"
    text += f"{three}{letters(rng, 1, alphabet)}{digits(rng, 2)}"
    return text if rng.random() < 0.5 else f"{text[:4]}-{text[4:7]}-{text[7:]}"


def make_udi(rng: random.Random) -> str:
    body = digits(rng, 13)
    total = sum(int(digit) * (3 if index % 2 == 0 else 1) for index, digit in enumerate(body))
    return f"(01){body}{-total % 10}"


def make_code(rng: random.Random) -> str:
    return rng.choice(
        (
            digits(rng, 8),
            f"{letters(rng, 2)}{digits(rng, 6)}",
            f"{digits(rng, 3)}-{digits(rng, 5)}",
            f"{letters(rng, 1)}{digits(rng, 7)}",
        )
    )


def make_plate(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{letters(rng, 3)}-{digits(rng, 4)}",
            f"{digits(rng, 1)}{letters(rng, 3)}{digits(rng, 3)}",
            f"{letters(rng, 3)} {digits(rng, 4)}",
        )
    )


def make_street(rng: random.Random) -> str:
    return f"{rng.randint(2, 9899)} {rng.choice(('', '', 'N. ', 'West '))}{rng.choice(STREETS)} {rng.choice(KINDS)}"


def make_zip(rng: random.Random) -> str:
    return rng.choice((f"{rng.randint(501, 99950):05}", f"{rng.randint(501, 99950):05}-{digits(rng, 4)}"))


def make_age(rng: random.Random) -> str:
    return str(rng.randint(90, 109))


def make_city(rng: random.Random) -> str:
    return rng.choice(CITIES)[0]
