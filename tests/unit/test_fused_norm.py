"""The fused RMSNorm against each of the classes whose place it takes."""

import importlib
from typing import Any

import pytest
import torch
from torch import nn

from serve_app.models.fused_norm import FUSED_CLASSES, FusedRMSNorm, fuse_norms


def norm_of(class_name: str) -> Any:
    name = class_name.removesuffix("RMSNorm").lower()
    return getattr(importlib.import_module(f"transformers.models.{name}.modeling_{name}"), class_name)


@pytest.mark.parametrize("class_name", FUSED_CLASSES)
def test_it_gives_the_same_bits(class_name: str) -> None:
    torch.manual_seed(0)
    own = norm_of(class_name)(96, eps=1e-5)
    nn.init.normal_(own.weight)
    model = nn.Sequential(nn.Sequential(own))
    inputs = torch.randn(33, 96) * torch.logspace(-6, 6, 33)[:, None]
    expected = own(inputs)
    fuse_norms(model)
    assert isinstance(model[0][0], FusedRMSNorm)  # type: ignore[index]
    assert list(model.state_dict()) == ["0.0.weight"]
    assert torch.equal(model(inputs), expected)


def test_half_precision_keeps_the_order_of_its_roundings() -> None:
    model = nn.Sequential(norm_of("LlamaRMSNorm")(8).to(torch.bfloat16))
    fuse_norms(model)
    assert not isinstance(model[0], FusedRMSNorm)
