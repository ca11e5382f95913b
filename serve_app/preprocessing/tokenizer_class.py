"""What transformers' class of a tokenizer makes of tokenizer.json, by the settings in tokenizer_config.json.

Source: AutoTokenizer and the tokenizers of transformers 5.17, which load torch, as we do not. Many of its classes take
the vocabulary from tokenizer.json and make the rest anew; those of our encoders, and Llama's, are followed.
"""

import base64
import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors

_MARK = "\u2581"
_BERT = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_ROBERTA = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>", "mask": "<mask>"}
_GPT2 = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
_DEFAULT_TOKENS: dict[str, dict[str, str]] = {  # the keys without "_token"
    "BertTokenizer": _BERT,
    "MPNetTokenizer": {**_ROBERTA, "unk": "[UNK]"},
    "RobertaTokenizer": _ROBERTA,
    "XLMRobertaTokenizer": _ROBERTA,
    "GPT2Tokenizer": _GPT2,
    "GPTNeoXTokenizer": {**_GPT2, "pad": "<|padding|>"},
    "LlamaTokenizer": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
    "GemmaTokenizer": {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"},
    "Qwen2Tokenizer": {"eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"},
}
_MODEL_TYPES = {  # of each class: where a checkpoint names none
    "BertTokenizer": "bert convbert distilbert electra ernie layoutlm megatron-bert nezha nomic_bert squeezebert",
    "MPNetTokenizer": "mpnet",
    "RobertaTokenizer": "data2vec-text ibert longformer roberta roberta-prelayernorm",
    "XLMRobertaTokenizer": "jina_embeddings_v3 xlm-roberta xmod",
    "GPT2Tokenizer": "codegen gpt2 gpt_neo gptj jais2 opt phi starcoder2",
    "GPTNeoXTokenizer": "falcon_mamba gpt_neox mamba mamba2 mpt olmo olmoe rwkv xlstm",
    "GemmaTokenizer": "gemma gemma2 gemma3 gemma3_text gemma3n_text recurrent_gemma t5gemma zaya",
    "Qwen2Tokenizer": "qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next",
}
_CLASS_OF_TYPE = {one: name for name, types in _MODEL_TYPES.items() for one in types.split()}
_AS_FILE_NAMES = """
deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 ernie4_5 ernie4_5_moe flex_olmo glm glm4 glm4_moe glm4_moe_lite
gpt_bigcode granite granitemoe granitemoehybrid granitemoeshared hyperclovax internlm2 jamba kimi_linear mimo_v2_flash
minicpm3 minimax_m2 ministral ministral3 mistral mixtral modernbert nemotron nystromformer olmo2 olmo3 olmo_hybrid
persimmon phi3 phimoe stablelm xlm-roberta-xl
"""
_AS_FILE_TYPES = frozenset(_AS_FILE_NAMES.split())  # tokenizer.json is taken as it is, whatever class is named
_AS_FILE = ("", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
_SAME_AS_BERT = ("DistilBert", "Electra", "ConvBert", "MobileBert", "DPRQuestionEncoder", "DPRContextEncoder")
_ALIASES = {f"{name}Tokenizer": "BertTokenizer" for name in _SAME_AS_BERT}
_CASE_SETTINGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_LOWERING = ("BertTokenizer", "MPNetTokenizer")
_SPACING = ("GPT2Tokenizer", "GPTNeoXTokenizer", "LlamaTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer")


def tokenizer_class(config: Mapping[str, Any], model_config: Mapping[str, Any]) -> str:
    """The class that AutoTokenizer chooses by both files; empty: tokenizer.json is taken as it is."""
    named = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    own = str(named).removesuffix("Fast") if named else ""
    model_type = str(model_config.get("model_type", ""))
    registered = _CLASS_OF_TYPE.get(model_type, "")
    if model_type in _AS_FILE_TYPES or own in _AS_FILE[1:]:
        return ""
    if not own or model_type == "qwen2":  # whose files often name another one
        return registered
    return _ALIASES.get(own, own)


def default_tokens(class_name: str) -> dict[str, str]:
    """The special tokens that a class has where the files name none: "bos_token" -> "<s>"."""
    return {f"{name}_token": token for name, token in _DEFAULT_TOKENS.get(class_name, {}).items()}


def remake(core: Tokenizer, class_name: str, config: Mapping[str, Any]) -> None:
    """Replace the parts of tokenizer.json that the class makes anew; its special tokens are added afterwards."""
    if class_name in _LOWERING:
        core.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=config.get("tokenize_chinese_chars", True),
            strip_accents=config.get("strip_accents"),
            lowercase=config.get("do_lower_case", True),
        )
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        core.decoder = decoders.WordPiece(prefix="##")
    elif class_name in ("GPT2Tokenizer", "GPTNeoXTokenizer", "RobertaTokenizer"):
        if isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel):
            core.pre_tokenizer.add_prefix_space = bool(config.get("add_prefix_space", False))
    elif class_name == "XLMRobertaTokenizer":
        scheme = "always" if config.get("add_prefix_space", True) else "never"
        block = pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme=scheme)
        core.normalizer = _precompiled(core)
        core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), block])
        core.decoder = decoders.Metaspace(replacement=_MARK, prepend_scheme=scheme)
    elif class_name == "LlamaTokenizer" and _has_byte_fallback(core):  # others only bear its name
        _remake_llama(core, config)


