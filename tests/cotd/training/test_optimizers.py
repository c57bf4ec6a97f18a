import pytest
import torch

from cotd.training.optimizers import TRAINER_NAMES, ScaledAdamW, custom_optimizer


def test_steps_are_relative_to_the_size_of_what_they_change() -> None:
    large, small, zero = (torch.nn.Parameter(torch.full((4, 4), v)) for v in (1.0, 0.01, 0.0))
    optimizer = ScaledAdamW([large, small, zero], lr=0.1)
    for p in (large, small, zero):
        p.grad = torch.full((4, 4), 7.0)  # Adam's first step does not depend on the gradient's size
    optimizer.step()
    assert large.tolist()[0][0] == pytest.approx(0.9)
    assert small.tolist()[0][0] == pytest.approx(0.009)
    assert zero.tolist()[0][0] == pytest.approx(-1e-4), "zeros can grow"


def test_it_finds_a_minimum_and_decays_what_it_should() -> None:
    torch.manual_seed(0)
    target, x = torch.randn(3), torch.nn.Parameter(torch.randn(3))
    idle = torch.nn.Parameter(torch.ones(3))
    optimizer = ScaledAdamW([{"params": [x]}, {"params": [idle], "weight_decay": 0.5}], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        ((x - target).pow(2).sum() + 0 * idle.sum()).backward()
        optimizer.step()
    assert x.detach() == pytest.approx(target, abs=0.05)
    assert idle.detach().abs().max() < 0.2


@pytest.mark.parametrize("name", ["scaled_adamw", "adamw", "adafactor"])
def test_the_trainer_knows_every_optimiser(name: str) -> None:
    from transformers import TrainingArguments

    optim, custom = TRAINER_NAMES[name], custom_optimizer(name, 0.01, 0.0, 0.98)
    assert TrainingArguments(optim=optim, use_cpu=True, report_to="none").optim == optim
    assert (custom is not None) == name.startswith("scaled")


def test_a_loaded_state_is_on_the_weights_device() -> None:
    """Checkpoints are read onto the processor; a GPU takes no step with a count that is there."""
    vector, matrix = torch.ones(3, requires_grad=True), torch.ones(64, 64, requires_grad=True)
    stepped = ScaledAdamW([vector, matrix])
    (vector.sum() + matrix.sum()).backward()
    stepped.step()
    elsewhere = [torch.empty_like(p, device="meta", requires_grad=True) for p in (vector, matrix)]
    resumed = ScaledAdamW(elsewhere)
    resumed.load_state_dict(stepped.state_dict())
    assert {t.device.type for p in elsewhere for t in resumed.state[p].values()} == {"meta"}
