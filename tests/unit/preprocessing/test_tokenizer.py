"""Text to tokens and back."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models

from serve_app.errors import ConfigError
from serve_app.preprocessing.tokenizer import Tokenizer
from tests.fakes import BOS, EOS, byte_fallback_tokenizer, byte_level_tokenizer, save_model_dir

TEXT = "the café — 東京 🙂🇫🇷 x\u2028y"


@pytest.fixture(params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    core = byte_level_tokenizer() if request.param == "byte_level" else byte_fallback_tokenizer()
    return Tokenizer.load(save_model_dir(tmp_path, core))


@pytest.fixture
def byte_level(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(save_model_dir(tmp_path))


def stream(tokenizer: Tokenizer, token_ids: list[int], *, skip_special_tokens: bool = True) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip_special_tokens)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


def test_pieces_join_to_the_whole_text_and_tear_no_character(tokenizer: Tokenizer) -> None:
    pieces = stream(tokenizer, tokenizer.encode(TEXT, add_special_tokens=False))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


def test_random_tokens_stream_to_what_decode_gives(byte_level: Tokenizer) -> None:
    draw = random.Random(1)
    for is_skipped in (True, False):
        for _ in range(200):
            token_ids = draw.choices(range(byte_level.num_tokens + 5), k=30)
            whole = byte_level.decode(token_ids, skip_special_tokens=is_skipped)
            assert "".join(stream(byte_level, token_ids, skip_special_tokens=is_skipped)) == whole


def test_an_unfinished_character_shows_at_the_end_only(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a🙂", add_special_tokens=False)[:-1]
    pieces = stream(tokenizer, token_ids)
    assert not any("\ufffd" in piece for piece in pieces[:-1])
    assert pieces[-1].strip("\ufffd") == ""
    assert pieces[-1] != ""


def test_garbage_is_shown_after_a_while(tokenizer: Tokenizer) -> None:
    byte = tokenizer.table
    wrong = next(token_id for token_id in range(tokenizer.num_tokens) if byte.bytes_of(token_id) == b"\xff")
    assert "".join(stream(tokenizer, [wrong] * 40)[:-1]) != ""


def metaspace_tokenizer() -> tokenizers.Tokenizer:
    core = byte_fallback_tokenizer()
    core.decoder = decoders.Metaspace()
    return core


def word_piece_tokenizer() -> tokenizers.Tokenizer:
    words = ["[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz.,!'", *(f"##{one}" for one in "abcing"), "the"]
    core = tokenizers.Tokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    core.add_special_tokens(["[CLS]", "[SEP]"])
    return core


@pytest.mark.parametrize("is_skipped", [True, False])
@pytest.mark.parametrize(
    "make", [byte_level_tokenizer, byte_fallback_tokenizer, metaspace_tokenizer, word_piece_tokenizer]
)
def test_text_that_follows_a_prompt_is_what_it_adds_to_the_prompts_text(
    make: Callable[[], tokenizers.Tokenizer], is_skipped: bool, tmp_path: Path
) -> None:
    tokenizer, draw = Tokenizer.load(save_model_dir(tmp_path, make())), random.Random(2)
    table = tokenizer.table
    known = [one for one in range(tokenizer.num_tokens) if table.bytes_of(one).isascii()]
    special = [one for one in known if one in table.special_token_ids]
    character = [one for byte in "🙂".encode() for one in range(256 + 3) if table.bytes_of(one) == bytes([byte])]
    for length in (0, 1, 1, 2, 30):
        for tail in ([], special[:1], special * 3, character[:4], character[:4] * 3):
            prompt = [*draw.choices(known, k=length), *tail]
            answer = [*draw.choices(known, k=20), *character[:4]]
            detokenizer = tokenizer.detokenizer(skip_special_tokens=is_skipped, after=prompt)
            added = "".join([*map(detokenizer.push, answer), detokenizer.flush()])
            before = tokenizer.decode(prompt, skip_special_tokens=is_skipped)
            assert before + added == tokenizer.decode(prompt + answer, skip_special_tokens=is_skipped)
            pieces = tokenizer.decode_each(prompt + answer, skip_special_tokens=is_skipped)
            assert "".join(pieces) == before + added


def test_special_tokens_may_be_shown_one_by_one(tokenizer: Tokenizer) -> None:
    bos, eos = (tokenizer.encode(token, add_special_tokens=False) for token in (BOS, EOS))
    token_ids = [*tokenizer.encode("a", add_special_tokens=False), *bos, *eos, *bos]
    detokenizer = tokenizer.detokenizer(shown=[EOS])
    assert "".join([*map(detokenizer.push, token_ids), detokenizer.flush()]).split() == ["a" + EOS]


def test_an_answer_completes_a_character_that_its_prompt_began(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a🙂b", add_special_tokens=False)
    place = token_ids.index(next(one for one in token_ids if tokenizer.table.bytes_of(one)[:1] >= b"\x80")) + 2
    assert "".join(tokenizer.decode_each(token_ids[:place])) == "a"
    assert tokenizer.decode_after(token_ids[:place], token_ids[place:]) == "🙂b"


def test_many_tokens_without_text_leave_what_is_around_them(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id is not None
    around = [tokenizer.encode(text, add_special_tokens=False) for text in ("the", " rain")]
    for nothing in (tokenizer.eos_token_id, tokenizer.num_tokens + 5):
        pieces = stream(tokenizer, [*around[0], *[nothing] * 50, *around[1]])
        assert "".join(pieces) == tokenizer.decode([*around[0], *around[1]])


def test_special_tokens_are_hidden_unless_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id is not None
    token_ids = [*tokenizer.encode("a", add_special_tokens=False), tokenizer.eos_token_id]
    assert "".join(stream(tokenizer, token_ids)) == "a"
    assert "".join(stream(tokenizer, token_ids, skip_special_tokens=False)).endswith(EOS)


def test_bos_is_never_doubled(byte_level: Tokenizer) -> None:
    bos = byte_level.bos_token_id
    assert byte_level.encode("hi")[0] == bos
    assert byte_level.encode(f"{BOS}hi") == byte_level.encode("hi")
    assert byte_level.encode(f"{BOS}hi", add_special_tokens=False) == byte_level.encode("hi")
    assert byte_level.encode("hi", add_special_tokens=False)[0] != bos


def test_bytes_of_tokens_join_to_the_text(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(TEXT, add_special_tokens=False)
    joined = b"".join(tokenizer.table.bytes_of(token_id) for token_id in token_ids)
    assert joined.decode().removeprefix(" ") == TEXT
    assert tokenizer.table.bytes_of(99_999) == b""


def test_slow_tokenizer_files_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    (save_model_dir(tmp_path) / name).write_text("{")
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        Tokenizer.load(tmp_path)


def test_the_jinja_file_wins_over_the_config(tmp_path: Path) -> None:
    save_model_dir(tmp_path, chat_template="from config")
    assert Tokenizer.load(tmp_path).chat_template == "from config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "from json"}))
    assert Tokenizer.load(tmp_path).chat_template == "from json"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert Tokenizer.load(tmp_path).chat_template == "from jinja"


def test_a_folder_of_templates_is_read(tmp_path: Path) -> None:
    save_model_dir(tmp_path, chat_template="from config")
    folder = tmp_path / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("for tools")
    assert Tokenizer.load(tmp_path).chat_template == "from config"
    (folder / "default.jinja").write_text("from the folder")
    assert Tokenizer.load(tmp_path).chat_template == "from the folder"


@pytest.mark.parametrize(
    "values", [{"added_tokens_decoder": []}, {"added_tokens_decoder": {"x": "<a>"}}, {"extra_special_tokens": [5]}]
)
def test_added_tokens_that_are_none_are_refused(tmp_path: Path, values: dict[str, object]) -> None:
    (save_model_dir(tmp_path) / "tokenizer_config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json: .*token"):
        Tokenizer.load(tmp_path)


def test_of_named_templates_the_default_is_taken_and_another_for_tools(tmp_path: Path) -> None:
    save_model_dir(tmp_path)
    named = [{"name": name, "template": text} for name, text in (("tool_use", "a"), ("default", "b"), ("rag", "c"))]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.chat_template, tokenizer.tool_template) == ("b", "a")
    assert tokenizer.not_followed == ["the chat template 'rag' (only 'default' and 'tool_use' are used)"]


@pytest.mark.process
def test_loading_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, serve_app.preprocessing.tokenizer, serve_app.preprocessing.chat_template\n"
        "import serve_app.gateway.http.app\n"
        "print(sorted({'torch', 'transformers', 'ray', 'zmq'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_text_that_is_far_too_long_shows_by_its_beginning(tokenizer: Tokenizer) -> None:
    for text in (TEXT, "a", " ", "the ", "\n"):
        num_tokens = len(tokenizer.encode(text * 10, add_special_tokens=False))
        for limit in (num_tokens // 2, num_tokens, num_tokens + 1):
            for times in (1, 5, 10):
                if tokenizer.surely_exceeds(text * times, limit):
                    assert len(tokenizer.encode(text * times, add_special_tokens=False)) > limit
    assert tokenizer.surely_exceeds(TEXT * 1000, 512)
    assert not tokenizer.surely_exceeds(TEXT * 1000, 10**6)


def test_the_work_for_a_text_that_is_far_too_long_does_not_grow_with_it(byte_level: Tokenizer) -> None:
    started = time.process_time()
    assert byte_level.surely_exceeds("the cafe " * 10_000_000, 64)  # 90 MB, minutes if all of it were tokenized
    assert time.process_time() - started < 5


@pytest.mark.parametrize("max_tokens", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize("pair", [("abcdef", "ghijkl"), ("abcdef", "gh"), ("ab", "ghijkl"), ("abc", "ghi")])
def test_pairs_are_cut_as_the_tokenizers_library_cuts_them(
    pair: tuple[str, str], direction: str, max_tokens: int, tmp_path: Path
) -> None:
    directory = save_model_dir(tmp_path)
    core = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    core.enable_truncation(max_tokens, strategy="longest_first", direction=direction)
    keeps_end = direction == "left"
    encoding = Tokenizer.load(directory).encode_entry(*pair, max_tokens=max_tokens, keeps_end=keeps_end)
    assert encoding.token_ids == core.encode(*pair).ids


def test_a_prompt_is_counted_without_what_ends_a_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(save_model_dir(tmp_path))
    whole = tokenizer.encode_entry("cd", prompt="ab ")
    assert whole.token_ids == tokenizer.encode_entry("ab cd").token_ids
    assert whole.num_prompt_tokens == len(tokenizer.encode("ab "))
    assert tokenizer.encode_entry("cd").num_prompt_tokens == 0
    for keeps_end, num_left in ((False, 4), (True, 2)):
        cut = tokenizer.encode_entry("cd", prompt="ab ", max_tokens=4, keeps_end=keeps_end)
        assert (len(cut.token_ids), cut.num_prompt_tokens) == (4, num_left)


def test_text_is_made_small_where_sentence_transformers_does_so(tmp_path: Path) -> None:
    directory = save_model_dir(tmp_path)
    assert (
        Tokenizer.load(directory).encode_entry("AB").token_ids != Tokenizer.load(directory).encode_entry("ab").token_ids
    )
    (directory / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert (
        Tokenizer.load(directory).encode_entry("AB").token_ids == Tokenizer.load(directory).encode_entry("ab").token_ids
    )
