"""What is trained: the answers with their stop token, whatever the chat template, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trainer_core.data.formats import Message
from trainer_core.data.templates import (
    BUILT_IN_TEMPLATES,
    RenderedText,
    count_stopped_answers,
    list_stop_tokens,
    render,
    set_chat_template,
    tokenize,
)
from trainer_core.errors import ConfigurationError, DataError, ModelError

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is fever?"},
    {"role": "assistant", "content": "A raised temperature."},
    {"role": "user", "content": "From when on?"},
    {"role": "assistant", "content": "38 °C 🌡."},
]


LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
# The system prompt goes into the first question; white space follows the stop token.
MISTRAL = (
    "{{ bos_token }}{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ system if loop.first else '' }}{{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }} {% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles differ') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Thoughts stand in the last turn only: earlier answers lose theirs.
THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% set content = message['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if message['role'] == 'assistant' and loop.last %}"
    "{% set thought = message['content'].split('</think>')[0].removeprefix('<think>').strip('\n') %}"
    "<think>\n{{ thought if '</think>' in message['content'] else '' }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = [
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
]


@pytest.fixture
def tokenizer(demo_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_model)


def list_supervised_texts(tokenizer: Any, messages: list[Message]) -> list[str]:
    """What is trained of each text that the conversation becomes."""
    rendered = render(tokenizer, messages)
    tokenized = tokenize(tokenizer, rendered)
    assert [tokenizer.decode(text.tokens) for text in tokenized] == [text.text for text in rendered]
    return [tokenizer.decode(text.tokens[text.mask.astype(bool)]) for text in tokenized]


def get_supervised_text(tokenizer: Any, messages: list[Message]) -> str:
    [text] = list_supervised_texts(tokenizer, messages)
    return text


def test_the_models_own_template_trains_the_answers_and_their_stop_tokens(tokenizer: Any) -> None:
    set_chat_template(tokenizer, run_template=None, model_template=None)
    assert "{% generation %}" not in tokenizer.chat_template
    assert get_supervised_text(tokenizer, CONVERSATION) == "A raised temperature.<|im_end|>38 °C 🌡.<|im_end|>"


@pytest.mark.parametrize("name", sorted(BUILT_IN_TEMPLATES))
def test_built_in_templates_end_answers_with_the_end_of_sequence_token(tokenizer: Any, name: str) -> None:
    set_chat_template(tokenizer, run_template=name, model_template=None)
    eos = tokenizer.eos_token
    assert get_supervised_text(tokenizer, CONVERSATION) == f"A raised temperature.{eos}38 °C 🌡.{eos}"


def test_a_model_without_a_template_takes_the_plain_one(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    set_chat_template(tokenizer, run_template=None, model_template=None)
    [rendered] = render(tokenizer, CONVERSATION[1:3])
    assert (
        rendered.text == f"### User:\nWhat is fever?\n\n### Assistant:\nA raised temperature.{tokenizer.eos_token}\n\n"
    )


def test_a_prompt_at_inference_is_the_beginning_of_what_was_trained(tokenizer: Any) -> None:
    for name in (None, *BUILT_IN_TEMPLATES):
        set_chat_template(tokenizer, run_template=name, model_template=None)
        prompt = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
        assert render(tokenizer, CONVERSATION[:3])[0].text.startswith(prompt)


def test_no_second_beginning_of_sequence_token_is_added(tokenizer: Any) -> None:
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    [text] = tokenize(tokenizer, render(tokenizer, CONVERSATION))
    assert text.tokens.tolist().count(tokenizer.bos_token_id) == 1


def test_a_token_across_the_border_belongs_to_the_prompt(tokenizer: Any) -> None:
    text = "a temperature"
    [tokenized] = tokenize(tokenizer, [RenderedText(text, [(4, len(text))])])
    assert len(tokenized.tokens) > 1
    uncounted = tokenized.tokens[tokenized.mask == 0]
    assert len(tokenizer.decode(uncounted)) >= 4
    assert tokenizer.decode(uncounted) + tokenizer.decode(tokenized.tokens[tokenized.mask == 1]) == text


@pytest.mark.parametrize(
    ("template", "stop", "before", "has_system"),
    [
        (LLAMA, "<|eot_id|>", "", True),
        (MISTRAL, "<|im_end|>", " ", True),
        (GEMMA, "<end_of_turn>", "", False),
        (MARKED, "<|im_end|>", "", True),
    ],
    ids=["Llama", "Mistral", "Gemma", "generation markers"],
)
def test_what_is_trained_is_the_answers_and_their_stop_tokens(
    tokenizer: Any, template: str, stop: str, before: str, has_system: bool
) -> None:
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "additional_special_tokens": SPECIAL_TOKENS})
    tokenizer.chat_template = template
    messages = CONVERSATION if has_system else CONVERSATION[1:]
    trained = f"{before}A raised temperature.{stop}{before}38 °C 🌡.{stop}"
    assert get_supervised_text(tokenizer, messages) == trained
    tokenized = tokenize(tokenizer, render(tokenizer, messages))
    assert count_stopped_answers(tokenized, list_stop_tokens(tokenizer)) == 2


def test_a_template_that_rewrites_earlier_turns_trains_each_answer_after_its_own_prompt(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    messages: list[Message] = [*CONVERSATION[:4], {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n38 °C."}]
    assert list_supervised_texts(tokenizer, messages) == [
        "<think>\n\n</think>\n\nA raised temperature.<|im_end|>",
        "<think>\nHm.\n</think>\n\n38 °C.<|im_end|>",
    ]
    for index, text in zip((2, 4), render(tokenizer, messages), strict=True):
        prompt = tokenizer.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
        assert text.text[: text.spans[0][0]] == prompt


def test_a_single_answer_needs_no_stable_earlier_turns(tokenizer: Any) -> None:
    tokenizer.chat_template = THINKING
    trained = get_supervised_text(tokenizer, CONVERSATION[:3])
    assert trained == "<think>\n\n</think>\n\nA raised temperature.<|im_end|>"


def test_an_answer_of_weight_zero_is_read_and_not_trained(tokenizer: Any) -> None:
    messages: list[Message] = [*CONVERSATION[:2], {**CONVERSATION[2], "weight": 0}, *CONVERSATION[3:]]
    assert get_supervised_text(tokenizer, messages) == "38 °C 🌡.<|im_end|>"
    assert render(tokenizer, messages)[0].text == render(tokenizer, CONVERSATION)[0].text


def test_an_answer_that_nothing_precedes_is_not_trained(tokenizer: Any) -> None:
    assert get_supervised_text(tokenizer, CONVERSATION[2:]) == "38 °C 🌡.<|im_end|>"


def test_an_answer_without_a_stop_token_is_not_counted_as_stopped(tokenizer: Any) -> None:
    tokenized = tokenize(tokenizer, [RenderedText("a b <|im_end|>", [(0, 3), (4, 14)]), RenderedText("a b", [(0, 3)])])
    assert count_stopped_answers(tokenized, list_stop_tokens(tokenizer)) == 1


def test_a_template_that_rewrites_the_prompt_itself_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(DataError) as caught:
        render(tokenizer, CONVERSATION)
    assert caught.value.code == "template_not_prefix_stable"


def test_a_conversation_that_the_template_refuses_is_the_datas_fault(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        render(tokenizer, CONVERSATION)


def test_an_unknown_built_in_is_refused_with_the_known_ones(tokenizer: Any) -> None:
    with pytest.raises(ConfigurationError, match="nonesuch") as caught:
        set_chat_template(tokenizer, run_template="nonesuch", model_template=None)
    assert "plain" in caught.value.remedy


def test_a_built_in_needs_a_stop_token(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ModelError) as caught:
        set_chat_template(tokenizer, run_template="plain", model_template=None)
    assert caught.value.code == "tokenizer_without_eos"
