"""How much work a grammar may take: the same wherever it is checked or compiled."""

from llguidance import LLParserLimits

MAX_GRAMMAR_BYTES = 128 * 1024  # of JSON, a regular expression, choices or a grammar
MAX_PROPERTIES = 500  # of a schema, in all its objects; their names count once more where they are required
MAX_VALUES = 5_000  # of a schema, in all its enums; of choices
MAX_SUBSCHEMAS = 2_000
COMPILE_CPU_S = 0.5  # of a check in its process; a shard's own takes about the same, in a thread


def parser_limits() -> LLParserLimits:
    """About 10 ms for one token's mask at most; most take 10 µs."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_items_in_row=1_000,
        max_lexer_states=30_000,  # of 1 to 2 KiB each, in every grammar that is kept
        max_grammar_size=200_000,
        verbose_errors=False,
    )
