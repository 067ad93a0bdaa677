"""Forwards that stop where nobody needs the rest: the same numbers as a whole one, and no trace left behind."""

import pytest
import torch

from agentmem import InvalidInput
from agentmem.model.reading import capture_up_to, capturing, hidden_before
from tests.model.tiny_models import FAMILIES, local, some_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_stopping_early_gives_what_a_whole_forward_gives(name: str) -> None:
    model = local(name)
    ids = torch.tensor([some_ids(12), some_ids(12, 1)])
    with capturing(model.model) as whole, torch.no_grad():
        states = model.model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    last = model.n_layers - 2
    with torch.no_grad():
        early = capture_up_to(model.model, last, input_ids=ids)
        hidden = hidden_before(model.model, last, input_ids=ids)
    assert sorted(early.keys) == sorted(early.values) == list(range(last + 1))
    for layer in early.keys:
        for mine, theirs in ((early.keys, whole.keys), (early.values, whole.values), (early.queries, whole.queries)):
            torch.testing.assert_close(mine[layer], theirs[layer], atol=0, rtol=0)
    torch.testing.assert_close(hidden, states[last], atol=2e-5, rtol=0)
    with torch.no_grad():
        again = model.model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    assert len(again) == model.n_layers + 1
    assert torch.isfinite(again[-1]).all()


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (-1,), (0, 4)])
def test_layers_that_the_model_does_not_have_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="layers must be ascending numbers from 0 to 3"):
        local("llama").encode(some_ids(4), layers=layers)


def test_a_prefix_is_encoded_once() -> None:
    model = local("llama")
    assert model.prefix_kv((5, 6)) is model.prefix_kv([5, 6])
    assert model.prefix_kv((5, 7)) is not model.prefix_kv((5, 6))
