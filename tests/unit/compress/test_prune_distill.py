"""Pruned models are the model without what was cut; students come nearer to their teachers, and runs go on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity, kl_div

from serve_app.cli.main import main
from serve_app.compress.distill import DistillSettings, distill, divergence
from serve_app.compress.evaluate import compare
from serve_app.compress.importance import measure_importance
from serve_app.compress.local_model import LocalModel
from serve_app.compress.prune import PruneSettings, prune
from serve_app.compress.student import load_trainable, make_student, smaller_config
from serve_app.compress.top_teacher import TopLogprobs, TopTeacher, top_divergence
from serve_app.errors import ConfigError
from tests.quantized_checkpoints import make_model

SEQUENCES = [[5, 9, 17, 250, 3], [44, 1], list(range(30, 71))]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2", tmp_path_factory.mktemp("source") / "model")  # it has biases


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("the cat sat on the mat\nanother line of the same text, somewhat longer\na third one\n" * 4)
    return path


def test_block_influence_is_what_a_layer_changes(tmp_path: Path) -> None:
    idle = make_model("qwen2", tmp_path / "idle")
    state = load_file(str(idle / "model.safetensors"))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        state[f"model.layers.2.{name}.weight"].zero_()
    torch_save(state, idle)
    influence = measure_importance(idle, 4, SEQUENCES).layers
    assert influence.argmin() == 2
    assert influence[2] == pytest.approx(0, abs=1e-9)


def test_layer_by_layer_is_what_the_whole_model_does(source: Path) -> None:
    """Against transformers' own hidden states."""
    model = load_trainable(source).eval()
    with torch.no_grad():
        states = [model(torch.tensor([ids]), output_hidden_states=True).hidden_states for ids in SEQUENCES]
    found = measure_importance(source, 4, SEQUENCES)
    for layer in range(3):  # behind the last, transformers gives what the norm made of it
        pairs = [(state[layer][0].double(), state[layer + 1][0].double()) for state in states]
        expected = torch.cat([1 - cosine_similarity(before, after, dim=-1) for before, after in pairs]).mean()
        assert found.layers[layer] == pytest.approx(expected.item(), rel=1e-4)
    assert found.heads.shape == (4, 2)
    assert found.channels.shape == (4, 64)


def test_layers_that_do_nothing_go_first_and_nothing_is_lost(source: Path, texts: Path, tmp_path: Path) -> None:
    state = load_file(str(source / "model.safetensors"))
    idle = tmp_path / "idle"
    make_model("qwen2", idle)
    for layer in (1, 2):
        for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            state[f"model.layers.{layer}.{name}"].zero_()
    torch_save(state, idle)
    assert prune(idle, tmp_path / "pruned", PruneSettings(num_layers=2), texts) == [0, 3]
    assert json.loads((tmp_path / "pruned" / "config.json").read_text())["num_hidden_layers"] == 2
    ours, whole = (LocalModel(path).logits(SEQUENCES) for path in (tmp_path / "pruned", idle))
    assert torch.allclose(ours, whole, atol=1e-4)


def test_heads_and_channels_that_give_nothing_go_first(source: Path, texts: Path, tmp_path: Path) -> None:
    state = load_file(str(source / "model.safetensors"))
    idle = make_model("qwen2", tmp_path / "idle")
    for layer in range(4):
        state[f"model.layers.{layer}.self_attn.v_proj.weight"][:8] = 0  # the first of two key-value heads
        state[f"model.layers.{layer}.self_attn.v_proj.bias"][:8] = 0
        state[f"model.layers.{layer}.mlp.up_proj.weight"][::2] = 0
    torch_save(state, idle)
    target = tmp_path / "pruned"
    command = ["compress", "prune", str(idle), str(target), "--calibration", str(texts)]
    assert main([*command, "--kv-heads", "1", "--intermediate-size", "32"]) == 0
    config = json.loads((target / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]) == (2, 1, 32)
    ours, whole = (LocalModel(path).logits(SEQUENCES) for path in (target, idle))
    assert torch.allclose(ours, whole, atol=1e-4)
    assert load_trainable(target).config.head_dim == 8  # plain transformers reads it


