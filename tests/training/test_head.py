"""The head's loss is cross-entropy, in value and gradient, however it is cut into chunks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trainer_core.head import Question, asking, teach_head

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CHUNK_LOGITS = 2**20  # on the CPU


class Model(torch.nn.Module):
    """Nothing but a head."""

    def __init__(self, vocabulary_size: int, *, bias: bool) -> None:
        super().__init__()
        self.head = torch.nn.Linear(24, vocabulary_size, bias=bias).requires_grad_(False)

    def get_output_embeddings(self) -> torch.nn.Linear:
        return self.head


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("vocabulary_size", "num_targets"),
    [
        pytest.param(31, 5, id="less than a chunk"),
        pytest.param(2**18, 8, id="two whole chunks"),
        pytest.param(3 * 2**17, 7, id="a vocabulary that divides no chunk, and a chunk that is not full"),
        pytest.param(2 * CHUNK_LOGITS, 2, id="a vocabulary larger than a chunk"),
        pytest.param(31, 0, id="nothing to predict"),
    ],
)
def test_the_heads_answer_is_cross_entropy(vocabulary_size: int, num_targets: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = Model(vocabulary_size, bias=bias)
    assert teach_head(model)
    hidden = torch.randn(2, 6, 24, requires_grad=True)
    positions = torch.randperm(12)[:num_targets]
    targets = torch.randint(0, vocabulary_size, (num_targets,))
    weights = torch.rand(num_targets)

    with asking(Question(positions, targets)):
        answer = model.head(hidden)
    assert answer.shape == (1, num_targets, 1)
    logits = model.head(hidden).flatten(0, 1)[positions]
    expected = F.cross_entropy(logits, targets, reduction="none")

    torch.testing.assert_close(answer.flatten(), expected)
    gradients = [torch.autograd.grad((nll * weights).sum(), hidden)[0] for nll in (answer.flatten(), expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    model = Model(50_000, bias=False)
    teach_head(model)
    hidden = torch.randn(1, 64, 24, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        asking(Question(torch.arange(64), torch.zeros(64, dtype=torch.int64))),
    ):
        model.head(hidden)
    assert max(kept) == hidden.numel()


@pytest.mark.parametrize("changes", ["adapted", "trained"])
def test_a_head_that_learns_goes_on_giving_logits(demo_model: Path, changes: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).requires_grad_(False)
    if changes == "adapted":
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"]))
    else:
        model.lm_head.requires_grad_(True)
    assert not teach_head(model)
