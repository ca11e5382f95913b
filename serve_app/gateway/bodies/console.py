"""What the console asks for once a second, beside what a model's own routes take."""

import msgspec

from serve_app.gateway.bodies.others import HealthBody
from serve_app.types.tensors import TensorSpec


class ConsoleModel(msgspec.Struct, frozen=True):
    """A model that the caller may use, and what it has done through the Gateway replica that answers."""

    name: str
    task: str
    max_model_len: int  # 0: it is not counted in tokens
    takes_text: bool
    inputs: dict[str, TensorSpec]  # of a model that takes tensors
    num_prompt_tokens: int  # since the Gateway replica started, as the three below
    num_output_tokens: int
    num_first_tokens: int  # prompts that have had one
    first_token_sum_s: float  # how long all of them waited for it


class ConsoleState(msgspec.Struct, frozen=True):
    """`GET /console/state`."""

    version: str
    told_s: float  # Unix time, for rates: what has passed since the state before
    gateway: str  # the replica that answers: counters are its own
    has_keys: bool  # whether calls need one
    is_admin: bool  # whether the caller may see /v1/admin/plan
    health: HealthBody
    models: list[ConsoleModel]
