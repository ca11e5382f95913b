"""Default end tokens are those of transformers' classes."""

from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from serve_app.architectures.end_tokens import DEFAULT_END_TOKENS


def test_end_tokens_are_what_the_classes_of_transformers_have() -> None:
    causal = {config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    wrong = {}
    for model_type in causal.intersection(CONFIG_MAPPING) - {"musicgen", "musicgen_melody"}:  # made of other configs
        found = getattr(CONFIG_MAPPING[model_type](), "eos_token_id", None)
        expected = () if found is None else tuple(found) if isinstance(found, list) else (found,)
        if DEFAULT_END_TOKENS.get(model_type, ()) != expected:
            wrong[model_type] = expected
    assert wrong == {}