def torch_save(state: dict[str, torch.Tensor], directory: Path) -> None:
    save_file(state, str(directory / "model.safetensors"), metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "9"], "--layers 9 is outside 1 to 4"),
        (["--kv-heads", "0"], "--kv-heads 0 is outside 1 to 2"),
        ([], "nothing is to be pruned"),
    ],
)
def test_what_cannot_be_pruned_is_told(
    source: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    command = ["compress", "prune", str(source), str(tmp_path / "t"), "--calibration", str(texts), *options]
    assert main(command) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_healing_brings_a_pruned_model_nearer_to_its_source(source: Path, texts: Path, tmp_path: Path) -> None:
    command = ["compress", "prune", str(source), "DST", "--calibration", str(texts), "--layers", "2"]
    for target, steps in (("unhealed", "0"), ("healed", "30")):
        command[3] = str(tmp_path / target)
        assert main([*command, "--healing-steps", steps]) == 0
    original = LocalModel(source, "float32")
    sequences = [original.tokenizer.encode(line) for line in texts.read_text().splitlines()[:3]]
    unhealed, healed = (
        compare(original, LocalModel(tmp_path / target, "float32"), sequences).divergence.kl
        for target in ("unhealed", "healed")
    )
    assert healed < 0.7 * unhealed
    steps = (tmp_path / "healed" / "recipe.yaml").read_text()
    assert steps.index("step: prune") < steps.index("step: distill")


def test_the_divergence_is_torchs_own() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(7, 11, generator=generator), torch.randn(7, 11, generator=generator)
    settings = DistillSettings(temperature=2.0, direction="forward")
    ours, theirs = ((one / 2).log_softmax(-1) for one in (student, teacher))
    expected = kl_div(ours, theirs, log_target=True, reduction="batchmean") * 4
    assert divergence(student, teacher, settings) == pytest.approx(expected.item(), rel=1e-5)
    reverse = kl_div(theirs, ours, log_target=True, reduction="batchmean") * 4
    assert divergence(student, teacher, replace(settings, direction="reverse")) == pytest.approx(
        reverse.item(), rel=1e-5
    )


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(source: Path, tmp_path: Path) -> None:
    settings = DistillSettings(num_steps=60, batch_tokens=32)
    teacher, whole, cut = load_trainable(source), load_trainable(source), load_trainable(source)
    drawn = _Counting(SEQUENCES)
    distill(teacher, whole, drawn, [], settings)
    drawn.left = drawn.num_drawn * 14 // 15  # behind step 50, where it is saved
    with pytest.raises(KeyboardInterrupt):
        distill(teacher, cut, drawn, [], settings, tmp_path / "run")
    resumed = load_trainable(source)
    assert len(distill(teacher, resumed, SEQUENCES, [], settings, tmp_path / "run")) == 10
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    with pytest.raises(ConfigError, match="under other settings"):
        distill(teacher, resumed, SEQUENCES, [], replace(settings, seed=1), tmp_path / "run")


class _Counting(list[list[int]]):
    """Texts that count how often one is drawn, and interrupt whoever draws more than `left`."""

    num_drawn = 0
    left = 10**9

    def __getitem__(self, index: object) -> list[int]:  # type: ignore[override]
        self.num_drawn += 1
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)  # type: ignore[call-overload, no-any-return]


def test_a_student_of_its_teachers_texts_is_written_and_served(source: Path, texts: Path, tmp_path: Path) -> None:
    student = smaller_config(source, tmp_path / "student.json", 2)
    command = [
        "compress",
        "distill",
        str(source),
        str(tmp_path / "t"),
        "--student",
        str(student),
        "--texts",
        str(texts),
    ]
    assert main([*command, "--unlabelled", str(texts), "--steps", "20", "--batch-tokens", "128"]) == 0
    made = LocalModel(tmp_path / "t")
    assert made.spec.num_layers == 2
    assert made.logits(SEQUENCES).shape == (sum(map(len, SEQUENCES)), 320)


@pytest.mark.parametrize("content", ["{", '{"model_type": "no-such"}', '{"model_type": "qwen2", "vocab_size": 7}'])
def test_a_student_that_cannot_be_is_told(
    source: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    student = tmp_path / "student.json"
    student.write_text(content)
    command = [
        "compress",
        "distill",
        str(source),
        str(tmp_path / "t"),
        "--student",
        str(student),
        "--texts",
        str(texts),
    ]
    assert main(command) == 1
    assert "student" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("is_reverse", [True, False])
def test_the_top_tokens_of_a_teacher_are_a_lower_bound_and_all_of_them_are_exact(is_reverse: bool) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 50, dtype=torch.float64), torch.randn(7, 50, dtype=torch.float64)
    settings = DistillSettings(direction="reverse" if is_reverse else "forward")
    exact = divergence(student, teacher, settings)
    bounds = []
    for count in (5, 20, 50):
        top = teacher.log_softmax(dim=-1).topk(count)
        bounds.append(top_divergence(student, TopLogprobs(top.indices, top.values), is_reverse=is_reverse))
    assert 0 < bounds[0] < bounds[1] < exact
    assert bounds[2] == pytest.approx(float(exact), rel=1e-6)


def test_a_student_learns_from_the_top_tokens_alone(source: Path, tmp_path: Path) -> None:
    teacher, student = load_trainable(source), make_student(smaller_config(source, tmp_path / "config.json", 2), 1, 320)
    sequences = [torch.randint(0, 256, (24,)).tolist() for _ in range(4)]
    answers = {}
    for sequence in sequences:
        with torch.no_grad():
            logits = teacher(torch.tensor([sequence])).logits[0, :-1]
        top = logits.log_softmax(dim=-1).topk(20)
        answers[tuple(sequence)] = TopLogprobs(top.indices, top.values)
    settings = DistillSettings(num_steps=200, batch_tokens=96, task_weight=0.0, learning_rate=3e-3)
    losses = distill(TopTeacher(answers), student, [], sequences, settings)
    assert losses[-1] < 0.5 * losses[0]
