"""Files of every accepted kind become ready datasets, whatever they are called; damaged ones are rejected."""

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet

from tests.plain_client import Client

ROWS = [{"instruction": f"Question {index}", "response": "yes"} for index in range(40)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"instruction,response\n" + b"".join(b"Question %d,yes\n" % index for index in range(40))


def as_parquet() -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue()


def upload(client: Client, content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """The dataset and its report."""
    response = client.http.post("/datasets", files={"file": ("rows.bin", content)})
    assert response.status_code == 201, response.text
    dataset = client.wait_for_dataset(response.json()["id"])
    return dataset, client.get(f"/datasets/{dataset['id']}/report")


@pytest.mark.parametrize(
    "build",
    [lambda: gzip.compress(JSONL), lambda: zstd.compress(JSONL), lambda: CSV, lambda: gzip.compress(CSV), as_parquet],
    ids=["gzip", "zstd", "CSV", "CSV in gzip", "Parquet"],
)
def test_every_kind_of_file_is_ready_with_its_rows_counted(client: Client, build: Callable[[], bytes]) -> None:
    dataset, report = upload(client, build())

    assert dataset["status"] == "ready"
    assert (report["rows"], report["valid_rows"], report["statistics"]["response_characters"]) == (40, 40, 120)


@pytest.mark.parametrize(
    "build",
    [lambda: gzip.compress(JSONL)[:-9], lambda: zstd.compress(JSONL)[:-9], lambda: as_parquet()[:-9]],
    ids=["gzip", "zstd", "Parquet"],
)
def test_a_damaged_file_is_rejected_with_the_reason(client: Client, build: Callable[[], bytes]) -> None:
    dataset, report = upload(client, build())

    assert dataset["status"] == "rejected"
    assert [(finding["line"], finding["code"]) for finding in report["findings"]] == [(0, "file_damaged")]


def test_a_row_of_a_table_is_rejected_by_its_line(client: Client) -> None:
    dataset, report = upload(client, CSV + b"no answer,\n")

    assert dataset["status"] == "rejected"
    assert [(finding["line"], finding["field"]) for finding in report["findings"]] == [(42, "response")]
