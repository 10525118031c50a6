"""docs/training.md shows the matrix of what trains as the code has it."""

from pathlib import Path

from trainer_core.planning.matrix import render_table

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


def test_the_pages_matrix_is_the_codes() -> None:
    text = PAGE.read_text(encoding="utf-8")

    shown = text.split("<!-- matrix: python -m trainer_core.planning.matrix -->\n")[1].split("<!-- end of matrix -->")[
        0
    ]

    assert shown == render_table(), "run `python -m trainer_core.planning.matrix` and copy its table into the page"
