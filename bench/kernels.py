"""Compile every kernel of engine/kernels.py without a GPU, for several kinds of GPU.

    python bench/kernels.py                 # sm_80, 86, 90, 100
    python bench/kernels.py --archs 89

The shapes are those of Qwen2.5 0.5B and 1.5B, in bf16 and fp32, and a model with norms of each head
(Qwen3). A line for each kernel says how many registers a thread takes, how much shared memory a
block takes, and how many bytes of registers spill into slow memory. Exit code 1 if one in bf16
spills (fp32 is for tests), or if shared memory is larger than such a GPU has.
"""
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "0"        # before the kernels are imported
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from engine.flags import command, parse


@dataclass(kw_only=True)
class Settings:
    archs: list[int] = field(default_factory=lambda: [80, 86, 90, 100])     # kinds of GPU: 90 is
    #                                                                         an H100


if __name__ == "__main__":          # before torch is imported, so that --help answers at once
    settings = parse(Settings, __doc__)

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

from engine import kernels

SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}      # KB that a block may take
PARTS = {"_turned", "_page"}                # what other kernels call
TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.bool: "i1",
         torch.float64: "fp64"}


class Launches(list):
    """In the place of a kernel: notes the arguments that engine/kernels.py starts it with."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *args, **named: self.append((self.kernel, args, named))


def launches(work) -> list:
    """Each kernel that work() starts, with its arguments. It must start all there are."""
    names = [name for name, value in vars(kernels).items() if isinstance(value, JITFunction)]
    notes = {name: Launches(getattr(kernels, name)) for name in names if name not in PARTS}
    for name, note in notes.items():
        setattr(kernels, name, note)
    try:
        work()
    finally:
        for name, note in notes.items():
            setattr(kernels, name, note.kernel)
    if never := [name for name, note in notes.items() if not note]:
        raise SystemExit(f"bench/kernels.py never starts {', '.join(never)}: see call_all")
    return [one for note in notes.values() for one in note]


def call_all(dtype, C=1536, H=12, KV=2, D=128, I=8960, V=151680, norms=False) -> None:
    """Start every kernel as a decode step does, with tensors that have shapes and no memory."""
    def t(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")
    norm = SimpleNamespace(weight=t(C), eps=1e-6)
    heads = [SimpleNamespace(weight=t(D), eps=1e-6)] * 2 if norms else None
    tables = [t(4096, D, dtype=torch.float32) for _ in range(2)]
    cache = [t(16, 64, KV, 64, D) for _ in range(2)]
    for batch, splits in ((64, 1), (8, 4), (1, 16)):
        place = t(batch, dtype=torch.int64), t(batch, dtype=torch.bool)
        kernels.attend(t(batch, (H + 2 * KV) * D), *tables, *place, *cache, heads, splits)
    kernels.product(t(1, C), t((H + 2 * KV) * D, C), t((H + 2 * KV) * D), norm)
    kernels.product(t(1, H * D), t(C, H * D), add_to=t(1, C))
    kernels.product(t(1, C), t(2 * I, C), norm=norm, gate=True)
    kernels.product(t(1, I), t(C, I), add_to=t(1, C))
    kernels.gated(t(64, 2 * I))
    kernels.draw(t(64, V, dtype=torch.float32), 0.7, t(64, dtype=torch.float64))


def source_of(kernel, args, named):
    """What Triton compiles for these arguments. Tensors of PyTorch lie at multiples of 16 bytes."""
    values = dict(zip(kernel.arg_names, args)) | named
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[i,] = "*" + TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif value == 1:
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[i,] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes)


def spills(compiled, arch: int) -> tuple[int, int]:
    """Registers of a thread, and bytes that spill: ptxas says so when it compiles once more."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.ptx")
        with open(path, "w", encoding="utf-8") as file:
            file.write(compiled.asm["ptx"])
        target = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]
        said = subprocess.run(
            [get_ptxas(arch).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={target}", path, "-o",
             path + ".cubin"], capture_output=True, text=True, check=True).stderr
    return (int(re.search(r"Used (\d+) registers", said)[1]),
            sum(map(int, re.findall(r"(\d+) bytes spill", said))))


def check(arch: int, model: str, dtype, shape: dict) -> int:
    """Compile all kernels of a model for one kind of GPU, and print a line for each."""
    bad, seen = 0, set()
    for kernel, args, named in launches(lambda: call_all(dtype, **shape)):
        source = source_of(kernel, args, named)
        options = {name: named[name] for name in ("num_stages", "num_warps") if name in named}
        compiled = compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        if compiled.hash in seen:
            continue
        seen.add(compiled.hash)
        registers, spilled = spills(compiled, arch)
        shared = compiled.metadata.shared / 1024
        wrong = spilled and dtype == torch.bfloat16 or shared > SHARED.get(arch, 99)
        bad += bool(wrong)
        print(f"sm_{arch:<4} {model:5} {TYPES[dtype]} {kernel.__name__:10} {registers:3} registers,"
              f" {shared:5.1f} KB shared, {spilled} bytes spilled{'   WRONG' if wrong else ''}")
    return bad


MODELS = {"1.5B": {}, "0.5B": {"C": 896, "H": 14, "D": 64, "I": 4864},
          "Qwen3": {"C": 2048, "H": 16, "KV": 8, "I": 6144, "norms": True}}


def main(settings):
    bad = sum(check(arch, model, dtype, shape) for arch in settings.archs
              for model, shape in MODELS.items() for dtype in (torch.bfloat16, torch.float32))
    print(f"{bad} kernels spill or do not fit" if bad else "none spills, and all fit")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    command(main, settings)
