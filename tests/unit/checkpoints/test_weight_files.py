"""Finding the files of a checkpoint's weights, and all their tensors."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.checkpoints.weight_files import find_weight_files, read_tensors
from serve_app.errors import ConfigError

TENSORS = {f"layers.{index}.weight": np.zeros((2, index + 1), np.float32) for index in range(5)}


def headers_of(directory: Path) -> dict[str, TensorHeader]:
    return read_tensors(directory, find_weight_files(directory))


def test_one_file_is_taken_before_an_index(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("of a conversion that left it behind")
    assert find_weight_files(tmp_path) == [tmp_path / "model.safetensors"]
    assert headers_of(tmp_path).keys() == TENSORS.keys()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        save_file(TENSORS, tmp_path / file)
    weight_map = dict(zip(TENSORS, ["a.safetensors"] * 4 + ["b.safetensors"], strict=True))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=r"b\.safetensors.*layers\.0\.weight.* again"):
        headers_of(tmp_path)


def test_several_files_are_read_through_their_index(tmp_path: Path) -> None:
    names = sorted(TENSORS)
    weight_map = {name: f"model-{position % 2}.safetensors" for position, name in enumerate(names)}
    for file in ("model-0.safetensors", "model-1.safetensors"):
        save_file({name: TENSORS[name] for name in names if weight_map[name] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert {name: header.file.name for name, header in headers_of(tmp_path).items()} == weight_map
    index.write_text(json.dumps({"weight_map": weight_map | {"ghost": "model-0.safetensors"}}))
    with pytest.raises(ConfigError, match=r"tensors that its files lack: ghost: it is damaged or incomplete"):
        headers_of(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map | {"ghost": "../other.safetensors"}}))
    with pytest.raises(ConfigError, match=r"'../other.safetensors' as a file, which is not a safetensors file"):
        headers_of(tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(
        ConfigError, match=r"index.json names model-1.safetensors, not in the directory; copy the files"
    ):
        headers_of(tmp_path)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("notes.txt", "has no safetensors files; give a directory with model.safetensors"),
        (
            "pytorch_model.bin",
            r"only pickled weights \(pytorch_model.bin\), which are never unpickled .* convert them to",
        ),
        ("model.pt", r"only pickled weights \(model.pt\)"),
        ("model.ckpt", r"only pickled weights \(model.ckpt\)"),
        ("model.gguf", "holds GGUF files, which are not served; give the original model as safetensors"),
        ("weights.safetensors", r"has weights.safetensors but no model.safetensors; rename it"),
    ],
)
def test_a_directory_without_weights_says_what_it_has_instead(tmp_path: Path, file: str, expected: str) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"source=.*{expected}"):
        find_weight_files(tmp_path)
