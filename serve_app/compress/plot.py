"""Size against quality as an SVG picture (https://www.w3.org/TR/SVG2/), for report.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 150, 20, 50  # margins; names stand right of their points
_NUM_TICKS = 5


@dataclass(frozen=True, slots=True)
class Point:
    """One model."""

    name: str
    num_bytes: int
    value: float  # of what is measured
    is_subject: bool = False  # the model that the report is of


def plot_sizes(points: Sequence[Point], quantity: str) -> str:
    """A scatter plot: megabytes to the right, the quantity upwards, both from zero."""
    largest_mb = max(point.num_bytes for point in points) / 1e6 or 1.0
    largest = max(point.value for point in points) or 1.0
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def place(num_mb: float, value: float) -> tuple[float, float]:
        return _LEFT + width * num_mb / largest_mb, _TOP + height * (1 - value / largest)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<path d="M{_LEFT} {_TOP}V{_TOP + height}H{_LEFT + width}" fill="none" stroke="black"/>',
        f'<text x="{_LEFT + width / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">MB</text>',
        f'<text x="15" y="{_TOP + height / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 15 {_TOP + height / 2:.0f})">{escape(quantity)}</text>',
    ]
    for index in range(_NUM_TICKS + 1):
        num_mb, value = largest_mb * index / _NUM_TICKS, largest * index / _NUM_TICKS
        x, y = place(num_mb, value)
        lines.append(f'<text x="{x:.1f}" y="{_TOP + height + 18}" text-anchor="middle">{num_mb:.3g}</text>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        lines.append(f'<path d="M{_LEFT} {y:.1f}H{_LEFT + width}" stroke="#ddd"/>')
    for point in points:
        x, y = place(point.num_bytes / 1e6, point.value)
        colour = "#c33" if point.is_subject else "#357"
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
        lines.append(f'<text x="{x + 8:.1f}" y="{y - 6:.1f}" fill="{colour}">{escape(point.name)}</text>')
    return "\n".join([*lines, "</svg>", ""])
