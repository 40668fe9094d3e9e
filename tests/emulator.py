"""A CUDA GPU for tests on a machine without one: `with GPU() as gpu: ...` runs code that asks for
device "cuda".

The tensors lie in main memory and the CPU computes. But the emulator knows which tensors are on the
GPU, and what a CPU would let pass is an error here:

- an operation on tensors of the CPU and of the GPU together; a GPU's tensor read by numpy;
- memory beyond the card's (torch.OutOfMemoryError); new memory is full of NaN, not of zeros;
- in a CUDA graph: a value that the host reads, a tensor made of Python values, a copy from or to
  the host, a Triton kernel that was not compiled before.

A graph is recorded and replayed. The capture notes each operation with the addresses of its
tensors, and leaves memory as it was, since a real capture computes nothing. A replay runs these
operations on these addresses, and nothing of the Python code. So a Python value that was baked in
stays what it was, a tensor that has moved is not found, and memory that was given back is an error.

Triton kernels run in Triton's interpreter (TRITON_INTERPRET=1, set before they are imported).
Not emulated: streams, rounding, speed, fragmentation, and the memory of libraries.
"""
import contextlib
import itertools
import sys
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from engine.graphs import no_kernels

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
aten = torch.ops.aten
READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2",
         "unique_dim", "unique_consecutive", "bincount"}    # the host waits for a number


class NotInAGraph(RuntimeError):
    """What CUDA refuses while a graph is captured, or what a replay would do wrong."""


def tensors(values) -> list[Tensor]:
    """All tensors in nested arguments or results."""
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def memories(values) -> set[int]:
    return {memory(x) for x in tensors(values) if not x.is_meta}


# ---- tensors by address ----------------------------------------------------------------------
NUMBERS = itertools.count()
STORAGES = weakref.WeakValueDictionary()            # number -> storage, for all that were recorded


def number_of(tensor: Tensor) -> int:
    """The number of the memory that a tensor lies in. PyTorch keeps one object for each memory."""
    storage = tensor.untyped_storage()
    if not hasattr(storage, "number"):
        storage.number = next(NUMBERS)
        STORAGES[storage.number] = storage
    return storage.number


def on_gpu(tensor: Tensor) -> bool:
    return hasattr(tensor.untyped_storage(), "on_gpu")


@dataclass
class Place:
    """A tensor by its address: it does not keep the memory alive."""
    number: int
    dtype: torch.dtype
    geometry: tuple                                 # offset, size, stride

    def tensor(self, made: dict) -> Tensor:
        """The tensor that is there now. made: memory of this replay, by number."""
        storage = made.get(self.number)
        storage = STORAGES.get(self.number) if storage is None else storage
        if storage is None:
            raise NotInAGraph("a graph reads or writes memory that was given back since")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.geometry)


