"""Names of the files that sentence-transformers writes beside a model's own."""

MODULES_FILE = "modules.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"  # of the whole model
TRANSFORMER_CONFIGS = (  # of the Transformer module, beside its config.json; the first that is there counts
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
