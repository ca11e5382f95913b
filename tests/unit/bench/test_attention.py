"""The table of what attention of a step takes."""

from bench.attention import BEFORE, COMPILED, LARGEST, POINTS, format_points, kv_bytes, measure


def test_the_share_and_the_growth_are_told() -> None:
    found = {point: {BEFORE: 4.0 * point[1], COMPILED: 0.5 * point[1]} for point in POINTS}
    text = format_points(found, bytes_per_s=kv_bytes(*LARGEST) / 0.25)
    assert "| 32 x 1,024 | 4096.0 | 512.0 | 250.0 |" in text
    assert "compiled ÷ gathered in each layer at 32 x 1,024: 0.12 (aim: 0.25)." in text
    assert "- compiled: from 256 tokens on times 4.0, 16.0, where the bytes read are times 4, 16" in text


def test_all_ways_run() -> None:
    assert all(ms > 0 for ms in measure(2, 32, {}, num_rounds=1).values())
