"""Chat templates: conversations as text, and which characters of it an assistant says.

Which template: the run's `chat_template` (a built-in's name), else the registered model's (a built-in's name or Jinja
source), else the tokenizer's own, else the built-in `plain`.

Stock templates seldom carry `{% generation %}` markers, and without them transformers returns an all-zero mask. So the
spans come from rendering prefixes of the conversation: an answer begins where the prompt for it ends, and ends where
the conversation up to and with it ends.
"""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from trainer_core.data.formats import Message
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


def render(tokenizer: Any, messages: list[Message]) -> tuple[str, list[Span]]:
    """The conversation as text and the character spans that its assistant says, each with the stop token.

    Raises DataError where the template refuses the conversation or renders its beginning differently once more follows.
    """
    text = _apply(tokenizer, messages)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _apply(tokenizer, messages[:index], add_generation_prompt=True)
        answered = text if index == len(messages) - 1 else _apply(tokenizer, messages[: index + 1])
        if not (text.startswith(answered) and answered.startswith(prompt)):
            raise DataError(
                "template_not_prefix_stable",
                "The model's chat template renders earlier turns differently once later ones follow, "
                "so the tokens of the answers cannot be told apart.",
                remedy="Set chat_template='plain', or split conversations into rows with one answer each.",
            )
        # A template's line break after the stop token is never generated, so it is not learned either.
        spans.append((len(prompt), len(answered.rstrip("\n"))))
    return text, spans


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


def tokenize(tokenizer: Any, texts: Sequence[str], spans: Sequence[list[Span]]) -> list[tuple[list[int], list[int]]]:
    """Token ids and a 0/1 mask of the tokens that begin inside a span, for each text.

    Special tokens stand in the text already, so none are added: no second beginning-of-sequence token.
    """
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    masks = [_mask_spans(*pair) for pair in zip(encoded["offset_mapping"], spans, strict=True)]
    return list(zip(encoded["input_ids"], masks, strict=True))


def _mask_spans(offsets: list[Span], spans: list[Span]) -> list[int]:
    """A token counts where its first character lies inside a span.

    A token that straddles the border belongs to the prompt: at inference the prompt stands before the answer begins.
    """
    mask = [0] * len(offsets)
    token = 0
    for start, end in spans:
        while token < len(offsets) and offsets[token][0] < start:
            token += 1
        while token < len(offsets) and offsets[token][0] < end:
            mask[token] = 1
            token += 1
    return mask
