"""Modules as a user would write them, for the tests of what may be served."""

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from serve_app.types.tensors import TensorSpec


def perceptron(num_layers: int = 4, width: int = 6) -> nn.Sequential:
    """A plain nn.Sequential."""
    layers: list[nn.Module] = []
    for _ in range(num_layers):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers)


class Perceptron(nn.Sequential):
    """An nn.Sequential with a name of its own; its inputs are declared in the YAML."""

    def __init__(self, num_layers: int = 4, width: int = 6) -> None:
        super().__init__(*perceptron(num_layers, width))


class MaskedTower(nn.Module):
    """A loop over an nn.ModuleList, with something before it, after it, and a second argument of each part."""

    inputs = {"x": TensorSpec("float32", ("batch", 6)), "mask": TensorSpec("bool", ("batch",))}  # noqa: RUF012
    outputs = {"y": TensorSpec("float32", ("batch", 2)), "kept": TensorSpec("bool", ("batch",))}  # noqa: RUF012

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__()
        self.before = nn.Linear(6, 8)
        self.layers = nn.ModuleList([MaskedPart() for _ in range(num_layers)])
        self.behind = nn.Linear(8, 2)
        self.register_buffer("scale", torch.tensor([1.0, 3.0]))
        self.register_buffer("offset", torch.arange(2, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """x [B, 6], mask [B] bool -> y [B, 2], kept [B] bool."""
        hidden = self.before(x)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return {"y": self.behind(hidden) * self.scale + self.offset, "kept": mask.clone()}


class MaskedPart(nn.Module):
    """Changes the rows that the mask keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, 8], mask [B] bool -> [B, 8]."""
        return torch.where(mask[:, None], hidden + self.linear(hidden).relu(), hidden)


class ManyKinds(nn.Module):
    """Gives back tensors of several dtypes and ranks; has no parameter but one, shared under two names."""

    inputs = {"image": TensorSpec("uint8", ("batch", 3, "height", "width"))}  # noqa: RUF012
    outputs = {  # noqa: RUF012
        "bright": TensorSpec("bool", ("batch", 3, "height", "width")),
        "small": TensorSpec("int8", ("batch",)),
        "half": TensorSpec("bfloat16", ("batch", 3)),
    }

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image [B, 3, H, W] uint8."""
        means = image.float().mean((2, 3))
        return {
            "bright": image > 127,
            "small": means.argmax(-1).to(torch.int8),
            "half": self.second(self.first(means)).to(torch.bfloat16),
        }


class Touchy(nn.Module):
    """Raises, quoting its input, when the input holds a negative number."""

    inputs = {"x": TensorSpec("float32", ("batch", 1))}  # noqa: RUF012
    outputs = {"y": TensorSpec("float32", ("batch", 1))}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1] -> [B, 1]."""
        if bool((x < 0).any()):
            raise ValueError(f"negative: {x.tolist()}")
        return self.parts(x)  # type: ignore[no-any-return]


class Uncuttable(nn.Module):
    """Has no parts that could be found."""

    inputs = Touchy.inputs
    outputs = Touchy.outputs

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 1] -> [B, 1]."""
        return self.linear(x)  # type: ignore[no-any-return]


class TracedPart(nn.Module):
    """Takes its time, and writes down when: a line of index, beginning and end in seconds."""

    def __init__(self, index: int, path: str, seconds: float) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self._index, self._path, self._seconds = index, path, seconds

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 6] -> [B, 6]."""
        begin_s = time.monotonic()
        time.sleep(self._seconds)
        with Path(self._path).open("a") as file:
            file.write(f"{self._index} {begin_s} {time.monotonic()}\n")
        changed: Tensor = self.linear(x)
        return changed


class Traced(nn.Sequential):
    """Two traced parts."""

    def __init__(self, path: str, seconds: float) -> None:
        super().__init__(*[TracedPart(index, path, seconds) for index in range(2)])


class Sized(nn.Sequential):
    """One linear layer of sizes that a YAML gives."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, out_features))


class BagOfWords(nn.Module):
    """A linear model of texts: the sum of each text's token vectors, times a matrix. Two parts."""

    inputs = {  # noqa: RUF012
        "input_ids": TensorSpec("int64", ("tokens",)),
        "lengths": TensorSpec("int64", ("batch",)),
    }
    outputs = {"logits": TensorSpec("float32", ("batch", 3))}  # noqa: RUF012

    def __init__(self, fails_at: str = "") -> None:
        """fails_at: forward or backward of the part that looks up or sums, as in `sum forward`; "": nowhere."""
        super().__init__()
        part, _, direction = fails_at.partition(" ")
        self.look_up = LookUpPart(direction if part == "look_up" else "")
        self.sum_up = SumPart(direction if part == "sum" else "")

    def parts(self) -> list[nn.Module]:
        return [self.look_up, self.sum_up]


class LookUpPart(nn.Module):
    """Token vectors."""

    def __init__(self, fails_in: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 4)
        self._fails_in = fails_in

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """input_ids [T] -> vectors [T, 4]."""
        return {"vectors": break_if(self._fails_in, state["input_ids"], self.embedding(state["input_ids"]))}


class SumPart(nn.Module):
    """Vectors to logits."""

    def __init__(self, fails_in: str) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self._fails_in = fails_in

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """vectors [T, 4], lengths [B] -> logits [B, 3]."""
        texts = torch.split(break_if(self._fails_in, state["input_ids"], state["vectors"]), state["lengths"].tolist())
        return {"logits": self.linear(torch.stack([text.sum(dim=0) for text in texts]))}


def break_if(direction: str, token_ids: Tensor, tensor: Tensor) -> Tensor:
    """The tensor; a text that begins with token 13 breaks there, forward or backward."""

    def raise_secret(_gradient: Tensor) -> None:
        raise ValueError("a secret")

    if token_ids[0] == 13 and direction == "forward":
        raise ValueError("a secret")
    if token_ids[0] == 13 and direction == "backward" and tensor.requires_grad:
        tensor = tensor * 1
        tensor.register_hook(raise_secret)  # type: ignore[no-untyped-call]
    return tensor
