"""The options of `rayshard compress`; no torch."""

import argparse
from pathlib import Path

_SOURCE = "a model's directory"
_TARGET = "where the result is written"


def add_compress_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Its steps, and what each is told."""
    compress = commands.add_parser("compress", help="make a model smaller, and measure what it lost")
    steps = compress.add_subparsers(dest="step", required=True, metavar="STEP")
    quantizing = steps.add_parser("quantize", help="fewer bits for each weight")
    quantizing.add_argument("source", type=Path, metavar="SRC", help=_SOURCE)
    quantizing.add_argument("target", type=Path, metavar="DST", help=_TARGET)
    schemes = ("int8", "int8_weight_only", "int4", "int3", "fp8", "power_of_two")
    quantizing.add_argument("--scheme", required=True, choices=schemes, help="bits of a weight, and of inputs")
    quantizing.add_argument("--group-size", type=int, metavar="N", help="inputs that share a scale; int4 and int3")
    quantizing.add_argument("--embedding", action="store_true", help="the embedding too, in 8 bits")
    quantizing.add_argument("--head", action="store_true", help="the head too")
    quantizing.add_argument(
        "--ignore", action="append", default=[], metavar="NAME", help="a module that stays as it is"
    )
    quantizing.add_argument("--calibration", type=Path, metavar="FILE", help="texts for GPTQ, one on each line")
    quantizing.add_argument("--num-samples", type=int, default=256, metavar="N", help="of the calibration texts")
    quantizing.add_argument(
        "--max-memory-gib",
        type=float,
        metavar="N",
        help="with --calibration: what layers may take, the others wait in files; default: 5 less than free",
    )
    _add_measuring(quantizing, needs_texts=False)
    evaluating = steps.add_parser("eval", help="measure a model beside its original, and write the report")
    place = "a directory, or the URL of an OpenAI-compatible server (http://HOST:PORT/v1)"
    evaluating.add_argument("model", metavar="MODEL", help=place)
    evaluating.add_argument("--original", required=True, metavar="MODEL", help=place)
    evaluating.add_argument("--model-name", metavar="NAME", help="of a server's models; without it, its only one")
    evaluating.add_argument("--original-name", metavar="NAME", help="the same of the original's server")
    evaluating.add_argument("--json", type=Path, metavar="FILE", help="where figures of a URL go; without it, nowhere")
    _add_measuring(evaluating, needs_texts=True)
    pruning, distilling = _add_smaller(steps)
    for parser in (quantizing, evaluating, distilling):
        parser.add_argument("--text-column", default="text", metavar="NAME", help="of a CSV file of labelled texts")
        parser.add_argument("--label-column", default="label", metavar="NAME", help="the same for their labels")
    inspecting = steps.add_parser("inspect", help="what a model consists of, and how it was made")
    inspecting.add_argument("model", type=Path, metavar="MODEL", help="a directory")
    for parser in (quantizing, pruning, distilling, evaluating, inspecting):
        parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch")
    for parser in (quantizing, pruning, distilling):
        parser.add_argument("--overwrite", action="store_true", help="replace a directory that is not empty")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is drawn")


def _add_smaller(
    steps: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    pruning = steps.add_parser("prune", help="fewer layers, heads or MLP channels: a smaller dense model")
    pruning.add_argument("source", type=Path, metavar="SRC", help=_SOURCE)
    pruning.add_argument("target", type=Path, metavar="DST", help=_TARGET)
    pruning.add_argument("--calibration", type=Path, metavar="FILE", help="texts, one on each line")
    pruning.add_argument("--sparsity", type=float, metavar="X", help="plain modules: the share of zeros")
    pruning.add_argument("--layers", type=int, metavar="N", help="how many stay")
    pruning.add_argument("--kv-heads", type=int, metavar="N", help="how many stay, with their query heads")
    pruning.add_argument("--intermediate-size", type=int, metavar="N", help="how many MLP channels stay")
    pruning.add_argument("--num-samples", type=int, default=64, metavar="N", help="texts to measure importance on")
    pruning.add_argument("--healing-steps", type=int, default=0, metavar="N", help="train the result on the source")
    distilling = steps.add_parser("distill", help="train a small model on a large one")
    distilling.add_argument("teacher", type=Path, metavar="TEACHER", help="what is learnt from")
    distilling.add_argument("target", type=Path, metavar="DST", help=_TARGET)
    distilling.add_argument("--student", type=Path, required=True, metavar="PATH", help="a model, or a config.json")
    distilling.add_argument(
        "--texts",
        type=Path,
        required=True,
        metavar="FILE",
        help="what to learn, a text on each line, or a .csv",
    )
    distilling.add_argument("--unlabelled", type=Path, metavar="FILE", help="texts on which only the teacher counts")
    distilling.add_argument("--steps", type=int, default=200, metavar="N", help="of training")
    distilling.add_argument("--batch-tokens", type=int, default=2048, metavar="N", help="tokens of a step")
    distilling.add_argument("--kl-weight", type=float, default=1.0, metavar="X", help="0: the teacher is not asked")
    distilling.add_argument("--temperature", type=float, default=1.0, metavar="X", help="of the divergence")
    distilling.add_argument("--direction", choices=("reverse", "forward"), default="reverse", help="of the divergence")
    distilling.add_argument("--checkpoint", type=Path, metavar="DIR", help="to go on from after an interruption")
    distilling.add_argument("--teacher-url", metavar="URL", help="where the teacher is served; it is not loaded then")
    distilling.add_argument("--teacher-name", metavar="NAME", help="of that server's models; without it, its only one")
    distilling.add_argument("--num-workers", type=int, default=1, metavar="N", help="of Ray Train, on a Ray cluster")
    distilling.add_argument("--storage", metavar="DIR", help="a folder that all nodes reach; for --num-workers")
    for parser in (pruning, distilling):
        parser.add_argument("--learning-rate", type=float, default=1e-3, metavar="X", help="of training")
    return pruning, distilling


def _add_measuring(parser: argparse.ArgumentParser, *, needs_texts: bool) -> None:
    parser.add_argument("--texts", type=Path, required=needs_texts, metavar="FILE", help="measure on them")
    parser.add_argument("--tasks", type=Path, metavar="FILE", help="JSON lines of prompt and answer")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of a sequence to measure on; without it, 512")
    parser.add_argument("--max-sequences", type=int, metavar="N", help="to measure on; without it, all")
    parser.add_argument("--speed", action="store_true", help="measure decoding at batch 1, 8 and 32 too")
