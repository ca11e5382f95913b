"""Text to tokens and back, from a model directory's tokenizer.json. Never loads torch or transformers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers

from serve_app.errors import ConfigError
from serve_app.preprocessing.detokenizer import ByteLevelDetokenizer, IncrementalDetokenizer, WindowDetokenizer
from serve_app.preprocessing.text_spans import PlacedTokens, placed
from serve_app.preprocessing.token_spellings import check_spellings, token_spellings
from serve_app.preprocessing.token_table import TokenTable
from serve_app.preprocessing.tokenizer_class import not_followed, remake, remake_ends
from serve_app.preprocessing.tokenizer_files import TokenizerFiles, read_tokenizer_files
from serve_app.preprocessing.tokenizer_info import tokenizer_info

_CHARS_PER_TOKEN = 8  # twice what a token of English has
_CUT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class TextEncoding:
    """Tokens of an encoder's input, and which text of a pair each belongs to."""

    token_ids: list[int]
    type_ids: list[int]
    num_prompt_tokens: int = 0  # of the prompt that it begins with, special tokens before it included


class Tokenizer:
    """Tokenizer of one model; all methods may be called from any thread."""

    def __init__(self, core: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core
        self.table = TokenTable(core)
        self.special_tokens = files.special_tokens
        self.info = tokenizer_info(files)  # for people
        self._pads_left = files.config.get("padding_side") == "left"
        self.chat_template = files.chat_templates.get("default")
        self.tool_template = files.chat_templates.get("tool_use", self.chat_template)  # of conversations with tools
        self.bos_token_id = self._id_of("bos_token")
        self.eos_token_id = self._id_of("eos_token")
        self.not_followed = not_followed(files.class_name, files.config, core)  # settings that would change tokens
        self.not_followed += _not_taken(core, files)
        self.num_tokens = core.get_vocab_size(with_added_tokens=True)
        self._is_spelling_checked = False
        self._prompt_lengths: dict[str, int] = {}  # of the prompts that the model's files name

    @classmethod
    def load(cls, source_dir: str | Path) -> "Tokenizer":
        """Read a model directory. Raises ConfigError when it has no tokenizer.json or a broken one."""
        files = read_tokenizer_files(source_dir)
        try:
            core = tokenizers.Tokenizer.from_file(str(files.tokenizer_json))
            remake(core, files.class_name, files.config)
            _add_tokens(core, files)
            remake_ends(core, files.class_name, files.special_tokens)
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise ConfigError(f"{files.tokenizer_json}: not a tokenizer ({error})", field="source") from error
        if files.is_lowercased:
            _lowercase(core)
        return cls(core, files)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; a text that already begins with BOS does not get a second one."""
        token_ids: list[int] = self._core.encode(text, add_special_tokens=add_special_tokens).ids
        if add_special_tokens and self.bos_token_id is not None and token_ids[:2] == [self.bos_token_id] * 2:
            del token_ids[0]
        return token_ids

    def surely_exceeds(self, text: str, num_tokens: int) -> bool:
        """Whether a text has more tokens than that, as its beginning shows: the work for it does not grow with it.

        Joining what follows can change the tokens at the cut alone, for which a quarter more are asked.
        """
        num_characters = num_tokens * _CHARS_PER_TOKEN
        if len(text) <= num_characters:
            return False
        beginning = self._core.encode(text[:num_characters], add_special_tokens=False)
        return len(beginning) > num_tokens + num_tokens // 4 + _CUT_TOKENS

    def encode_entry(
        self,
        text: str,
        pair: str | None = None,
        *,
        prompt: str | None = None,
        max_tokens: int | None = None,
        keeps_end: bool = False,
    ) -> TextEncoding:
        """An encoder's input: a text or a pair with its special tokens; the longer part is cut beyond max_tokens.

        A prompt is put before the (first) text. What is cut is the end of each, with keeps_end its beginning.
        """
        text = (prompt or "") + text
        parts = [self._core.encode(one, add_special_tokens=False) for one in (text, pair) if one is not None]
        num_cut = 0
        if max_tokens is not None:
            room = max(0, max_tokens - self._core.num_special_tokens_to_add(pair is not None))
            for part, length in zip(parts, _fit([len(part) for part in parts], room), strict=True):
                num_cut += max(0, len(part) - length)
                part.truncate(length, direction="left" if keeps_end else "right")
        encoding = self._core.post_process(parts[0], parts[1] if pair is not None else None, add_special_tokens=True)
        num_prompt_tokens = self._prompt_length(prompt) if prompt else 0
        if keeps_end:
            num_prompt_tokens = max(0, num_prompt_tokens - num_cut)
        return TextEncoding(encoding.ids, encoding.type_ids, num_prompt_tokens)

    def padded(self, encoding: TextEncoding, num_tokens: int) -> TextEncoding:
        """An encoding filled up to so many tokens, on the side that the files name. It has a pad_token."""
        pad_id = self.special_id("pad_token")
        assert pad_id is not None
        num_pads = max(0, num_tokens - len(encoding.token_ids))
        pads, types = [pad_id] * num_pads, [0] * num_pads
        if not self._pads_left:
            return replace(encoding, token_ids=encoding.token_ids + pads, type_ids=encoding.type_ids + types)
        num_prompt_tokens = encoding.num_prompt_tokens + num_pads if encoding.num_prompt_tokens else 0
        return TextEncoding(pads + encoding.token_ids, types + encoding.type_ids, num_prompt_tokens)

    def place_entry(self, text: str, pair: str | None = None, *, prompt: str = "") -> PlacedTokens:
        """What encode_entry gives for a whole text or pair, and where each token comes from."""
        parts = [self._core.encode(one, add_special_tokens=False) for one in (prompt + text, pair) if one is not None]
        encoding = self._core.post_process(parts[0], parts[1] if pair is not None else None, add_special_tokens=True)
        return placed(encoding, len(prompt), self._prompt_length(prompt) if prompt else 0)

    def place(self, text: str, *, add_special_tokens: bool = True) -> PlacedTokens:
        """What encode gives, and where each token comes from."""
        tokens = placed(self._core.encode(text, add_special_tokens=add_special_tokens), 0, 0)
        is_doubled = self.bos_token_id is not None and tokens.token_ids[:2] == [self.bos_token_id] * 2
        return tokens.without_first() if add_special_tokens and is_doubled else tokens

    def special_id(self, name: str) -> int | None:
        """The id of a special token by the name of its role, such as mask_token; None: there is none."""
        return self._id_of(name)

    def shorten(self, text: str, max_tokens: int) -> str:
        """The text up to the end of so many of its tokens."""
        encoding = self._core.encode(text, add_special_tokens=False)
        return text if len(encoding) <= max_tokens else text[: encoding.offsets[max_tokens - 1][1]]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of a whole sequence; ids without a token give nothing."""
        return self._core.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(
        self, *, skip_special_tokens: bool = True, after: Sequence[int] = (), shown: Collection[str] = ()
    ) -> IncrementalDetokenizer:
        """An incremental decoder for what follows the tokens `after`: its text is decode(both) - decode(after).

        `shown` are special tokens that are not skipped.
        """
        skipped = self.table.skipped_ids(shown) if skip_special_tokens else frozenset[int]()
        detokenizer: IncrementalDetokenizer
        if self.table.is_byte_level:
            detokenizer = ByteLevelDetokenizer(self.table, skipped_ids=skipped)
        else:
            detokenizer = WindowDetokenizer(self._core, skipped_ids=skipped)
        for token_id in self.table.context_of(after, skip_special_tokens=skip_special_tokens):
            detokenizer.push(token_id)
        return detokenizer

    def decode_each(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> list[str]:
        """What each token adds to the text of those before it; a character counts for its last token."""
        detokenizer = self.detokenizer(skip_special_tokens=skip_special_tokens)
        return [detokenizer.push(token_id) for token_id in token_ids]

    def decode_after(self, prompt: Sequence[int], token_ids: Sequence[int]) -> str:
        """Text of tokens that continue a prompt."""
        detokenizer = self.detokenizer(after=prompt)
        return "".join([*map(detokenizer.push, token_ids), detokenizer.flush()])

    def token_string(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token; empty for an id without one."""
        return (self._core.id_to_token(token_id) or "") if 0 <= token_id < 2**32 else ""

    def check_spellings(self) -> None:
        """Raises ConfigError where what a token writes depends on those beside it."""
        if not self._is_spelling_checked:
            check_spellings(self._core, self.table)
            self._is_spelling_checked = True

    def spellings(self, num_tokens: int) -> list[bytes]:
        """What each of the first ids adds to a text. Raises ConfigError where a token by itself does not tell."""
        return token_spellings(self._core, self.table, num_tokens)

    def tokens_beyond(self, vocab_size: int) -> list[str]:
        """The tokens whose ids an embedding of `vocab_size` rows does not have, in the order of their ids."""
        vocab = self._core.get_vocab(with_added_tokens=True)
        return sorted((token for token, token_id in vocab.items() if token_id >= vocab_size), key=vocab.__getitem__)

    def _prompt_length(self, prompt: str) -> int:
        """Its tokens, without the special one that may end a text, as sentence-transformers counts them."""
        length = self._prompt_lengths.get(prompt)
        if length is None:
            token_ids = self._core.encode(prompt, add_special_tokens=True).ids
            length = len(token_ids) - (bool(token_ids) and token_ids[-1] in self.table.special_token_ids)
            self._prompt_lengths[prompt] = length
        return length

    def _id_of(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self._core.token_to_id(token)


def _add_tokens(core: tokenizers.Tokenizer, files: TokenizerFiles) -> None:
    """The tokens that tokenizer.json lacks, as transformers adds them: they get the next ids, not those of files."""
    known = {token.content for token in core.get_added_tokens_decoder().values()}
    core.add_tokens([token for token in files.added_tokens if token.content not in known])
    core.encode_special_tokens = files.config.get("split_special_tokens") is True


def _not_taken(core: tokenizers.Tokenizer, files: TokenizerFiles) -> list[str]:
    """Added tokens with another id than files have for them, and chat templates that are not used."""
    others = [name for name in files.chat_templates if name not in ("default", "tool_use")]
    templates = [f"the chat template {name!r} (only 'default' and 'tool_use' are used)" for name in others]
    ids = {text: core.token_to_id(text) for text in files.added_ids}
    return templates + [
        f"{text!r} as id {token_id} (it is {ids[text]})"
        for text, token_id in files.added_ids.items()
        if ids[text] != token_id
    ]


def _fit(lengths: list[int], room: int) -> list[int]:
    """Lengths that fit together, as the tokenizers library cuts `longest_first`: the longer of two gives way first."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    if sum(lengths) <= room:
        return lengths
    shorter = min(min(lengths), room // 2)
    first_is_longer = lengths[0] > lengths[1]
    return [room - shorter, shorter] if first_is_longer else [shorter, room - shorter]


def _lowercase(core: tokenizers.Tokenizer) -> None:
    """Have text made small before anything else is done to it, unless that is done anyway."""
    given = core.normalizer
    steps = [] if given is None else [given]
    if isinstance(given, tokenizers.normalizers.Sequence):
        steps = [given[index] for index in range(len(given))]
    if not any(isinstance(step, tokenizers.normalizers.Lowercase) for step in steps):
        core.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *steps])
