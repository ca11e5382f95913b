"""The library is compiled once; where it cannot be, a reason is given."""

import re
from pathlib import Path

import pytest

from serve_app.models.compiled import build
from serve_app.models.compiled.build import compiled_kernels
from tests.compiled import kernels_or_skip


@pytest.mark.slow
def test_it_is_compiled_once(tmp_path: Path) -> None:
    kernels_or_skip()
    first, second = compiled_kernels(tmp_path), compiled_kernels(tmp_path)
    assert first.how.startswith("in ")
    assert (second.how, second.kernels is None) == ("kept", False)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".lock", ".so"]


def compiler(directory: Path, script: str) -> str:
    path = directory / "compiler"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_a_compiler_that_is_not_there(tmp_path: Path) -> None:
    choice = compiled_kernels(tmp_path, "no-such-compiler")
    assert choice.kernels is None
    assert str(choice) == "none (no C++ compiler: no-such-compiler)"


def test_a_compiler_that_fails_leaves_nothing(tmp_path: Path) -> None:
    script = 'test "$1" = --version || { echo "x.cpp:1: error: no such flag" >&2; exit 1; }'
    choice = compiled_kernels(tmp_path / "kept", compiler(tmp_path, script))
    assert choice.kernels is None
    assert "failed: x.cpp:1: error: no such flag" in str(choice)
    assert not list((tmp_path / "kept").glob("*.so"))


def test_a_file_that_is_no_library_is_a_reason(tmp_path: Path) -> None:
    script = 'while [ "$1" != -o ]; do test $# = 0 && exit 0; shift; done; echo nonsense > "$2"'
    choice = compiled_kernels(tmp_path / "kept", compiler(tmp_path, script))
    assert choice.kernels is None
    assert "invalid ELF header" in choice.how or "file too short" in choice.how


def test_a_directory_that_cannot_be_made_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    script = "exit 0"
    choice = compiled_kernels(tmp_path / "file" / "kept", compiler(tmp_path, script))
    assert choice.kernels is None
    assert "file" in choice.how


def test_torch_without_openmp_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_OPENMP_NAME", re.compile("no such library"))
    choice = compiled_kernels(tmp_path, compiler(tmp_path, "exit 0"))
    assert str(choice) == "none (torch was built without OpenMP)"
