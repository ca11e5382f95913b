"""Processes, checkpoints and references that the parity tests share."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from serve_app.engine.plain_processes import PlainProcesses
from tests.checkpoints import VOCAB_SIZE, make_checkpoint
from tests.parity.comparison import Reference, make_references

NUM_OUTPUTS = 32
PROMPT_LENGTHS = (3, 7, 20, 33, 40, 5, 9, 28, 17, 2, 11, 30, 4, 6, 8, 12)

References = Callable[[str], tuple[Path, list[Reference]]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pool() -> Iterator[PlainProcesses]:
    """Processes for the widest split."""
    processes = PlainProcesses(4)
    yield processes
    processes.kill()


@pytest.fixture(scope="session")
def reference_of(tmp_path_factory: pytest.TempPathFactory) -> References:
    """Checkpoint directory of an architecture, and what transformers makes of 16 prompts; made once."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist() for length in PROMPT_LENGTHS]

    @cache
    def make(name: str) -> tuple[Path, list[Reference]]:
        directory = make_checkpoint(name, tmp_path_factory.mktemp(name))
        return directory, make_references(directory, prompts, NUM_OUTPUTS)

    return make
