"""The table of dtypes against torch, numpy, and the settings that name them."""

from typing import get_args

import numpy as np
import pytest
import torch

from serve_app.config.model import ModelConfig, TensorConfig
from serve_app.models.torch_dtypes import DTYPE_NAMES, DTYPES_OF_FILES
from serve_app.types.dtypes import DTYPES, SERVED_DTYPES, TENSOR_DTYPES


@pytest.mark.parametrize("name", [name for name in DTYPES if hasattr(torch, name)])
def test_sizes_are_those_of_torch(name: str) -> None:
    assert DTYPES[name].num_bytes == getattr(torch, name).itemsize


@pytest.mark.parametrize("name", [name for name in TENSOR_DTYPES if name != "bfloat16"])
def test_numpy_has_the_same_names_and_sizes(name: str) -> None:
    assert np.dtype(name).itemsize == TENSOR_DTYPES[name].num_bytes


def test_every_tensor_that_requests_carry_can_be_read_from_files() -> None:
    for name, dtype in TENSOR_DTYPES.items():
        assert DTYPE_NAMES[DTYPES_OF_FILES[dtype.safetensors]] == name


def test_settings_name_the_same_dtypes() -> None:
    assert set(get_args(TensorConfig.model_fields["dtype"].annotation)) == TENSOR_DTYPES.keys()
    assert set(get_args(ModelConfig.model_fields["dtype"].annotation)) == {"auto", *SERVED_DTYPES}
