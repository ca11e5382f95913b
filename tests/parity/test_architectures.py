"""Decoders and encoders give what transformers gives, whole and split: a sample, and slowly all that are served."""

from pathlib import Path

import pytest

from bench.architectures import sweep_encoder, sweep_type
from serve_app.architectures.derived import DERIVED
from serve_app.architectures.encoders import ENCODERS

SAMPLE = ("granite", "gpt_oss", "deepseek_v32", "gemma4_text")  # factors; sinks; latent keys and an indexer; two widths


def cases(names: dict[str, object], sample: tuple[str, ...]) -> list[object]:
    return [pytest.param(name, marks=() if name in sample else pytest.mark.slow) for name in sorted(names)]


@pytest.mark.parametrize("model_type", cases(dict(DERIVED), SAMPLE))
def test_a_decoder_without_an_entry_of_ours_gives_what_generate_gives(model_type: str, tmp_path: Path) -> None:
    by_split = sweep_type(model_type, tmp_path).by_split
    if DERIVED[model_type].tensor_cut is None:
        del by_split[1, 2]
    assert set(by_split.values()) == {""}


@pytest.mark.parametrize("model_type", cases(dict(ENCODERS), ("nomic_bert",)))
def test_an_encoder_gives_what_its_class_gives(model_type: str, tmp_path: Path) -> None:
    by_split = sweep_encoder(model_type, tmp_path).by_split
    if ENCODERS[model_type].tensor_cut is None:
        del by_split[1, 2]
    assert set(by_split.values()) == {""}
