"""Tokens that end an answer by the classes of transformers 5.17, for a config.json that names none."""

_FAMILIES: dict[tuple[int, ...], str] = {
    (0,): "falcon_mamba mamba marian rwkv stablelm",
    (1,): (
        "bert-generation bigbird_pegasus deepseek_v3 deepseek_v32 deepseek_v4 gemma gemma2 gemma3_text "
        "gemma3n_text gemma4_text gemma4_unified_text glm4_moe_lite glm_moe_dsa nanochat pegasus "
        "recurrent_gemma vaultgemma xlm"
    ),
    (2,): (
        "apertus aria_text bamba bart big_bird biogpt blenderbot blenderbot-small bloom camembert "
        "data2vec-text deepseek_v2 diffllama ernie4_5 ernie4_5_moe exaone4 falcon_h1 fuyu gpt_neox granite "
        "granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe "
        "hyperclovax inkling_text jamba jetmoe lfm2 lfm2_moe llama llama4_text longcat_flash mamba2 mbart "
        "minicpm3 minimax ministral ministral3 mistral mixtral mvp nemotron_h opt persimmon phi phimoe plbart "
        "prophetnet reformer roberta roberta-prelayernorm seed_oss trocr xglm xlm-roberta xlm-roberta-xl "
        "xlnet xlstm xmod zamba zamba2"
    ),
    (3,): "nemotron",
    (11,): "falcon",
    (53,): "exaone_moe",
    (102,): "git",
    (106,): "zaya",
    (313,): "rembert",
    (31999,): "gpt_neox_japanese",
    (32000,): "phi3",
    (50256,): "codegen gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj starcoder2 whisper",
    (50279,): "olmo olmo2 olmo3 olmoe",
    (50282,): "modernbert-decoder",
    (100257,): "flex_olmo granite_swa olmo_hybrid",
    (120025,): "hy_v4",
    (128001,): "arcee bitnet smollm3 youtu",
    (150024,): "jais2",
    (163586,): "kimi_linear",
    (163691,): "axk1 axk2",
    (200020,): "minimax_m2 minimax_m3_vl_text",
    (255001,): "cohere cohere2 cohere2_moe cohere_compass_text",
    (199999, 200020): "phi4_multimodal",
    (128001, 128008, 128009): "cwm",
    (151329, 151336, 151338): "glm glm4",
}
DEFAULT_END_TOKENS = {model_type: ids for ids, names in _FAMILIES.items() for model_type in names.split()}