def place(value):
    """What a recording keeps of an argument. A number on the CPU is baked in, as in CUDA."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0 and not on_gpu(value):
        return value.clone()
    return where(value)


def where(tensor: Tensor) -> Place:
    geometry = tensor.storage_offset(), tensor.size(), tensor.stride()
    return Place(number_of(tensor), tensor.dtype, geometry)


def poison(tensor: Tensor) -> None:
    """What memory holds that nobody has written yet."""
    if tensor.is_floating_point():
        tensor.fill_(float("nan"))
    elif tensor.dtype == torch.bool:
        tensor.fill_(True)
    else:
        tensor.fill_(torch.iinfo(tensor.dtype).max // 3)


# ---- graphs ----------------------------------------------------------------------------------
@dataclass
class Step:
    """An operation of a graph."""
    run: object
    leaves: list                                    # its arguments, with a Place for each tensor
    layout: object                                  # how they are nested: of tree_flatten
    new: list                                       # the Place of each tensor in memory of its own


class CUDAGraph:
    """A recording: see the top of this file."""

    def __init__(self):
        self.steps, self.before, self.kept = [], {}, {}

    def note(self, run, args, kwargs, new=()) -> None:
        leaves, layout = tree_flatten((args, kwargs))
        self.steps.append(Step(run, [*map(place, leaves)], layout, [where(x) for x in new]))

    def will_change(self, tensor: Tensor) -> None:
        """Keep what memory of before the capture holds, to put it back at the end."""
        number = number_of(tensor)
        if number not in self.before and number not in self.numbers():
            storage = tensor.untyped_storage()
            self.before[number] = storage, storage.clone()

    def numbers(self) -> set:
        return {new.number for step in self.steps for new in step.new}

    def end(self, pool) -> None:
        """Put memory back. Results that somebody still holds are kept, but not computed yet."""
        for storage, old in self.before.values():
            storage.copy_(old)
        self.before = {}
        for step in self.steps:
            for new in step.new:
                if new.number in STORAGES:
                    self.kept[new.number] = new
                    poison(new.tensor({}))
        self.pool = pool
        pool.append(weakref.ref(self))

    def replay(self) -> None:
        with _disable_current_modes():
            for other in filter(None, (ref() for ref in self.pool)):    # One memory serves all.
                if other is not self:
                    for new in other.kept.values():
                        if new.number in STORAGES:
                            poison(new.tensor({}))
            made = {}
            for step in self.steps:
                self.run(step, made)

    def run(self, step, made: dict) -> None:
        leaves = [x.tensor(made) if isinstance(x, Place) else x for x in step.leaves]
        args, kwargs = tree_unflatten(leaves, step.layout)
        results = step.run(*args, **kwargs)
        if not step.new:
            return
        old = memories(leaves)
        fresh = [x for x in tensors(results) if memory(x) not in old]
        for new, result in zip(step.new, fresh):
            kept = STORAGES.get(new.number) if new.number in self.kept else None
            made[new.number] = result.untyped_storage() if kept is None else kept
            if kept is not None:
                new.tensor(made).copy_(result)


# ---- what is called --------------------------------------------------------------------------
def device_in(func, args, kwargs):
    """The device that a call names, or None."""
    found = kwargs.get("device")
    if found is None and func in (Tensor.to, Tensor.cuda, Tensor.cpu):
        named = {Tensor.cuda: "cuda", Tensor.cpu: "cpu"}.get(func)
        found = named or next((x.device if isinstance(x, Tensor) else x for x in args[1:]
                               if isinstance(x, (str, torch.device, Tensor))), None)
    return None if found is None else torch.device(found)


class Calls(TorchFunctionMode):
    """What Python code asks of torch: where tensors are, and where they shall be."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == Tensor.is_cuda.__get__:
            return on_gpu(args[0])
        if func == Tensor.device.__get__:
            return CUDA if on_gpu(args[0]) else func(*args)
        if func in (torch.tensor, torch.as_tensor, torch.from_numpy):
            self.gpu.refuse_in_graph("a tensor made of Python values")
        if func is Tensor.tolist:
            self.gpu.host_reads(func, args)
        if func in (Tensor.numpy, Tensor.__array__) and on_gpu(args[0]):
            raise TypeError("numpy cannot read a tensor on the GPU: copy it to the CPU first")
        if kwargs.pop("pin_memory", False):         # The CPU build of PyTorch cannot pin.
            self.gpu.pinned += 1
        device = device_in(func, args, kwargs)
        if device is None or device.type == "meta":
            outside = self.gpu.inside           # What PyTorch makes within belongs where these are.
            self.gpu.inside = any(on_gpu(x) for x in tensors((args, kwargs)) if not x.is_meta)
            try:
                return func(*args, **kwargs)
            finally:
                self.gpu.inside = outside
        if func in (Tensor.to, Tensor.cuda, Tensor.cpu):
            return self.move(device, args, kwargs)
        with contextlib.nullcontext() if device.type == "cuda" else _disable_current_modes():
            return self.gpu.put(func(*args, **kwargs | {"device": CPU}), device)

    def move(self, device, args, kwargs):
        """tensor.to(...), .cuda() or .cpu()."""
        tensor, there = args[0], device.type == "cuda"
        rest = [x for x in args[1:] if not isinstance(x, (str, torch.device, Tensor))]
        kwargs = {name: x for name, x in kwargs.items() if name != "device"}
        if on_gpu(tensor) == there:
            return self.gpu.put(tensor.to(CPU, *rest, **kwargs), device)
        self.gpu.host_reads("a copy from the GPU", [tensor])
        self.gpu.refuse_in_graph("a copy to the GPU")
        with _disable_current_modes():
            return self.gpu.put(tensor.to(CPU, *rest, **kwargs | {"copy": True}), device)


