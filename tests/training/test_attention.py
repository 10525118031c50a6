"""Which models attend row by row, and that it is the attention they have."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

from tests.training.test_loss import CPU, draw_row
from trainer_core.attention import attend_in_rows, has_row_attention
from trainer_core.data.batches import build_batch
from trainer_core.errors import ConfigurationError
from trainer_core.head import Question, asking
from trainer_core.loss import choose_layout, compute_sequence_nll

SIZES = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def build_model(kind: str, **changes: Any) -> Any:
    """Tiny, with random weights."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | changes)
    return getattr(transformers, f"{kind}ForCausalLM")(config).requires_grad_(False).eval()


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [[9], [1, 1, 1], [1, 6, 2]])
def test_each_row_attends_to_itself_alone(key_heads: int, lengths: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    length = sum(lengths)
    query = torch.randn(1, 4, length, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(1, key_heads, length, 8, generator=generator, requires_grad=True) for _ in range(2))
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    output, _ = attend_in_rows(
        torch.nn.Module(), query, key, value, None, scaling=0.3, cu_seq_lens_q=bounds, max_length_q=max(lengths)
    )
    owners = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = (owners[:, None] == owners) & torch.ones(length, length, dtype=torch.bool).tril()
    keys, values = (states.repeat_interleave(4 // key_heads, dim=1) for states in (key, value))
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.3).transpose(1, 2)
    torch.testing.assert_close(output, expected)
    weights = torch.randn(output.shape, generator=generator)
    gradients = [torch.autograd.grad((result * weights).sum(), [query, key, value]) for result in (output, expected)]
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("kind", "changes", "expects_rows", "expects_answer"),
    [
        pytest.param("Llama", {}, True, True, id="llama"),
        pytest.param("Qwen3", {}, True, True, id="qwen3"),
        pytest.param("Phi3", {}, True, True, id="phi3"),
        pytest.param("Gemma", {}, True, True, id="gemma"),
        pytest.param("Mistral", {"sliding_window": None}, True, True, id="mistral"),
        pytest.param("Mistral", {"sliding_window": 4}, False, True, id="a sliding window"),
        pytest.param("Llama", {"attention_dropout": 0.1}, False, True, id="dropout of attention weights"),
        pytest.param("Gemma2", {}, False, False, id="capped logits"),
        pytest.param("Granite", {"logits_scaling": 8.0}, True, False, id="scaled logits"),
        pytest.param("Cohere", {"logit_scale": 0.5}, True, False, id="logits scaled down"),
    ],
)
@torch.no_grad()
def test_every_kind_of_model_has_the_loss_that_transformers_gives_it(
    kind: str, changes: dict[str, Any], expects_rows: bool, expects_answer: bool
) -> None:
    model = build_model(kind, **changes)
    rows = [draw_row(length) for length in (9, 1, 14)]
    expected = torch.stack([compute_sequence_nll(model, build_batch([[row]])) for row in rows]).sum()
    choose_layout(model, CPU, packing=True)
    assert has_row_attention(model) == expects_rows
    batch = build_batch([rows])
    torch.testing.assert_close(compute_sequence_nll(model, batch)[0], expected, rtol=1e-5, atol=1e-4)
    with asking(Question(batch.predictors, batch.targets)) as question:
        model(input_ids=batch.input_ids)
    assert question.is_answered == expects_answer


def test_packing_is_refused_for_a_model_that_ignores_where_positions_start_anew() -> None:
    model = build_model("GptOss", num_local_experts=2, num_experts_per_tok=1)  # its code builds masks without positions
    with pytest.raises(ConfigurationError) as caught:
        choose_layout(model, CPU, packing=True)
    assert caught.value.code == "packing_leaks"
    choose_layout(model, CPU, packing=False)


def test_a_model_with_row_attention_still_generates() -> None:
    model = build_model("Llama", initializer_range=0.5)
    prompts = torch.randint(5, 2048, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(prompts, **options)
    choose_layout(model, CPU, packing=True)
    assert has_row_attention(model)
    assert torch.equal(model.generate(prompts, **options), expected)
