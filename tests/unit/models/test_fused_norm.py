"""The fused RMSNorm against each of the classes whose place it takes."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.architectures.record import FusedClasses
from serve_app.models.fused_norm import FusedRMSNorm, fuse_norms

CLASSES = {one.fused.norm: one.fused for one in ARCHITECTURES.values() if one.fused.norm is not None}


def norm_of(class_name: str) -> Any:
    name = class_name.removesuffix("RMSNorm").lower()
    return getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), class_name)


@pytest.mark.parametrize("class_name", CLASSES)
def test_it_gives_the_same_numbers(class_name: str) -> None:
    torch.manual_seed(0)
    own = norm_of(class_name)(96, eps=1e-5)
    nn.init.normal_(own.weight)
    model = nn.Sequential(nn.Sequential(own))
    inputs = torch.randn(33, 96) * torch.logspace(-6, 6, 33)[:, None]
    expected = own(inputs)
    fuse_norms(model, CLASSES[class_name])
    assert isinstance(model[0][0], FusedRMSNorm)  # type: ignore[index]
    assert list(model.state_dict()) == ["0.0.weight"]
    torch.testing.assert_close(model(inputs), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("width", [64, 100, 4096, 20_000])
def test_a_row_alone_gives_the_bits_it_gives_among_many(width: int) -> None:
    torch.manual_seed(width)
    norm = FusedRMSNorm(nn.Parameter(torch.randn(width), requires_grad=False), 1e-5)
    rows = torch.randn(1, 70, width) * torch.logspace(-6, 6, 70)[:, None]
    among_many = norm(rows)
    for index in range(70):
        assert torch.equal(norm(rows[:, index : index + 1]), among_many[:, index : index + 1])
    assert torch.equal(norm(rows.view(7, 10, width)).view(1, 70, width), among_many)


def test_half_precision_keeps_the_order_of_its_roundings() -> None:
    model = nn.Sequential(norm_of("LlamaRMSNorm")(8).to(torch.bfloat16))
    fuse_norms(model, FusedClasses(norm="LlamaRMSNorm"))
    assert not isinstance(model[0], FusedRMSNorm)
