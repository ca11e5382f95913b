"""A plan as an SVG picture (https://www.w3.org/TR/SVG2/): one bar for each device, of what it holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from serve_app.planning.batch_plan import BatchPlan
from serve_app.planning.memory_plan import MemoryPlan, ShardMemory
from serve_app.planning.model_plan import ModelPlan

_WIDTH, _LEFT, _RIGHT = 760, 150, 40
_ROW, _BAR, _TITLE, _LEGEND = 24, 16, 34, 30  # heights
_KINDS = {"weights": "#35507a", "KV cache": "#5b9a8b", "activations": "#d9a441", "reserve": "#a9a9a9"}


@dataclass(frozen=True, slots=True)
class _Bar:
    label: str
    device_bytes: int
    limit_bytes: int  # that it may take of the device
    sizes: tuple[int, ...]  # bytes, in the order of _KINDS


def draw_plans(plans: Sequence[ModelPlan | BatchPlan]) -> str:
    """All models below each other; a line marks what each device may hold. Models without a split are left out."""
    drawn = [plan for plan in plans if plan.memory is not None]
    height, lines = _LEGEND, _legend()
    for plan in drawn:
        lines += _model(plan, height)
        height += _TITLE + _ROW * len(_bars(plan))
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height + 10}" font-family="sans-serif" '
    background = f'<rect width="{_WIDTH}" height="{height + 10}" fill="white"/>'
    return "\n".join([f'{frame}font-size="12">', background, *lines, "</svg>", ""])


def _legend() -> list[str]:
    lines = []
    for index, (kind, colour) in enumerate(_KINDS.items()):
        x = _LEFT + 120 * index
        lines.append(f'<rect x="{x}" y="9" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 17}" y="19">{kind}</text>')
    return lines


def _model(plan: ModelPlan | BatchPlan, top: int) -> list[str]:
    memory = plan.memory
    assert memory is not None
    bars = _bars(plan)
    largest = max(max(bar.device_bytes, sum(bar.sizes)) for bar in bars)
    scale = (_WIDTH - _LEFT - _RIGHT) / largest
    kinds = {f"{one.name} ({one.memory_bytes / 2**30:.1f} GiB)": 0 for one in memory.stage_devices or [plan.device]}
    title = f"{plan.config.name} on {', '.join(kinds)}{'' if not plan.problems else ': does not fit'}"
    lines = [f'<text x="10" y="{top + 22}" font-weight="bold">{escape(title)}</text>']
    for index, bar in enumerate(bars):
        y = top + _TITLE + _ROW * index
        lines.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label)}</text>')
        x = float(_LEFT)
        for size, colour in zip(bar.sizes, _KINDS.values(), strict=True):
            lines.append(f'<rect x="{x:.1f}" y="{y}" width="{size * scale:.1f}" height="{_BAR}" fill="{colour}"/>')
            x += size * scale
        whole = bar.device_bytes * scale
        lines.append(f'<rect x="{_LEFT}" y="{y}" width="{whole:.1f}" height="{_BAR}" fill="none" stroke="black"/>')
        limit = _LEFT + bar.limit_bytes * scale
        lines.append(f'<path d="M{limit:.1f} {y - 3}V{y + _BAR + 3}" stroke="#c33" stroke-dasharray="3 2"/>')
    return lines


def _bars(plan: ModelPlan | BatchPlan) -> list[_Bar]:
    """One for each device; shards of a node that share its memory lie in one."""
    memory = plan.memory
    assert memory is not None
    if memory.num_on_device == 1:
        return [_bar_of(plan, memory, one) for one in memory.shards]
    step = memory.num_on_device
    groups = [memory.shards[first : first + step] for first in range(0, len(memory.shards), step)]
    return [
        _Bar(f"node {index}: {len(one)} shards", memory.device_bytes, memory.share_bytes, _sizes(one))
        for index, one in enumerate(groups)
    ]


def _bar_of(plan: ModelPlan | BatchPlan, memory: MemoryPlan, one: ShardMemory) -> _Bar:
    device_bytes = plan.device_of(one.shard.stage).memory_bytes
    label = f"stage {one.shard.stage} rank {one.shard.rank}"
    return _Bar(label, device_bytes, memory.share_of(one.shard), _sizes([one]))


def _sizes(shards: Sequence[ShardMemory]) -> tuple[int, ...]:
    return (
        sum(one.weights_bytes for one in shards),
        sum(one.kv_cache_bytes for one in shards),
        sum(one.activation_bytes for one in shards),
        sum(one.reserve_bytes for one in shards),
    )
