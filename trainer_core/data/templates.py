"""Chat templates: conversations as text, and which characters of it an assistant says.

Which template: the run's `chat_template` (a built-in's name), else the registered model's (a built-in's name or Jinja
source), else the tokenizer's own, else the built-in `plain`.

Stock templates seldom carry `{% generation %}` markers, and without them transformers returns an all-zero mask. So the
spans come from rendering prefixes of the conversation: an answer begins where the prompt for it ends, and ends where
the conversation up to and with it ends.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError

from trainer_core.data.formats import Message, is_trained
from trainer_core.errors import ConfigurationError, DataError, ModelError

Span = tuple[int, int]

# Headers in plain text, so that any tokenizer can spell them; the tokenizer's own end-of-sequence token ends an answer.
BUILT_IN_TEMPLATES = {
    "plain": (
        "{{ bos }}"
        "{% for message in messages %}"
        "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
    ),
    "alpaca": (
        "{{ bos }}"
        "{% for message in messages %}"
        "{{ '### Response:\n' if message['role'] == 'assistant' else '' }}"
        "{{ '### Instruction:\n' if message['role'] == 'user' else '' }}"
        "{{ message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
}


@dataclasses.dataclass(frozen=True)
class RenderedText:
    """A conversation as the model reads it."""

    text: str
    spans: list[Span]
    """Characters that the assistant says and that are trained, in order."""


@dataclasses.dataclass(frozen=True)
class TokenizedText:
    tokens: npt.NDArray[np.int32]
    mask: npt.NDArray[np.uint8]
    """1 where a token is an answer's."""


def set_chat_template(tokenizer: Any, *, run_template: str | None, model_template: str | None) -> None:
    """Give the tokenizer the template that the run uses; it is saved with the adapter."""
    if run_template is not None and run_template not in BUILT_IN_TEMPLATES:
        known = ", ".join(sorted(BUILT_IN_TEMPLATES))
        raise ConfigurationError(
            "unknown_chat_template",
            f"There is no built-in chat template {run_template!r}.",
            remedy=f"Use one of {known}, or null for the model's own.",
        )
    chosen = run_template or model_template or tokenizer.chat_template or "plain"
    if chosen not in BUILT_IN_TEMPLATES:
        tokenizer.chat_template = chosen
        return
    if tokenizer.eos_token is None:
        raise ModelError(
            "tokenizer_without_eos",
            f"The tokenizer has no end-of-sequence token, with which the template {chosen!r} ends an answer.",
            remedy="Set eos_token in the model's tokenizer_config.json.",
        )
    # A template's text is tokenised without special tokens: one that the tokenizer would add must be rendered.
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    bos = "{{ bos_token }}" if adds_bos else ""
    tokenizer.chat_template = BUILT_IN_TEMPLATES[chosen].replace("{{ bos }}", bos)


def render(tokenizer: Any, messages: list[Message]) -> list[RenderedText]:
    """The conversation as text, with the spans that its assistant says, each with the stop token.

    It is one text, unless the template rewrites earlier turns once later ones follow, as reasoning models' do: then it
    is a text for each answer, in which only the last is trained. So every answer is learned after the very prompt that
    it would be given to. Answers of weight 0 are not trained, nor is one that nothing precedes.

    Raises DataError where the template refuses the conversation, or renders a prompt and its answer differently.
    """
    answers = [index for index, message in enumerate(messages) if index > 0 and is_trained(message)]
    text = _apply(tokenizer, messages)
    spans = []
    for index in answers:
        prompt = _apply(tokenizer, messages[:index], add_generation_prompt=True)
        answered = text if index == len(messages) - 1 else _apply(tokenizer, messages[: index + 1])
        if not (text.startswith(answered) and answered.startswith(prompt)):
            return [_render_last_answer(tokenizer, messages[: index + 1]) for index in answers]
        spans.append(_get_span(prompt, answered))
    return [RenderedText(text, spans)]


def _render_last_answer(tokenizer: Any, messages: list[Message]) -> RenderedText:
    prompt = _apply(tokenizer, messages[:-1], add_generation_prompt=True)
    text = _apply(tokenizer, messages)
    if not text.startswith(prompt):
        raise DataError(
            "template_not_prefix_stable",
            "The model's chat template renders a prompt differently once its answer follows, "
            "so the tokens of the answer cannot be told apart.",
            remedy="Set chat_template='plain'.",
        )
    return RenderedText(text, [_get_span(prompt, text)])


def _get_span(prompt: str, answered: str) -> Span:
    # A template's white space after the stop token is never generated, so it is not learned either.
    return len(prompt), len(answered.rstrip())


def render_question(tokenizer: Any, messages: list[Message]) -> str:
    """The conversation up to where the model's answer begins. Raises DataError."""
    return _apply(tokenizer, messages, add_generation_prompt=True)


def _apply(tokenizer: Any, messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise DataError(
            "template_refused_row",
            f"The chat template refuses the conversation: {error}",
            remedy="Check the order of the roles, or set chat_template='plain'.",
        ) from error
    return text


def tokenize(tokenizer: Any, texts: Sequence[RenderedText]) -> list[TokenizedText]:
    """Special tokens stand in the texts already, so none are added: no second beginning-of-sequence token."""
    encoded = tokenizer(
        [text.text for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    pairs = zip(encoded.encodings, texts, strict=True)
    return [TokenizedText(np.array(encoding.ids, np.int32), _mask_spans(encoding, text)) for encoding, text in pairs]


def _mask_spans(encoding: Any, text: RenderedText) -> npt.NDArray[np.uint8]:
    """A token counts where its first character lies inside a span.

    A token that straddles the border belongs to the prompt: at inference the prompt stands before the answer begins.
    """
    mask = np.zeros(len(encoding), dtype=np.uint8)
    for start, end in text.spans:
        mask[_find_token(encoding, start, len(text.text)) : _find_token(encoding, end, len(text.text))] = 1
    return mask


def _find_token(encoding: Any, character: int, num_characters: int) -> int:
    """The first token that begins at a character or behind it."""
    for place in range(character, num_characters):  # a tokenizer may leave out a character, such as a space
        token: int | None = encoding.char_to_token(place)
        if token is not None:
            return token if encoding.token_to_chars(token)[0] >= character else token + 1
    return len(encoding)


def list_stop_tokens(tokenizer: Any) -> set[int]:
    """Tokens that can end an answer: the end-of-sequence token, and all that no plain text can spell."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return special if tokenizer.eos_token_id is None else special | {tokenizer.eos_token_id}


def count_stopped_answers(texts: Sequence[TokenizedText], stop_tokens: set[int]) -> int:
    """How many of the answers end with a stop token that is trained."""
    count = 0
    for text in texts:
        ends = np.flatnonzero(np.diff(text.mask, append=np.uint8(0)) == 255)  # uint8: from 1 to 0
        count += int(np.isin(text.tokens[ends], list(stop_tokens)).sum())
    return count
