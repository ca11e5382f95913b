"""What is told of a tokenizer's files."""

import json
from pathlib import Path

from serve_app.preprocessing.tokenizer_files import read_tokenizer_files
from serve_app.preprocessing.tokenizer_info import tokenizer_info
from tests.fakes import save_model_dir


def test_tokens_are_texts_and_paths_are_left_out(tmp_path: Path) -> None:
    path = save_model_dir(tmp_path, chat_template=None) / "tokenizer_config.json"
    config = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": {"content": "<s>", "special": True},
        "added_tokens_decoder": {"7": {"content": "<x>"}},
        "model_max_length": 10**30,
        "vocab_file": "/home/somebody/vocab.txt",
        "name_or_path": "/home/somebody",
    }
    path.write_text(json.dumps(config))
    info = tokenizer_info(read_tokenizer_files(tmp_path))
    assert info["bos_token"] == "<s>"
    assert info["added_tokens_decoder"] == {"7": "<x>"}
    assert info["tokenizer_class"] == "LlamaTokenizer"
    assert info["model_max_length"] == 1e30
    assert not {"vocab_file", "name_or_path", "chat_template"} & set(info)
