"""Attention by plain products is attention as torch's kernel computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from compressor.model import attention
from compressor.model.attention import SHORT, short_products
from compressor.model.encoders import load_model


class Encoder(torch.nn.Module):
    is_causal = False


def tensors(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(3, 2, length, 8, generator=generator, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 7, SHORT, SHORT + 1])
def test_outputs_and_gradients_are_those_of_sdpa(length: int, masked: bool) -> None:
    mask = None
    if masked:
        mask = torch.ones(3, 1, length, length, dtype=torch.bool)
        mask[1, :, :, (length + 1) // 2 :] = False
    ours, theirs = tensors(length), tensors(length)
    found, weights = short_products(Encoder(), *ours, mask)
    wanted = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=mask).transpose(1, 2)
    assert weights is None
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    down = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found.backward(down)
    wanted.backward(down)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("length", "kernel"), [(SHORT, False), (SHORT + 1, True)])
def test_long_rows_take_the_kernel(length: int, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def recorded(*given: Any, **named: Any) -> tuple[Tensor, None]:
        called.append(given)
        return given[1].transpose(1, 2), None

    monkeypatch.setattr(attention, "sdpa_attention_forward", recorded)
    short_products(Encoder(), *tensors(length), None)
    assert bool(called) is kernel


def test_a_causal_module_takes_the_kernel() -> None:
    states = tensors(5)
    found, _ = short_products(torch.nn.Module(), *states, None)
    wanted = torch.nn.functional.scaled_dot_product_attention(*states, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(found, wanted)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    query = torch.zeros(1, 1, 100, 4)
    value = torch.ones(1, 1, 100, 4)
    torch.manual_seed(0)
    found, _ = short_products(Encoder(), query, query, value, None, dropout=0.5)
    assert found.std() > 0.01
    assert float(found.mean()) == pytest.approx(1.0, abs=0.05)


def test_models_open_with_it_and_answer_as_with_the_kernel(tiny_bert: Path) -> None:
    ours = load_model(tiny_bert, labels=("a", "b"), make_head=True)
    theirs = load_model(tiny_bert, attention="sdpa", labels=("a", "b"))
    theirs.load_state_dict(ours.state_dict())
    assert ours.config._attn_implementation == "short_products"
    assert theirs.config._attn_implementation == "sdpa"
    ids = torch.arange(12).view(2, 6) % 7
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids, attention_mask=mask).logits, theirs(ids, attention_mask=mask).logits)


def test_a_saved_config_does_not_name_it(tiny_bert: Path, tmp_path: Path) -> None:
    load_model(tiny_bert, labels=("a", "b")).save_pretrained(tmp_path / "saved")
    assert "short_products" not in (tmp_path / "saved" / "config.json").read_text()
