"""RowReport: how a run's rows look to the model, with a sample that shows what is trained. Torch-free.

`prepare` writes it beside the tokens, from the very tokens and masks that the run then trains on.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from trainer_core.data.validation import find_length_limit

REPORT_FILE = "rows.json"
SAMPLE_ROWS, SAMPLE_TOKENS = 3, 2_000
MAX_REPORT_BYTES = 4 << 20

Text = Annotated[str, AfterValidator(lambda text: text.replace("\0", "\ufffd"))]
"""Without NUL, which PostgreSQL cannot store."""


class _Model(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)


class TokenRun(_Model):
    text: Text
    """Tokens that follow each other, decoded."""
    trained: bool
    """The loss counts them."""


class SampleRow(_Model):
    line: int
    """Of the training file, from 1; in Parquet the row's number."""
    tokens: int
    trained_tokens: int
    runs: list[TokenRun]
    """Of the first 2,000 tokens: special tokens and template included."""


class RowReport(_Model):
    """Counts are over the training and the validation file together."""

    max_seq_len: int
    truncation: str
    tokens: int = 0
    """After truncation."""
    trained_tokens: int = 0
    longest_row_tokens: int = 0
    """Before truncation."""
    lengths: dict[int, int] = {}
    """Rows by tokens before truncation: how many have this many or fewer, and more than the next smaller limit."""
    too_long_rows: int = 0
    """Longer than `max_seq_len`."""
    dropped_rows: int = 0
    truncated_rows: int = 0
    split_rows: int = 0
    train_rows: int = 0
    validation_rows: int = 0
    train_sequences: int = 0
    """What the training rows are packed into."""
    sample: list[SampleRow] = []
    """The first rows of the training file, as they are trained on."""


class RowLengths:
    """Tokens of rows as they come, before anything is cut."""

    def __init__(self, max_seq_len: int) -> None:
        self._max_seq_len = max_seq_len
        self.lengths: Counter[int] = Counter()
        self.too_long_rows = 0

    def add(self, num_tokens: int) -> None:
        self.lengths[find_length_limit(num_tokens)] += 1
        self.too_long_rows += num_tokens > self._max_seq_len


def build_sample_row(tokenizer: Any, line: int, tokens: Sequence[int], mask: Sequence[int]) -> SampleRow:
    """`mask`: 1 where the loss counts the token."""
    runs, start = [], 0
    for trained, group in groupby(mask[:SAMPLE_TOKENS]):
        end = start + len(list(group))
        text = tokenizer.decode(tokens[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        runs.append(TokenRun(text=text, trained=bool(trained)))
        start = end
    return SampleRow(line=line, tokens=len(tokens), trained_tokens=sum(mask), runs=runs)
