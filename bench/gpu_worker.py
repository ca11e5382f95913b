"""The process of the GPU check that uses the device: it runs the parts in turn, and tells what they find."""

import gc
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
import transformers

from bench import gpu_attention, gpu_attention_speed, gpu_decode, gpu_graphs, gpu_quantized, gpu_sampler
from bench.gpu_device import Bench
from bench.gpu_faults import check_faults
from bench.gpu_long_prompt import check_long_prompt
from bench.gpu_messages import Begun, Ended, Found, Message, Started
from bench.gpu_nccl import check_group
from bench.gpu_parity import measure_parity
from bench.gpu_part import Rows, told

_FULL_COPY_BYTES, _TINY_COPY_BYTES = 1 << 30, 1 << 26
Tell = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the check."""

    measure: Callable[[Bench], Rows]
    header: str = ""


PARTS = {
    "parity": Part(measure_parity),
    "attention": Part(gpu_attention.check_attention, gpu_attention.HEADER),
    "graphs": Part(gpu_graphs.check_graphs, gpu_graphs.HEADER),
    "long_prompt": Part(check_long_prompt),
    "sampler": Part(gpu_sampler.check_sampler, gpu_sampler.HEADER),
    "quantized": Part(gpu_quantized.check_quantized, gpu_quantized.HEADER),
    "faults": Part(check_faults),
    "nccl": Part(check_group),
    "attention_speed": Part(gpu_attention_speed.measure_attention, gpu_attention_speed.HEADER),
    "decode": Part(gpu_decode.measure_all, gpu_decode.HEADER),
}


def work(tell: Tell, names: Sequence[str], device_name: str, *, is_tiny: bool) -> None:
    """Run some parts; ends early where the device is of no use any more. Raises where it cannot be used at all."""
    transformers.utils.logging.disable_progress_bar()
    if is_tiny:
        torch.set_num_threads(1)  # more only wait for one another over matrices so small
    device = torch.device(device_name)
    num_copied_bytes = _TINY_COPY_BYTES if is_tiny else _FULL_COPY_BYTES
    bench = Bench(device, is_tiny, gpu_decode.measure_copy_bytes_per_s(device, num_copied_bytes))
    tell(_begun(bench))
    for name in names:
        tell(Started(name, PARTS[name].header))
        tell(run_part(PARTS[name], bench, tell))
        gc.collect()
        if not bench.is_usable():
            return
        if bench.is_cuda:
            torch.cuda.empty_cache()


def run_part(part: Part, bench: Bench, tell: Tell) -> Ended:
    """Tell each row as soon as it is known; an error ends the part alone."""
    begin_s = time.monotonic()
    try:
        for row in part.measure(bench):
            tell(Found(str(row), asdict(row), row.problem))
    except Exception as error:  # whatever it is, the other parts are to run
        traceback.print_exc()
        return Ended(time.monotonic() - begin_s, told(error))
    return Ended(time.monotonic() - begin_s, None)


def _begun(bench: Bench) -> Begun:
    is_cuda = bench.is_cuda
    name = torch.cuda.get_device_name(bench.device) if is_cuda else f"cpu, {torch.get_num_threads()} threads"
    speed = f"copy bandwidth {bench.copy_bytes_per_s / 1e9:.1f} GB/s, read and write counted"
    return Begun(
        f"{name}; torch {torch.__version__}, transformers {transformers.__version__}\n{speed}",
        {
            "device": name,
            "torch_version": torch.__version__,
            "transformers_version": transformers.__version__,
            "python": platform.python_version(),
            "copy_bytes_per_s": bench.copy_bytes_per_s,
        },
    )
