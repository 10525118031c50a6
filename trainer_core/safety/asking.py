"""Asking the model in training: the likeliest answer to each probe, with the adapter and without it.

No random number is drawn and nothing of the model changes, so that training goes on as if nothing had been asked.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import GenerationConfig

from trainer_core.data.templates import list_stop_tokens, render_question
from trainer_core.errors import DataError, TrainerError
from trainer_core.model import set_evaluation_mode
from trainer_core.safety.probes import Probe
from trainer_core.training_state import kept_random_state

BATCH_SIZE, SHARDED_BATCH_SIZE = 16, 64
"""Answers at once on each rank. With ZeRO-3 a word costs gathering all weights, whatever the batch's size."""
MIN_ROOM = 16
"""A question after which the model's context has less room, in tokens, is not asked."""
MAX_TOKENS_OF_AN_ANSWER = 1024
"""An answer that a smaller limit cut may have been about to end; one that is longer has no end."""
_TELL_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Answer:
    text: str
    has_end: bool
    """The model ended it by itself, or was cut so early that it may have."""
    is_cut: bool


@dataclasses.dataclass(frozen=True)
class Asked:
    """What one rank knows of a round, or of its share: `problem` is why it has no answers."""

    answers: dict[str, Answer] = dataclasses.field(default_factory=dict)
    base_answers: dict[str, Answer] = dataclasses.field(default_factory=dict)
    problem: str | None = None


class Asker:
    """One rank's part; every rank makes the same calls."""

    def __init__(  # noqa: PLR0913  by keyword
        self,
        *,
        accelerator: Accelerator,
        model: Any,
        adapter: PeftModel,
        tokenizer: Any,
        max_new_tokens: int,
        is_sharded: bool,
        use_autocast: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._accelerator = accelerator
        self._model, self._adapter, self._tokenizer = model, adapter, tokenizer
        self._max_new_tokens = max_new_tokens
        self._is_sharded, self._use_autocast = is_sharded, use_autocast
        self._tell, self._told = tell, time.perf_counter()
        self.batch_size = SHARDED_BATCH_SIZE if is_sharded else BATCH_SIZE
        self._stop_tokens = sorted(list_stop_tokens(tokenizer))
        base: Any = adapter.get_base_model()
        self._context: int | None = getattr(base.config.get_text_config(), "max_position_embeddings", None)

    def encode(self, probes: Iterable[Probe]) -> tuple[dict[str, list[int]], dict[str, str]]:
        """Prompts by probe, the shortest first; and of probes that this model cannot be asked, why."""
        prompts: dict[str, list[int]] = {}
        refused: dict[str, str] = {}
        for probe in probes:
            messages: list[Any] = [message.model_dump() for message in probe.messages]
            try:
                text = render_question(self._tokenizer, messages)
            except DataError as error:
                refused[probe.id] = error.message
                continue
            prompt: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if self._context is not None and len(prompt) > self._context - MIN_ROOM:
                refused[probe.id] = f"{len(prompt)} tokens, and the model reads {self._context}"
            else:
                prompts[probe.id] = prompt
        return dict(sorted(prompts.items(), key=lambda item: len(item[1]))), refused

    def ask(self, prompts: Mapping[str, list[int]], base_prompts: Mapping[str, list[int]]) -> Asked:
        """All answers, on every rank. An error of any rank is the `problem` of all.

        Where ranks need each other for each word (ZeRO-3), the error itself is raised: the others cannot be told.
        """
        share = Asked()
        set_evaluation_mode(self._model)
        device = self._accelerator.device
        autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._use_autocast)
        try:
            with torch.no_grad(), kept_random_state(device), autocast:
                answers = self._answer_share(prompts)
                with self._adapter.disable_adapter():
                    base_answers = self._answer_share(base_prompts)
            share = Asked(answers, base_answers)
        except Exception as error:  # of any kind: a round that failed must not end the training, nor pass for safe
            if self._is_sharded and self._accelerator.num_processes > 1:
                raise
            share = Asked(problem=describe_error(error))
        return _join(gather_object([share]))

    def _answer_share(self, prompts: Mapping[str, list[int]]) -> dict[str, Answer]:
        """This rank's every n-th. Every rank runs as many batches, as ZeRO-3 needs."""
        ranks, rank = self._accelerator.num_processes, self._accelerator.process_index
        every = list(prompts.items())
        mine = every[rank::ranks]
        found: dict[str, Answer] = {}
        for start in range(0, -(-len(every) // ranks), self.batch_size):
            batch = mine[start : start + self.batch_size]
            asked = batch or every[:1]  # The others wait for this rank's part of the weights.
            answers = self._generate([prompt for _, prompt in asked])
            found |= {probe_id: answer for (probe_id, _), answer in zip(batch, answers, strict=False)}
            if time.perf_counter() - self._told > _TELL_SECONDS:
                self._told = time.perf_counter()
                self._tell(f"{len(found) * ranks} of {len(every)} safety probes are answered")
        return found

    def _generate(self, prompts: list[list[int]]) -> list[Answer]:
        length = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id
        pad = self._stop_tokens[0] if pad is None else pad
        tokens = torch.tensor([[pad] * (length - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        limit = self._max_new_tokens if self._context is None else min(self._max_new_tokens, self._context - length)
        device = self._accelerator.device
        generate: Any = self._adapter.generate
        config: Any = GenerationConfig
        generated = generate(
            input_ids=tokens.to(device),
            attention_mask=mask.to(device),
            generation_config=config(
                # What is not said here the model's own generation_config says.
                do_sample=False,
                num_beams=1,
                use_cache=True,
                max_new_tokens=limit,
                eos_token_id=self._stop_tokens,
                pad_token_id=pad,
            ),
            synced_gpus=self._is_sharded,
        )
        return [self._read(row, limit) for row in generated[:, length:].tolist()]

    def _read(self, tokens: list[int], limit: int) -> Answer:
        end = next((place for place, token in enumerate(tokens) if token in self._stop_tokens), None)
        text: str = self._tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Answer(text.strip(), end is not None or limit < MAX_TOKENS_OF_AN_ANSWER, end is None)


def describe_error(error: BaseException) -> str:
    if isinstance(error, TrainerError):
        return f"{error.code}: {error.message} {error.remedy}".strip()
    return f"{type(error).__name__}: {error}"


def _join(shares: Iterable[Asked]) -> Asked:
    whole = Asked()
    for share in shares:
        if share.problem is not None:
            return Asked(problem=share.problem)
        whole = Asked(whole.answers | share.answers, whole.base_answers | share.base_answers)
    return whole