class Operations(TorchDispatchMode):
    """What is computed: where it lies, and whether a graph may hold it."""

    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, gpu = kwargs or {}, self.gpu
        inputs = tensors((args, kwargs))
        if any(x.is_meta for x in inputs):
            return func(*args, **kwargs)
        name, here = func._schema.name.split("::")[1], [on_gpu(x) for x in inputs]
        self.check(name, args, inputs, here)
        if gpu.capturing and func._schema.is_mutable and any(here):
            for x in written(func, args, kwargs):
                gpu.capturing.will_change(x)
        run = as_a_gpu(func)
        results, old = run(*args, **kwargs), memories(inputs)
        fresh = [x for x in tensors(results) if memory(x) not in old]
        if any(here) or not inputs and gpu.inside:
            gpu.put(fresh, CUDA)
        if gpu.capturing and (fresh or func._schema.is_mutable) and (any(here) or not inputs):
            gpu.capturing.note(run, args, kwargs, fresh)
        return results

    def check(self, name: str, args, inputs: list, here: list) -> None:
        """Refuse what a GPU would refuse. here: which of the inputs are on it."""
        gpu = self.gpu
        # To index with a mask, the host must know how many places are True.
        masks = name.startswith("index") and len(args) > 1 and any(
            isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)
            for x in tree_leaves(args[1]))
        if (name in READS or masks) and any(here):
            gpu.host_reads(name, inputs)
        mixed = any(here) and any(x.dim() and not there for x, there in zip(inputs, here))
        if mixed and name in ("copy_", "_foreach_copy_", "index", "index_put_", "_index_put_impl_"):
            gpu.refuse_in_graph("a copy between host and GPU")
        elif mixed:
            raise RuntimeError(f"{name}: some of its tensors are on the GPU and some are not")


