"""Students: how they are made, trained on a teacher, and written to directories."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from serve_app.checkpoints.checkpoint_json import read_json
from serve_app.checkpoints.quality_gate import sha256_of
from serve_app.compress.artifact import copy_text_files, new_directory, save_state, write_json
from serve_app.compress.distill import DistillSettings, Workers, distill
from serve_app.compress.evaluate import NUM_TOP
from serve_app.compress.quantize import read_quantizable
from serve_app.compress.recipe import write_recipe
from serve_app.compress.remote_model import RemoteModel
from serve_app.compress.texts import read_texts, sequences_of
from serve_app.compress.top_teacher import TopTeacher
from serve_app.errors import ConfigError
from serve_app.models.torch_dtypes import TORCH_DTYPES
from serve_app.preprocessing.tokenizer import Tokenizer

_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """With labels, and without: those count by the teacher alone."""

    labelled: Path
    unlabelled: Path | None = None


@dataclass(frozen=True, slots=True)
class Learnt:
    """The result of a lesson."""

    state: dict[str, Tensor]  # the student's, float32
    losses: list[float]  # of the steps that were taken


@dataclass(frozen=True, slots=True)
class Lesson:
    """All that a worker needs: it loads the models itself, from folders that it reaches."""

    teacher: Path
    student_source: Path
    vocab_size: int
    labelled: list[list[int]]
    unlabelled: list[list[int]]
    settings: DistillSettings
    checkpoint: Path | None
    answers: TopTeacher | None = None  # of a teacher that is served elsewhere; None: it is loaded

    def student(self) -> PreTrainedModel:
        """Before it has learnt. Raises ConfigError."""
        return make_student(self.student_source, self.settings.seed, self.vocab_size)

    def learn(self, workers: Workers | None = None) -> tuple[PreTrainedModel, list[float]]:
        """The student, and the losses, in this process, which may be one of several. Raises ConfigError."""
        model = self.student()
        asked: PreTrainedModel | TopTeacher | None = self.answers
        if asked is None and self.settings.kl_weight:
            asked = load_trainable(self.teacher)
        losses = distill(asked, model, self.labelled, self.unlabelled, self.settings, self.checkpoint, workers)
        return model, losses


def train_student(
    teacher: Path,
    student: Path,
    target: Path,
    texts: TrainingTexts,
    settings: DistillSettings,
    *,
    checkpoint: Path | None = None,
    can_replace: bool = False,
    run: Callable[[Lesson], Learnt] | None = None,
    served: RemoteModel | None = None,
) -> list[float]:
    """Train a student (a model's directory, or a config.json) and write it; returns the losses.

    `run` trains elsewhere than in this process. `served` answers for the teacher, whose weights are not loaded then.
    Raises ConfigError.
    """
    if served is not None and settings.temperature != 1.0:
        raise ConfigError(f"--temperature {settings.temperature} has no effect on a served teacher; leave it out")
    spec = read_quantizable(teacher)
    tokenizer = Tokenizer.load(teacher)
    labelled = list(sequences_of(read_texts(texts.labelled), tokenizer, _MAX_TOKENS))
    unlabelled: list[list[int]] = []
    if texts.unlabelled is not None:
        unlabelled = list(sequences_of(read_texts(texts.unlabelled), tokenizer, _MAX_TOKENS))
    folder = None if checkpoint is None else checkpoint.absolute()  # workers have other working directories
    answers = None
    if served is not None:
        sequences = [*labelled, *unlabelled]
        found = served.top_logprobs(sequences, spec.vocab_size)
        answers = TopTeacher({tuple(one): top for one, top in zip(sequences, found, strict=True)})
    places = (teacher.absolute(), student.absolute())
    lesson = Lesson(*places, spec.vocab_size, labelled, unlabelled, settings, folder, answers)
    if run is None:
        model, losses = lesson.learn()
    else:
        model = lesson.student()  # its mistakes are reported here, not by a worker
        learnt = run(lesson)
        model.load_state_dict(learnt.state)
        losses = learnt.losses
    dtype = TORCH_DTYPES[spec.dtype]
    with new_directory(target, can_replace=can_replace, needed_bytes=spec.num_bytes) as staging:
        state = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            state.pop("lm_head.weight", None)
        save_state(staging, state)
        config = model.config.to_dict() | {"dtype": spec.dtype, "architectures": [type(model).__name__]}
        write_json(staging / "config.json", config)
        copy_text_files(teacher, staging)
        done = {**asdict(settings), "teacher": teacher.name, "labelled_sha256": sha256_of(texts.labelled)}
        if served is not None:
            done["teacher_top_logprobs"] = NUM_TOP
        if texts.unlabelled is not None:
            done["unlabelled_sha256"] = sha256_of(texts.unlabelled)
        write_recipe(staging, student if student.is_dir() else teacher, "distill", done)
    return losses


def make_student(source: Path, seed: int, vocab_size: int) -> PreTrainedModel:
    """A pruned model's weights, or random ones by a config.json; float32. Raises ConfigError."""
    if source.is_dir():
        _check_vocabulary(read_quantizable(source).vocab_size, vocab_size)
        return load_trainable(source)
    if not source.is_file():
        raise ConfigError(f"--student {source} is neither a model's directory nor a config.json; give one of them")
    content = read_json(source)
    try:
        config = AutoConfig.for_model(**content)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"--student {source} is not a config of a model ({error}); correct it") from error
    _check_vocabulary(getattr(config, "vocab_size", None), vocab_size)  # before anything is made of it
    torch.manual_seed(seed)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return made


def _check_vocabulary(own: int | None, vocab_size: int) -> None:
    if own != vocab_size:
        raise ConfigError(f"the student has vocab_size={own}, its teacher {vocab_size}; they must be one")


def load_trainable(directory: Path) -> PreTrainedModel:
    """The whole model in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return model.eval()


def smaller_config(teacher: Path, target: Path, num_layers: int) -> Path:
    """Write the teacher's config.json with fewer layers."""
    config = json.loads((teacher / "config.json").read_bytes())
    config["num_hidden_layers"] = num_layers
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:num_layers]
    target.write_text(json.dumps(config))
    return target
