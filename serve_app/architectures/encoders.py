"""The families that embed and classify, and do not generate."""

from dataclasses import replace

from serve_app.architectures.record import Architecture, ConfigKeys, EncoderFacts, Parts, Sizes, TensorCut

_BERT = Architecture(
    sizes=Sizes(
        num_layers=12,
        num_heads=12,
        hidden_size=768,
        intermediate_size=3072,
        vocab_size=30522,
        max_positions=512,
        num_token_types=2,
    ),
    parts=Parts(
        layers="encoder.layer", embedding="embeddings.word_embeddings", embeddings="embeddings", exit=(), head=None
    ),
    tensor_cut=TensorCut(
        plan={
            "encoder.layer.*.attention.self.query": "colwise",
            "encoder.layer.*.attention.self.key": "colwise",
            "encoder.layer.*.attention.self.value": "colwise",
            "encoder.layer.*.attention.output.dense": "rowwise",
            "encoder.layer.*.intermediate.dense": "colwise",
            "encoder.layer.*.output.dense": "rowwise",
        },
        divided={"attention.self": ("num_attention_heads", "all_head_size")},
    ),
    encoder=EncoderFacts(has_inner_pooler=True),
    same_input=(("query", "key", "value"),),
)

_XLM_ROBERTA = replace(_BERT, encoder=EncoderFacts(has_positions_after_padding=True))

_ROBERTA = replace(_XLM_ROBERTA, sizes=replace(_XLM_ROBERTA.sizes, vocab_size=50265))

_DISTILBERT = Architecture(
    sizes=Sizes(
        num_layers=6, num_heads=12, hidden_size=768, intermediate_size=3072, vocab_size=30522, max_positions=512
    ),
    keys=ConfigKeys(
        num_layers=("n_layers", "num_hidden_layers"),
        num_heads=("n_heads", "num_attention_heads"),
        num_kv_heads=(),
        hidden_size=("dim", "hidden_size"),
        intermediate_size=("hidden_dim", "intermediate_size"),
    ),
    parts=replace(_BERT.parts, layers="transformer.layer"),
    encoder=EncoderFacts(),
    same_input=(("q_lin", "k_lin", "v_lin"),),
)

_MODERNBERT = Architecture(
    sizes=Sizes(
        num_layers=22, num_heads=12, hidden_size=768, intermediate_size=1152, vocab_size=50368, max_positions=8192
    ),
    parts=Parts(embedding="embeddings.tok_embeddings", embeddings="embeddings", exit=("final_norm",), head=None),
    encoder=EncoderFacts(head_pools="as_config"),
)

_DEBERTA_V2 = Architecture(
    sizes=Sizes(
        num_layers=24,
        num_heads=24,
        hidden_size=1536,
        intermediate_size=6144,
        vocab_size=128_100,
        max_positions=512,
        num_token_types=0,
    ),
    parts=replace(_BERT.parts, first_only=("encoder.conv",)),
    encoder=EncoderFacts(is_square=True),
)

ENCODERS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _XLM_ROBERTA,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
    "deberta-v2": _DEBERTA_V2,
}