def written(func, args, kwargs) -> list[Tensor]:
    """The tensors that an operation writes into."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[i] if i < len(args) else None)
            found += tensors(value)
    return found


def as_a_gpu(func):
    """The operation, or what the CPU needs in its place."""
    if func is aten.mm.dtype:
        return lambda a, b, dtype: a.to(dtype) @ b.to(dtype)
    if func._schema.name.split("::")[1] in ("empty", "new_empty", "empty_like", "empty_strided"):
        return lambda *args, **kwargs: poisoned(func(*args, **kwargs))
    return func


def poisoned(tensor: Tensor) -> Tensor:
    poison(tensor)
    return tensor


# ---- the card --------------------------------------------------------------------------------
class GPU:
    """The card. memory: its bytes. others: bytes that other processes have. capability: as of
    torch.cuda.get_device_capability. triton: whether Triton can be imported.

    allocated, peak: bytes of live tensors now, and at most since the start or the last
    torch.cuda.reset_peak_memory_stats(). reads: how often the host waited for a value.
    """

    def __init__(self, memory: int = 8 << 30, others: int = 0, capability=(9, 0), triton=False):
        self.memory, self.others, self.capability = memory, others, capability
        self.triton = triton
        self.allocated = self.peak = self.reserved = self.reads = self.pinned = 0
        self.capturing, self.compiled, self.captures = None, set(), 0
        self.inside = False         # in a function of torch that was given tensors on the GPU

    def put(self, result, device):
        """Note that these tensors are on this device."""
        for x in tensors(result):
            if not x.is_meta and device.type == "cuda" and not on_gpu(x):
                self.allocate(x.untyped_storage())
        return result

    def allocate(self, storage) -> None:
        size = -(-storage.nbytes() // 512) * 512            # as CUDA's allocator rounds
        if self.allocated + size + self.others > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes.")
        storage.on_gpu = True
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        self.reserved = max(self.reserved, self.allocated)
        weakref.finalize(storage, self.free, size)

    def free(self, size: int) -> None:
        self.allocated -= size

    def refuse_in_graph(self, what) -> None:
        if self.capturing:
            raise NotInAGraph(f"{what}: not possible while a CUDA graph is captured")

    def host_reads(self, what, tensors) -> None:
        if any(isinstance(x, Tensor) and on_gpu(x) for x in tensors):
            self.reads += 1
            self.refuse_in_graph(f"the host reads a value ({getattr(what, '__name__', what)})")

    @contextlib.contextmanager
    def graph(self, graph, pool=None, **_):
        """torch.cuda.graph."""
        pool = Pool() if pool is None else pool
        self.capturing, self.captures = graph, self.captures + 1
        before, peak, self.peak = self.allocated, self.peak, self.allocated
        try:
            yield
        finally:
            self.capturing = None
            more = max(0, self.peak - before - pool.size)   # The pool keeps what a graph needed.
            self.allocated, self.peak = self.allocated + more, max(peak, self.peak)
            pool.size += more
            weakref.finalize(pool, self.free, more)
            with _disable_current_modes():
                graph.end(pool)

    def launch(self, kernel, run, args, kwargs) -> None:
        """A Triton kernel: on a GPU it is compiled at its first launch with such arguments."""
        given = [*args, *kwargs.values()]
        kind = (kernel, *(x.dtype if isinstance(x, Tensor) else x for x in given))
        if kind not in self.compiled:
            self.refuse_in_graph("a Triton kernel that was not compiled before")
        self.compiled.add(kind)
        if any(isinstance(x, Tensor) and not on_gpu(x) for x in given):
            raise ValueError("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        with _disable_current_modes():
            if self.capturing:
                for x in tensors(given):
                    self.capturing.will_change(x)
                self.capturing.note(run, args, kwargs)
            run(*args, **kwargs)

    # ---- in the place of torch.cuda ----
    def functions(self) -> dict:
        def give_back(*_):
            self.reserved = self.allocated

        def reset(*_):
            self.peak = self.allocated
        return {
            "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
            "set_device": lambda *_: None, "synchronize": lambda *_: None, "empty_cache": give_back,
            "mem_get_info": lambda *_: (self.memory - self.others - self.reserved, self.memory),
            "memory_allocated": lambda *_: self.allocated, "reset_peak_memory_stats": reset,
            "max_memory_allocated": lambda *_: self.peak,
            "get_device_name": lambda *_: "an emulated GPU",
            "get_device_capability": lambda *_: self.capability,
            "get_device_properties": lambda *_: SimpleNamespace(
                multi_processor_count=8, total_memory=self.memory),
            "is_bf16_supported": lambda *_: self.capability >= (8, 0),
            "CUDAGraph": CUDAGraph, "graph": self.graph, "graph_pool_handle": Pool}

    def __enter__(self):
        no_kernels.cache_clear()                    # What was said of another card is forgotten.
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(mock.patch.multiple(torch.cuda, **self.functions()))
        if self.triton:
            from triton.runtime.interpreter import InterpretedFunction
            run, gpu = InterpretedFunction.run, self

            def launched(kernel, *args, grid, warmup, **kwargs):
                gpu.launch((kernel.fn, len(grid)), lambda *a, **k: run(
                    kernel, *a, grid=grid, warmup=warmup, **k), args, kwargs)
            self.stack.enter_context(mock.patch.object(InterpretedFunction, "run", launched))
        else:                                               # Its import then fails.
            self.stack.callback(restore, "engine.kernels", sys.modules.get("engine.kernels"))
            sys.modules["engine.kernels"] = None
        self.stack.enter_context(Calls(self))
        self.stack.enter_context(Operations(self))
        return self

    def __exit__(self, *error):
        no_kernels.cache_clear()
        return self.stack.__exit__(*error)


def restore(name: str, module) -> None:
    """A module as it was before: imported or not."""
    if module is None:
        del sys.modules[name]
    else:
        sys.modules[name] = module


class Pool(list):
    """The graphs that share memory, and its bytes."""
    size = 0
