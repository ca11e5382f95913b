"""The header of a safetensors file agrees with the file to the byte, or the file is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from serve_app.checkpoints.safetensors_header import read_safetensors_header
from serve_app.errors import ConfigError


def raw_file(path: Path, header: object, data: bytes = b"", header_bytes: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + data)
    return path


def test_the_offset_of_a_tensor_is_where_its_bytes_are(tmp_path: Path) -> None:
    tensors: dict[str, NDArray[Any]] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(4, dtype=np.float16),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    headers = read_safetensors_header(tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for name, header in headers.items():
        assert content[header.offset_bytes : header.offset_bytes + header.num_bytes] == tensors[name].tobytes()
    assert {name: (header.dtype, header.shape) for name, header in headers.items()} == {
        "a": ("F32", (2, 3)),
        "b": ("F16", (4,)),
    }


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "header_bytes", "expected"),
    [
        ({"a": ONE}, b"", None, "'a' at bytes 0 to 8 of 0"),
        ({"a": ONE}, b"1234567", None, "'a' at bytes 0 to 8 of 7"),
        ({"a": ONE}, b"123456789", None, "1 bytes that belong to no tensor"),
        ({"a": ONE, "b": ONE}, b"12345678", None, "'b' at bytes 0 to 8 of 8"),
        ({"a": ONE | {"data_offsets": [4, 12]}}, b"123456789012", None, "'a' at bytes 4 to 12"),
        ({"a": ONE | {"data_offsets": [8, 0]}}, b"12345678", None, "'a' at bytes 8 to 0"),
        ({"a": ONE | {"data_offsets": [0, -8]}}, b"12345678", None, r"data_offsets \[0, -8\] of tensor 'a'"),
        ({"a": ONE | {"shape": [3]}}, b"12345678", None, "'a' at bytes 0 to 8 of 8"),
        ({"a": ONE | {"shape": [-2]}}, b"12345678", None, r"shape \[-2\] of tensor 'a'"),
        ({"a": ONE | {"shape": [True]}}, b"12345678", None, r"shape \[True\] of tensor 'a'"),
        ({"a": ONE | {"dtype": "F7"}}, b"12345678", None, "dtype 'F7' of tensor 'a'"),
        ({"a": 3}, b"", None, "no description of tensor 'a'"),
        (b'{"a": {}, "a": {}}', b"", None, r"broken JSON \(key 'a' twice\)"),
        (b"{" * 200_000, b"", None, "broken JSON"),
        ({}, b"", 2**60, "a header of 1152921504606846976 bytes in a file of 10"),
        ({}, b"", 0, "a header of 0 bytes"),
    ],
)
def test_a_safetensors_file_that_lies_is_refused(
    tmp_path: Path, header: object, data: bytes, header_bytes: int | None, expected: str
) -> None:
    path = raw_file(tmp_path / "model.safetensors", header, data, header_bytes)
    with pytest.raises(ConfigError, match=f"model.safetensors has .*{expected}.*download or copy it again"):
        read_safetensors_header(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((4, 4), np.float32)}, path)
    content = path.read_bytes()
    for length in (0, 7, 20, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ConfigError, match=r"model.safetensors has .*: it is damaged or incomplete"):
            read_safetensors_header(path)


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    empty = '"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    header = "{" + ",".join(empty.format(number) for number in range(100_001)) + "}"
    with pytest.raises(ConfigError, match="100001 tensors, more than 100000"):
        read_safetensors_header(raw_file(tmp_path / "model.safetensors", header.encode()))
