"""The settings of a training: what is refused, and what is said then."""

from dataclasses import replace

import pytest

from serve_app.config.training import TrainingSettings, check_training
from serve_app.errors import ConfigError

REFUSED = [
    ("max_epochs", 0, "--max-epochs 0 cannot be; give 1 or more"),
    ("batch_size", 0, "--batch-size 0 cannot be; give 1 or more"),
    ("batch_size", -3, "--batch-size -3 cannot be; give 1 or more"),
    ("dropout", 2.0, "--dropout 2 cannot be; give less than 1"),
    ("dropout", -0.1, "--dropout -0.1 cannot be; give 0 or more"),
    ("word_dropout", 1.0, "--word-dropout 1 cannot be; give less than 1"),
    ("learning_rate", 0.0, "--learning-rate 0 cannot be; give more than 0"),
    ("learning_rate", float("nan"), "--learning-rate nan cannot be; give more than 0"),
    ("learning_rate", float("inf"), "--learning-rate inf cannot be; give more than 0"),
    ("validation_share", 1.0, "--validation-share 1 cannot be; give 0.5 or less"),
    ("validation_share", 0.99, "--validation-share 0.99 cannot be; give 0.5 or less"),
    ("validation_share", 0.0, "--validation-share 0 cannot be; give more than 0"),
    ("embedding_dim", 0, "--embedding-dim 0 cannot be; give 1 or more"),
    ("hidden_size", 10**9, "--hidden-size 1e+09 cannot be; give 16384 or less"),
    ("patience", 0, "--patience 0 cannot be; give 1 or more"),
    ("min_frequency", 0, "--min-frequency 0 cannot be; give 1 or more"),
    ("max_vocabulary", 2, "--max-vocabulary 2 cannot be; give 3 or more"),
    ("seed", -1, "--seed -1 cannot be; give 0 or more"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_a_value_that_nothing_can_be_trained_with_is_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_training(replace(TrainingSettings(), **{name: value}), 1)  # type: ignore[arg-type]  # floats for ints
    assert refused.value.message == message


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        check_training(TrainingSettings(max_epochs=0, dropout=1.0), 0)
    told = refused.value.message.split("\n")
    assert [line.split(" cannot")[0] for line in told] == ["--dropout 1", "--max-epochs 0", "--threads 0"]


def test_the_defaults_are_within_their_bounds() -> None:
    check_training(TrainingSettings(), 1)
