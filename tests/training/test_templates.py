"""What is trained: the answers with their stop token, whatever the chat template, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trainer_core.data.formats import Message
from trainer_core.data.templates import BUILT_IN_TEMPLATES, render, set_chat_template, tokenize
from trainer_core.errors import ConfigurationError, DataError, ModelError

CONVERSATION: list[Message] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is fever?"},
    {"role": "assistant", "content": "A raised temperature."},
    {"role": "user", "content": "From when on?"},
    {"role": "assistant", "content": "38 °C 🌡."},
]


@pytest.fixture
def tokenizer(demo_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(demo_model)


def get_supervised_text(tokenizer: Any, messages: list[Message]) -> str:
    text, spans = render(tokenizer, messages)
    [(tokens, mask)] = tokenize(tokenizer, [text], [spans])
    assert tokenizer.decode(tokens) == text
    text_of: str = tokenizer.decode([token for token, counted in zip(tokens, mask, strict=True) if counted])
    return text_of


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
    text, _ = render(tokenizer, CONVERSATION[1:3])
    assert text == f"### User:\nWhat is fever?\n\n### Assistant:\nA raised temperature.{tokenizer.eos_token}\n\n"


def test_a_prompt_at_inference_is_the_beginning_of_what_was_trained(tokenizer: Any) -> None:
    for name in (None, *BUILT_IN_TEMPLATES):
        set_chat_template(tokenizer, run_template=name, model_template=None)
        prompt = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
        assert render(tokenizer, CONVERSATION[:3])[0].startswith(prompt)


def test_no_second_beginning_of_sequence_token_is_added(tokenizer: Any) -> None:
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    text, spans = render(tokenizer, CONVERSATION)
    [(tokens, _)] = tokenize(tokenizer, [text], [spans])
    assert tokens.count(tokenizer.bos_token_id) == 1


def test_a_token_across_the_border_belongs_to_the_prompt(tokenizer: Any) -> None:
    text = "a temperature"
    [(tokens, mask)] = tokenize(tokenizer, [text], [[(4, len(text))]])
    assert len(tokens) > 1
    first_counted = mask.index(1) if 1 in mask else len(tokens)
    assert len(tokenizer.decode(tokens[:first_counted])) >= 4


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
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
