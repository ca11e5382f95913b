"""What a model's files say of its texts and answers, read as the server does: for its start and for `validate`."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from serve_app.checkpoints.generation_config import EndTokens, read_end_tokens, read_generation_defaults
from serve_app.preprocessing.answers.formats import choose_reasoning_format, choose_tool_format
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.generation import SamplingDefaults

_MAX_NAMED = 4


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What is told of a model's texts before any comes."""

    warnings: tuple[str, ...] = ()  # it is served all the same


@dataclass(frozen=True, slots=True)
class AnswerFacts(TextFacts):
    """What is told of the answers of a model that generates."""

    end_token_ids: frozenset[int] = frozenset()
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)  # of requests that do not say
    tool_parser: str | None = None  # the name of the format of calls; None: requests can have no tools
    reasoning_parser: str | None = None  # the name of the format of reasoning; None: none is looked for
    lines: tuple[str, ...] = ()  # all of it, for people


def read_text_facts(directory: Path, vocab_size: int) -> TextFacts:
    """Of a model whose embedding has `vocab_size` rows. Raises ConfigError for a tokenizer that cannot be read."""
    tokenizer = _load(directory)
    return TextFacts() if tokenizer is None else TextFacts(_warnings(tokenizer, vocab_size))


def read_answer_facts(
    directory: Path,
    vocab_size: int,
    *,
    has_defaults: bool,
    tool_parser: str = "auto",
    reasoning_parser: str = "auto",
) -> AnswerFacts:
    """Of a model that generates; `has_defaults`: generation_config.json's sampling settings count. ConfigError."""
    tokenizer = _load(directory)
    tools = choose_tool_format(tool_parser, None if tokenizer is None else tokenizer.tool_template)
    reasoning = choose_reasoning_format(reasoning_parser, None if tokenizer is None else tokenizer.chat_template)
    ends = read_end_tokens(directory, vocab_size)
    end_token_ids = _end_token_ids(ends, tokenizer, vocab_size)
    lines, warnings = (
        [_end_line(end_token_ids, tokenizer)],
        [f"{one} is not a token of the model" for one in ends.outside],
    )
    sampling = SamplingDefaults()
    if has_defaults:
        defaults = read_generation_defaults(directory)
        sampling = defaults.sampling
        given = [
            f"{one.name} {getattr(sampling, one.name):g}" for one in fields(sampling) if _is_set(sampling, one.name)
        ]
        if given:
            lines.append(f"requests that do not say get {', '.join(given)}, as generation_config.json has them")
        if defaults.not_done:
            warnings.append(f"generation_config.json asks for {', '.join(defaults.not_done)}, which is not done here")
    if tokenizer is not None:
        warnings += _warnings(tokenizer, vocab_size)
    if tools is not None:
        lines.append(f"calls of tools are read as tool_parser {tools} has them")
    if reasoning is not None:
        lines.append(f"reasoning is told from content as reasoning_parser {reasoning} has it")
    return AnswerFacts(tuple(warnings), end_token_ids, sampling, tools, reasoning, tuple(lines))


def _load(directory: Path) -> Tokenizer | None:
    return Tokenizer.load(directory) if (directory / "tokenizer.json").is_file() else None


def _end_token_ids(ends: EndTokens, tokenizer: Tokenizer | None, vocab_size: int) -> frozenset[int]:
    """Of all files together. What only a class has by default counts where the tokenizer knows it as special."""
    token_ids = set(ends.token_ids)
    if tokenizer is not None:
        token_ids |= set(ends.class_default) & tokenizer.table.special_tokens.keys()
        own = tokenizer.eos_token_id
        token_ids |= {own} if own is not None and own < vocab_size else set()
    return frozenset(token_ids)


def _end_line(token_ids: frozenset[int], tokenizer: Tokenizer | None) -> str:
    if not token_ids:
        return "no token ends an answer: it has as many as max_tokens says"
    spelled = {one: "" if tokenizer is None else tokenizer.token_string(one) for one in sorted(token_ids)}
    named = [f"{text!r} (id {one})" if text else f"id {one}" for one, text in spelled.items()]
    return f"an answer ends at {', '.join(named)}"


def _is_set(sampling: SamplingDefaults, name: str) -> bool:
    return getattr(sampling, name) is not None


def _warnings(tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    unlike = [f"the tokenizer's files ask for {one}, which is not done here" for one in tokenizer.not_followed]
    return (*unlike, *_rowless(tokenizer, vocab_size))


def _rowless(tokenizer: Tokenizer, vocab_size: int) -> tuple[str, ...]:
    tokens = tokenizer.tokens_beyond(vocab_size)
    if not tokens:
        return ()
    named = ", ".join(map(repr, tokens[:_MAX_NAMED])) + (", …" if len(tokens) > _MAX_NAMED else "")
    number = "1 token" if len(tokens) == 1 else f"{len(tokens)} tokens"
    return (f"the tokenizer gives {number} beyond vocab_size={vocab_size} ({named}); texts with them are refused",)
