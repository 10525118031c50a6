"""Identifiers planted in what is uploaded are afterwards in no table and in no file of the service."""

import json
from pathlib import Path

import psycopg
from psycopg import sql

from cli.serve import Service
from tests.factories import wait_until, write_rows
from tests.plain_client import Client

NUMBER = "219-07-4431"
SURNAME = "Quillbergh"
PLANTED = (NUMBER, SURNAME)
ROWS = [
    {"instruction": f"Patient: Zorvan {SURNAME}, SSN {NUMBER}", "response": f"Mr. {SURNAME} should rest."},
    {"instruction": f"Mr.&nbsp;{SURNAME} again, SSN 219&#45;07-4431", "response": "Yes."},
]
BAD_LINES = {
    "no_json": f"Patient {SURNAME}, SSN {NUMBER}",
    "cut": json.dumps(ROWS[0])[:-3],
    "no_object": json.dumps([f"{SURNAME} {NUMBER}"]),
    "role": json.dumps({"messages": [{"role": f"{SURNAME} {NUMBER}", "content": "Q"}]}),
    "key": json.dumps({f"{SURNAME} {NUMBER}": "x"}),
    "doubled_key": f'{{"{SURNAME} {NUMBER}": 1, "{SURNAME} {NUMBER}": 2, "instruction": "Q", "response": "A"}}',
    "type": json.dumps({"instruction": [f"{SURNAME} {NUMBER}"], "response": f"{SURNAME} {NUMBER}"}),
    "weight": json.dumps({"messages": [{"role": "assistant", "content": "A", "weight": f"{SURNAME} {NUMBER}"}]}),
}


def list_hits(service: Service) -> list[str]:
    """Every table with a row, and every file of the home, that has a planted value as it was written."""
    home = Path(service.settings.home)
    assert service.settings.database_url is not None
    hits = [str(path.relative_to(home)) for path in home.rglob("*") if has_planted(path)]
    with psycopg.connect(service.settings.database_url.get_secret_value()) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        for (table,) in tables:
            rows = connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))).fetchall()
            hits += [table for (row,) in rows if any(is_in(word, row) for word in PLANTED)]
    return hits


def has_planted(path: Path) -> bool:
    """A file may go between two looks at it."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return any(word.encode() in content for word in PLANTED)


def is_in(word: str, row: str) -> bool:
    """Bytes are written in hexadecimal there."""
    return word in row or word.encode().hex() in row


def write_bad(folder: Path, name: str) -> Path:
    """A good row, and one that cannot be read."""
    path = write_rows(folder / f"{name}.jsonl", [{"instruction": "Q", "response": "A"}])
    with path.open("a", encoding="utf-8") as file:
        file.write(BAD_LINES[name] + "\n")
    return path


def test_of_rejected_and_replaced_rows_no_identifier_is_left_anywhere(
    service: Service, client: Client, other_tenant: Client, tmp_path: Path
) -> None:
    rejected = client.upload(write_rows(tmp_path / "rows.jsonl", ROWS), phi_policy="reject")
    replaced = client.upload(tmp_path / "rows.jsonl", phi_policy="replace")
    keyless = client.upload(tmp_path / "rows.jsonl", phi_policy="replace", patient_key="mrn")
    bad = [
        client.upload(write_bad(tmp_path, name), phi_policy=policy)
        for name in BAD_LINES
        for policy in ("replace", "report")
    ]

    states = {item["id"]: client.wait_for_dataset(item["id"])["status"] for item in (rejected, replaced, keyless, *bad)}
    for dataset_id in states:
        client.get(f"/datasets/{dataset_id}/report")
        for path in ("", "/report"):
            assert other_tenant.http.get(f"/datasets/{dataset_id}{path}").status_code == 404

    assert states.pop(replaced["id"]) == "ready"
    assert set(states.values()) == {"rejected"}
    assert wait_until(lambda: list_hits(service), lambda hits: not hits, seconds=90, every=0.5) == []
