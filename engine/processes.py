"""The device and its number format, and the processes of a torchrun."""
import os
import re
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from engine.memory import parameters_in

ONE_THREAD = 3e6        # parameters: with fewer, one thread computes (results/threads.md)
BF16_PAYS = 50e6        # parameters: with more, and where the processor has it, bfloat16 is faster


def fit_machine(settings, config) -> tuple[str, torch.dtype]:
    """What --device and --dtype mean for this model on this machine. Also sets how many threads
    compute, unless OMP_NUM_THREADS does."""
    device, dtype = settings.device, settings.dtype
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "mps":
        raise ValueError("device = mps: not supported, as nothing here was ever checked against the"
                         " rounding of an Apple GPU; --device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ValueError(f"device = {device}: cpu, cuda, cuda:0 ... or auto")
    if device != "cpu" and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise ValueError(f"no such CUDA device here: {device}; --device cpu")
    if ":" in device:
        torch.cuda.set_device(device)       # CUDA graphs and Triton work on the current device
    parameters = parameters_in(config)
    if parameters < ONE_THREAD and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    if dtype == "auto":
        pays = parameters > BF16_PAYS and torch.cpu._is_avx512_bf16_supported()
        dtype = "bfloat16" if device != "cpu" or pays else "float32"
    if (device != "cpu" and dtype == "bfloat16"
            and torch.cuda.get_device_capability(device) < (8, 0)):
        if settings.dtype == dtype:
            raise ValueError("dtype = bfloat16: this GPU does not have it (its compute capability is"
                             " below 8.0); --dtype float32")
        print("this GPU has no bfloat16: computing in float32", file=sys.stderr)
        dtype = "float32"
    return device, getattr(torch, dtype)


class Ranks:
    """The processes of a torchrun, one per GPU. Without torchrun there is one: this process."""

    def __init__(self, device: str):
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
        self.first = self.rank == 0                         # the one that writes files
        self.device = torch.device(device)
        if self.device.type == "cuda":
            if self.size > 1 or self.device.index is None:
                self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        if self.size > 1 and not dist.is_initialized():     # Saving a large model takes long, and
            backend = "nccl" if self.device.type == "cuda" else "gloo"  # the others wait for it.
            dist.init_process_group(backend, timeout=timedelta(hours=2))

    def sum(self, values: list[float]) -> list[float]:
        """Everybody's values, added up."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum([0.0])

    def sum_gradients(self, model) -> None:
        if self.size > 1:
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)

    def gather(self, mine: list) -> list:
        """Everybody's items in the order of the whole, where process r had items r, r + size ..."""
        if self.size == 1:
            return mine
        parts = [None] * self.size
        dist.all_gather_object(parts, mine)
        return [parts[i % self.size][i // self.size] for i in range(sum(map(len, parts)))]
