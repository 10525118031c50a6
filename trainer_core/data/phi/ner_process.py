"""The process of `ner`: reads lists of texts, a line of JSON each, and answers where the model sees which label.

Run: python -m trainer_core.data.phi.ner_process FOLDER. On the CPU, from the folder alone, safetensors only.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoModelForTokenClassification, AutoTokenizer

from trainer_core.data.phi.ner import strip_prefix

MAX_TOKENS = 512
_OVERLAP_SHARE = 4
_BATCH = 8
Span = tuple[int, int, str]


class Token(NamedTuple):
    """What the window in which it stands farthest from the edge says of it."""

    start: int
    end: int
    label: str


class Classifier:
    """Raises OSError, ValueError, SafetensorError where the folder cannot be loaded."""

    def __init__(self, folder: Path) -> None:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **local)
        self._model, info = AutoModelForTokenClassification.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
        if missing := sorted({*info["missing_keys"], *map(str, info["mismatched_keys"])}):
            raise ValueError(f"the weights lack {missing[0]}")
        self._model.eval()
        positions = getattr(self._model.config, "max_position_embeddings", None) or MAX_TOKENS
        # RoBERTa's positions begin behind the padding's.
        self._max_tokens = min(MAX_TOKENS, positions - 2, self._tokenizer.model_max_length)

    def find(self, text: str) -> list[Span]:
        """Start, end and label of each entity, in order."""
        text = text.encode("utf-8", "replace").decode()  # half of a pair of surrogates: tokenisers fail at it
        return list(_join(text, self._classify(text))) if text.strip() else []

    @torch.inference_mode()
    def _classify(self, text: str) -> list[Token]:
        windows = self._tokenizer(
            text,
            truncation=True,
            max_length=self._max_tokens,
            stride=self._max_tokens // _OVERLAP_SHARE,
            padding=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        best: dict[tuple[int, int], tuple[int, int]] = {}
        names = ("input_ids", "attention_mask", "token_type_ids")
        for first in range(0, len(windows["input_ids"]), _BATCH):
            inputs = {name: windows[name][first : first + _BATCH] for name in names if name in windows}
            labels = self._model(**inputs).logits.argmax(-1)
            for window, row in enumerate(labels.tolist(), first):
                places = [(s, e) for s, e in windows["offset_mapping"][window].tolist()]
                real = [index for index, (start, end) in enumerate(places) if end > start]
                for index in real:
                    depth = min(index - real[0], real[-1] - index)
                    if depth >= best.get(places[index], (-1, 0))[0]:
                        best[places[index]] = (depth, row[index])
        names_of = self._model.config.id2label
        return [Token(*place, names_of[label]) for place, (_, label) in sorted(best.items())]


def _join(text: str, tokens: list[Token]) -> Iterator[Span]:
    """Tokens of one label side by side are one entity, and half a word is a whole one."""
    last: Span | None = None
    for token in tokens:
        label = strip_prefix(token.label)
        if label == "O":
            continue
        start, end = _widen(text, token.start, token.end)
        is_new_entity = token.label[:1] in "BSU" and token.label[1:2] == "-" and last and start >= last[1]
        if last and last[2] == label and not is_new_entity and not text[last[1] : start].strip("'- \t\n"):
            last = (last[0], max(end, last[1]), label)
            continue
        if last:
            yield last
        last = (start, end, label)
    if last:
        yield last


def _widen(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the space that some tokens begin with, and to the ends of the word."""
    while start < end and text[start].isspace():
        start += 1
    while start > 0 and text[start - 1].isalnum() and text[start : start + 1].isalnum():
        start -= 1
    while end < len(text) and text[end].isalnum() and text[end - 1].isalnum():
        end += 1
    return start, end


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        classifier = Classifier(Path(sys.argv[1]))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        answer({"error": " ".join(str(error).split())[:300]})
        return
    answer({"ready": True})
    for line in sys.stdin:
        answer({"spans": [classifier.find(text) for text in json.loads(line)]})


if __name__ == "__main__":
    main()
