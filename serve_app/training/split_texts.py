"""The rows of a CSV file before they are trained on: their labels, two parts, and a vocabulary; no torch."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from serve_app.config.training import TrainingSettings
from serve_app.errors import ConfigError
from serve_app.training.csv_rows import LabelledText, labels_of, split_rows
from serve_app.training.vocabulary import NUM_SPECIAL, make_tokenizer, unknown_share

MAX_UNKNOWN_SHARE = 0.05  # of tokens; what is above is worth a warning


@dataclass(frozen=True, slots=True)
class SplitTexts:
    """Rows to train on and to validate on, and the vocabulary of the former."""

    labels: list[str]  # in the order of the model's outputs
    training: list[LabelledText]
    validation: list[LabelledText]
    tokenizer: Tokenizer


def split_texts(rows: list[LabelledText], settings: TrainingSettings) -> SplitTexts:
    """Rows made ready. Raises ConfigError for rows that cannot be split, or hold no word that comes often enough."""
    labels = labels_of(rows)
    training, validation = split_rows(rows, settings.validation_share, settings.seed)
    tokenizer = make_tokenizer(
        (row.text for row in training), min_frequency=settings.min_frequency, max_size=settings.max_vocabulary
    )
    if tokenizer.get_vocab_size() <= NUM_SPECIAL:
        raise ConfigError(
            f"no word comes {settings.min_frequency} times or more in the {len(training)} texts to train on, so the "
            "vocabulary is empty; give more texts, or a lower --min-frequency"
        )
    return SplitTexts(labels, training, validation, tokenizer)


def unknown_warning(tokenizer: Tokenizer, rows: list[LabelledText], which: str) -> str | None:
    """What to say when many tokens of rows are not in the vocabulary; None: nothing."""
    share = unknown_share(tokenizer, [row.text for row in rows])
    if share <= MAX_UNKNOWN_SHARE:
        return None
    return (
        f"warning: {share:.1%} of the tokens of the {len(rows)} {which} rows are not in the vocabulary, and look alike "
        "to the model; train on more texts like them, or with a lower --min-frequency"
    )
