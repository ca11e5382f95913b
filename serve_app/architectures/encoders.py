"""The families that embed and classify, and do not generate."""

from dataclasses import replace

from serve_app.architectures.record import Architecture, ConfigKeys, EncoderFacts, Parts, Sizes, TensorCut

_LLAMA_PLAN = {
    "layers.*.self_attn.q_proj": "colwise",
    "layers.*.self_attn.k_proj": "colwise",
    "layers.*.self_attn.v_proj": "colwise",
    "layers.*.self_attn.o_proj": "rowwise",
}
_GATED_PLAN = _LLAMA_PLAN | {
    "layers.*.mlp.gate_proj": "colwise",
    "layers.*.mlp.up_proj": "colwise",
    "layers.*.mlp.down_proj": "rowwise",
}

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

_ELECTRA = replace(
    _BERT,
    sizes=replace(_BERT.sizes, hidden_size=256, num_heads=4, intermediate_size=1024),
    parts=replace(_BERT.parts, entry=("embeddings_project",)),
    encoder=EncoderFacts(),
)

_XLM_ROBERTA_XL = replace(
    _XLM_ROBERTA,
    sizes=Sizes(
        num_layers=36,
        num_heads=32,
        hidden_size=2560,
        intermediate_size=10240,
        vocab_size=250_880,
        max_positions=514,
        num_token_types=1,
    ),
    parts=replace(_BERT.parts, exit=("encoder.LayerNorm",)),
)

_BERT_GENERATION = replace(
    _BERT,
    sizes=Sizes(
        num_layers=24, num_heads=16, hidden_size=1024, intermediate_size=4096, vocab_size=50358, max_positions=512
    ),
    encoder=EncoderFacts(can_classify=False),
)

_EUROBERT = Architecture(
    sizes=Sizes(
        num_layers=12, num_heads=12, hidden_size=768, intermediate_size=3072, vocab_size=128_256, max_positions=8192
    ),
    parts=Parts(head=None),
    tensor_cut=TensorCut(plan=_GATED_PLAN),
    encoder=EncoderFacts(can_classify=False),
    same_input=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
)

_NOMIC_BERT = Architecture(
    sizes=replace(_BERT.sizes, vocab_size=30528, max_positions=2048),
    parts=replace(_BERT.parts, layers="layers"),
    tensor_cut=TensorCut(plan=_GATED_PLAN),
    encoder=EncoderFacts(can_classify=False),
    same_input=(("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")),
)

_JINA_EMBEDDINGS_V3 = Architecture(
    sizes=Sizes(
        num_layers=24,
        num_heads=16,
        hidden_size=1024,
        intermediate_size=4096,
        vocab_size=250_002,
        max_positions=8194,
        num_token_types=1,
    ),
    parts=replace(_BERT.parts, layers="layers"),
    tensor_cut=TensorCut(plan=_LLAMA_PLAN | {"layers.*.mlp.fc1": "colwise", "layers.*.mlp.fc2": "rowwise"}),
    encoder=EncoderFacts(can_classify=False, has_inner_pooler=True),
    same_input=(("q_proj", "k_proj", "v_proj"),),
)

ENCODERS = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _XLM_ROBERTA,
    "distilbert": _DISTILBERT,
    "modernbert": _MODERNBERT,
    "deberta-v2": _DEBERTA_V2,
    "camembert": replace(_XLM_ROBERTA, sizes=_BERT.sizes),
    "data2vec-text": replace(_XLM_ROBERTA, sizes=_BERT.sizes),
    "electra": _ELECTRA,
    "ernie": replace(_BERT, unserved_keys={"use_task_id": 0}),
    "roberta-prelayernorm": replace(_ROBERTA, parts=replace(_BERT.parts, exit=("LayerNorm",))),
    "xlm-roberta-xl": _XLM_ROBERTA_XL,
    "bert-generation": _BERT_GENERATION,
    "eurobert": _EUROBERT,
    "nomic_bert": _NOMIC_BERT,
    "jina_embeddings_v3": _JINA_EMBEDDINGS_V3,
}