def remake_ends(core: Tokenizer, class_name: str, special_tokens: Mapping[str, str]) -> None:
    """Replace what stands around a text, for the classes that make it anew."""

    def token(name: str) -> tuple[str, int]:
        text = special_tokens[f"{name}_token"]
        return text, core.token_to_id(text) or 0

    if class_name == "BertTokenizer":
        cls, sep = token("cls"), token("sep")
        single = f"{cls[0]}:0 $A:0 {sep[0]}:0"
        core.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} $B:1 {sep[0]}:1", special_tokens=[cls, sep]
        )
    elif class_name in ("MPNetTokenizer", "RobertaTokenizer"):
        core.post_processor = processors.RobertaProcessing(token("sep"), token("cls"), True, False)
    elif class_name == "XLMRobertaTokenizer":
        bos, eos = token("bos"), token("eos")
        core.post_processor = processors.TemplateProcessing(
            single=[bos[0], "$A", eos[0]],
            pair=[bos[0], "$A", eos[0], eos[0], "$B", eos[0]],
            special_tokens=[bos, eos],
        )
    elif class_name == "GPTNeoXTokenizer" or core.post_processor is None:
        core.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


def not_followed(class_name: str, config: Mapping[str, Any], core: Tokenizer) -> list[str]:
    """The settings that change tokens and are not done here, as messages name them."""
    settings = []
    if class_name and class_name not in _LOWERING:
        settings += [name for name in (*_CASE_SETTINGS, "keep_accents") if config.get(name) is not None]
    is_done = class_name in _SPACING and (
        class_name[:3] != "GPT" or isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel)
    )
    if class_name and config.get("add_prefix_space") is not None and not is_done:
        settings.append("add_prefix_space")
    if config.get("truncation_side") == "left":
        settings.append("truncation_side")
    named = [f"{name}={config[name]!r} of {class_name or 'its class'}" for name in settings]
    auto_map = config.get("auto_map")
    if auto_map and (not isinstance(auto_map, dict) or auto_map.get("AutoTokenizer")):
        named.append("auto_map (code of its own, which is not run)")
    return named


def _remake_llama(core: Tokenizer, config: Mapping[str, Any]) -> None:
    is_prefixed = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if is_prefixed else "never"
    steps = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme=scheme, split=False)
    core.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if is_prefixed else steps)


def _has_byte_fallback(core: Tokenizer) -> bool:
    return core.decoder is not None and b'"ByteFallback"' in core.decoder.__getstate__()


def _precompiled(core: Tokenizer) -> normalizers.Normalizer | None:
    """The one step of a normalizer that comes from sentencepiece."""
    if core.normalizer is None:
        return None
    state = json.loads(core.normalizer.__getstate__())
    for step in state.get("normalizers", [state]):
        if step.get("type") == "Precompiled":
            return normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"]))
    return None
