"""The GPU's way without a GPU: tests/emulator.py. First what the emulator itself must notice, then
the sampler, the commands, and cards that are small, old or shared."""
import gc
import random

import numpy
import pytest
import torch

import effect
import grpo
import model as M
import ppo
import sample as S
import sft
from emulator import GPU, NotInAGraph
from engine import cache, graphs, memory
from engine.batches import Sequence
from engine.flags import command, parse
from engine.optimizer import AdamW
from engine.processes import Ranks
from helpers import (POLICY_FLAGS, QWEN_1_5B, grpo_settings, metrics, one_line, read, repeats,
                     run_here, tiny, write)
from test_sample import PROMPTS, tokens_of

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
QWEN_0_5B = M.Config(151936, 896, 4864, 24, 14, 2, tie_word_embeddings=True)
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture
def gpu():
    with GPU() as card:
        yield card


def captured(program):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = program()
    return graph, result


# ---- the emulator ----------------------------------------------------------------------------
def test_a_graph_computes_when_it_is_replayed(gpu):
    x = torch.ones(3, device="cuda")
    assert x.is_cuda and x.device == torch.device("cuda", 0)

    def program():
        x.add_(1)
        return x * 10
    graph, y = captured(program)
    assert x.tolist() == [1, 1, 1] and y.isnan().all()
    graph.replay()
    graph.replay()
    assert x.tolist() == [3, 3, 3] and y.tolist() == [30, 30, 30]


def test_wrong_program_1_a_python_value_is_baked_in(gpu):
    """Called again as Python it would be right."""
    x, steps = torch.zeros(1, device="cuda"), [0]

    def program():
        steps[0] += 1
        x.copy_(torch.full((1,), float(steps[0]), device="cuda"))
    graph, _ = captured(program)
    graph.replay()
    graph.replay()
    assert x.item() == 1


def test_wrong_program_2_an_address_moves(gpu):
    state = {"x": torch.zeros(1, device="cuda")}

    def program():
        state["x"].add_(1)
    graph, _ = captured(program)
    old, state["x"] = state["x"], torch.zeros(1, device="cuda")
    graph.replay()
    assert state["x"].item() == 0 and old.item() == 1
    del old                                     # Its memory may now belong to anybody.
    gc.collect()
    with pytest.raises(NotInAGraph, match="given back"):
        graph.replay()


@pytest.mark.parametrize("read_value", [
    lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: x.to("cpu"),
    lambda x: bool(x.any()), lambda x: float(x[0]), lambda x: x.nonzero(), lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0), lambda x: torch.equal(x, x),
    lambda x: torch.tensor([1.0], device="cuda"), lambda x: torch.tensor([1.0]),
    lambda x: torch.zeros(3).to("cuda"), lambda x: x.copy_(torch.zeros(3))])
def test_wrong_program_3_the_host_reads_or_makes_a_value(gpu, read_value):
    x = torch.ones(3, device="cuda")
    read_value(x)                               # outside a graph it may
    with pytest.raises(NotInAGraph):
        captured(lambda: read_value(x))


def test_graphs_with_one_pool_overwrite_what_the_others_left(gpu):
    x, pool, made = torch.ones(1, device="cuda"), torch.cuda.graph_pool_handle(), []
    for factor in (2, 3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            made.append((graph, x * factor))
    (one, two), (other, three) = made
    one.replay()
    assert two.item() == 2
    other.replay()
    assert three.item() == 3 and two.isnan()


def test_what_a_cpu_lets_pass(gpu):
    x = torch.ones(4, device="cuda")
    for wrong, error in ((lambda: x + torch.ones(4), "on the GPU and some are not"),
                         (lambda: torch.nn.functional.linear(torch.ones(4), x), "some are not"),
                         (lambda: x.numpy(), "copy it to the CPU"),
                         (lambda: numpy.asarray(x), "copy it to the CPU")):
        with pytest.raises((RuntimeError, TypeError), match=error):
            wrong()
    assert torch.empty(4, device="cuda").isnan().all() and x.new_empty(2).isnan().all()
    assert (x * torch.tensor(2.0)).is_cuda and not x.cpu().is_cuda      # A number is no tensor.


def test_memory_is_counted():
    with GPU(memory=10 << 20, others=2 << 20) as gpu:
        x = torch.zeros(1 << 20, device="cuda")                         # 4 MB
        y = x * 2
        assert gpu.allocated == gpu.peak == 8 << 20 and torch.cuda.mem_get_info()[0] == 0
        with pytest.raises(torch.OutOfMemoryError):
            x + y
        del y
        assert gpu.allocated == 4 << 20 and torch.cuda.mem_get_info()[0] == 0
        torch.cuda.empty_cache()
        assert torch.cuda.mem_get_info() == (4 << 20, 10 << 20)


# ---- the sampler -----------------------------------------------------------------------------
SETTINGS = [{"temperature": 0.0}, {}, {"temperature": 0.6}, {"top_p": 0.8}, {"top_k": 5},
            {"top_k": 7, "top_p": 0.9, "temperature": 1.3}]


def two_calls(device: str, prompts, shape, dtype=None, **sampling):
    """What is drawn, then again with other weights; in the same slots."""
    model, found = tiny(**shape).to(device), []
    model.compute_dtype = dtype
    for _ in range(2):
        out = S.generate(model, prompts, **{"stop": {1, 2, 17}, "seed": 5} | sampling)
        found.append([[(one.tokens, one.finished) for one in group] for group in out])
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(1.05)
    return found


@pytest.mark.parametrize("settings", SETTINGS[:2] + SETTINGS[5:], ids=str)
def test_the_sampler_with_graphs_without_triton(settings, gpu):
    """Answers move between slots, and come to a third page; one fills its cache to the end. The
    graphs of the first call serve the second."""
    assert max(map(len, PROMPTS)) + 122 == 3 * S.PAGE
    more = {"n": 2, "max_new_tokens": 122, "slots": 4, "stop": {1}} | settings
    found, captures = two_calls("cuda", PROMPTS[:4], SMALL, **more), gpu.captures
    assert 1 < captures < 12
    assert found == two_calls("cpu", PROMPTS[:4], SMALL, **more) and found[0] != found[1]


@pytest.mark.extras
@pytest.mark.parametrize("settings", SETTINGS[:2] + SETTINGS[3:4], ids=str)
def test_the_sampler_with_graphs_and_triton(settings, monkeypatch):
    """One sequence, then two. The first fills its cache to the end, and its slot falls out."""
    pytest.importorskip("engine.kernels", exc_type=ImportError, reason="needs Triton")
    monkeypatch.setattr(graphs.Graphs, "look_every", 3)
    prompts, more = [[9] * 125, [5, 6]], {"max_new_tokens": 3, "slots": 2} | settings
    with GPU(triton=True) as gpu:
        found = two_calls("cuda", prompts, SMALL, **more)
        assert gpu.compiled and gpu.captures == 1
        assert found[1][:1] == two_calls("cuda", prompts[:1], SMALL, **more)[1]
        assert gpu.captures == 2
    assert found == two_calls("cpu", prompts, SMALL, **more)


def test_the_sampler_reads_from_a_copy_in_bf16(gpu):
    """The copy follows the weights. The CPU adds in another order, so greedily and nearly."""
    more = {"max_new_tokens": 20, "temperature": 0.0, "dtype": torch.bfloat16}
    found = two_calls("cuda", PROMPTS, {}, **more)
    assert found[0] != found[1] and [len(one) for one in found[0]] == [1] * len(PROMPTS)


def test_the_host_looks_once_in_16_steps(gpu):
    """A look for each step would make the GPU wait each time."""
    model = tiny().to("cuda")
    S.generate(model, PROMPTS, max_new_tokens=97, stop=set(), temperature=0)
    assert gpu.reads < 20


# ---- the commands ----------------------------------------------------------------------------
@pytest.fixture
def here(toy, tmp_path, monkeypatch):
    (tmp_path / "base").symlink_to(toy / "base")
    for name in ("train.jsonl", "held_out.jsonl"):
        (tmp_path / name).symlink_to(toy / name)
    write(tmp_path / "lessons.jsonl", [row | {"id": row["id"] + 1000} for row in repeats(24)])
    monkeypatch.chdir(tmp_path)


RL = (*POLICY_FLAGS, "--prompts", "4", "--group", "4", "--steps", "2", "--kl-every", "1", "--eval",
      "held_out.jsonl", "--eval-max-new-tokens", "12", "--save-every", "1")
SFT = ("--model", "base/model", "--data", "lessons.jsonl", "--batch", "8", "--epochs", "1",
       "--max-length", "64", "--eval", "held_out.jsonl", "--eval-max-new-tokens", "12")
EFFECT = ("--model", "base/model", "--test", "held_out.jsonl", "--data", "lessons.jsonl", "--group",
          "4", "--max-new-tokens", "12", "--max-length", "64", "--cosines", "3", "--method")


def both_ways(module, *flags):
    """What a command writes on the CPU and on the emulated GPU."""
    for device in ("cpu", "cuda"):
        given = (*flags, "--out", device, "--device", device, "--dtype", "float32")
        if hasattr(module, "main"):
            command(module.main, parse(module.Settings, "", argv=[*given]))
        else:
            run_here(module, *given)


@pytest.mark.parametrize("module, flags", [
    (grpo, ()), (grpo, ("--kl", "0.01", "--no-pack", "--checkpointing", "yes", "--passes", "2")),
    (ppo, ())], ids=["grpo", "grpo, all of it", "ppo"])
def test_rl_on_a_gpu_is_that_on_a_cpu(module, flags, here, gpu):
    both_ways(module, *RL, *flags)
    assert gpu.captures and metrics("cuda") == metrics("cpu") and len(metrics("cpu")) == 3


def test_adamw_in_main_memory_is_that_on_the_gpu(here, gpu):
    for name, flag in (("gpu", "--no-offload"), ("main", "--offload")):
        run_here(grpo, *RL, "--out", name, "--device", "cuda", "--dtype", "float32", flag)
    assert gpu.pinned and metrics("gpu") == metrics("main")


def test_sft_and_effects_on_a_gpu_are_those_on_a_cpu(here, gpu, capsys):
    both_ways(sft, *SFT)
    assert metrics("cuda") == metrics("cpu")
    for method in ("jvp", "difference"):
        both_ways(effect, *EFFECT, method)
        assert read("cpu/lessons.effects.jsonl") == read("cuda/lessons.effects.jsonl")


def test_sample_py_on_a_gpu_is_that_on_a_cpu(here, gpu):
    both_ways(S, "--model", "base/model", "--data", "held_out.jsonl", "--n", "2",
              "--max-new-tokens", "12")
    assert read("cpu") == read("cuda")


# ---- cards that are small, old or shared -----------------------------------------------------
def test_a_gpu_without_triton_says_so_once(gpu, capsys):
    for _ in range(2):
        S.generate(tiny().to("cuda"), PROMPTS[:1], max_new_tokens=2, stop=set())
    assert capsys.readouterr().err.count("sampling without Triton kernels, which is slower") == 1


@pytest.mark.extras
def test_a_gpu_whose_triton_cannot_start_a_kernel_goes_without(monkeypatch, capsys):
    """Triton needs a C compiler and Python's headers; many machines have neither."""
    kernels = pytest.importorskip("engine.kernels", exc_type=ImportError, reason="needs Triton")

    def fails(_):
        raise RuntimeError("Failed to find C compiler.\nmore")
    monkeypatch.setattr(kernels, "gated", fails)
    for capability, words in (((9, 0), "Failed to find C compiler.)"), ((7, 5), "capability 8.0")):
        with GPU(triton=True, capability=capability) as gpu:
            S.generate(tiny().to("cuda"), PROMPTS[:1], max_new_tokens=2, stop=set())
            assert gpu.captures == 1 and not gpu.compiled
        assert words in capsys.readouterr().err


def while_another_came(gpu, model, room: int):
    """Sample; from the first answer on the card has only `room` bytes, as another process came."""
    found, whole = {}, gpu.memory
    try:
        for i, j, one in S.as_they_end(model, PROMPTS[:4], n=4, max_new_tokens=40, seed=5,
                                       stop={1, 2, 7, 8}):
            gpu.memory, found[i, j] = room, one.tokens
    finally:
        gpu.memory = whole
    return found


def test_out_of_memory_in_the_middle_halves_the_slots(gpu, capsys):
    """The answers are the same. Those that have ended are not sampled again."""
    expected = S.generate(tiny(), PROMPTS[:4], n=4, max_new_tokens=40, stop={1, 2, 7, 8}, seed=5)
    model = tiny().to("cuda")
    found = while_another_came(gpu, model, 700_000)
    assert found == {(i, j): expected[i][j].tokens for i in range(4) for j in range(4)}
    assert model.slots.size == 8
    assert capsys.readouterr().err.count(
        "CUDA out of memory while sampling: 8 sequences at once from here on, not 16\n") == 1
    kept = model.slots                                      # The next call has as many.
    assert while_another_came(gpu, model, 700_000) == found and model.slots is kept
    with pytest.raises(torch.OutOfMemoryError):             # once
        while_another_came(gpu, model, 100_000)
    assert tokens_of(S.generate(model, PROMPTS[:4], n=4, max_new_tokens=40, stop={1, 2, 7, 8},
                                seed=5)) == tokens_of(expected)


WIDE = {"vocab_size": 4000, "hidden_size": 64, "intermediate_size": 256,
        "tie_word_embeddings": True}


@pytest.mark.parametrize("prompts, more", [
    ([[5]] * 300, {}), ([[5]] * 8, {"n": 32}), ([[5] * 60] * 8, {"n": 8, "top_p": 0.9}),
    ([[5] * 60] * 20, {"n": 8, "temperature": 0}), ([[5] * 400] * 10, {"n": 8})],
    ids=["short", "of few prompts", "truncated", "greedy", "long"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_as_many_slots_as_the_card_holds(prompts, more, dtype, monkeypatch, gpu, capsys):
    """By what the driver says is free: two thirds of the card are another process's."""
    monkeypatch.setattr(cache, "PREFILL_TOKENS", 512)
    monkeypatch.setattr(S, "PREFILL_TOKENS", 512)
    monkeypatch.setattr(cache, "PREFILL_LOGITS", 2**18)
    monkeypatch.setattr(S, "PREFILL_LOGITS", 2**18)
    model = tiny(**WIDE).to("cuda")
    model.compute_dtype = dtype
    torch.cuda.empty_cache()
    gpu.memory, gpu.others = 3 * (gpu.allocated + (10 << 20)), 2 * (gpu.allocated + (10 << 20))
    S.generate(model, prompts, max_new_tokens=2, stop=set(), **more)
    assert 10 < model.slots.size < 110 and "out of memory" not in capsys.readouterr().err
    assert gpu.peak > 0.3 * (gpu.memory - gpu.others)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_training_stays_within_its_plan(dtype, recompute, tied, gpu):
    settings, rng = grpo_settings(micro_tokens=1024, max_new_tokens=200), random.Random(0)
    model = tiny(**WIDE | {"tie_word_embeddings": tied, "vocab_size": 2000}).to("cuda")
    model.compute_dtype, model.checkpointing = dtype, recompute
    groups = [[grpo.Answer(Sequence(numpy.array([rng.randrange(2000) for _ in range(256)],
                                                dtype=numpy.int32), 56),
                           torch.full((200,), rng.uniform(-1, 1)), torch.zeros(200))
               for _ in range(4)] for _ in range(2)]
    method = grpo.GRPO(settings, Ranks("cuda"), model, AdamW(model, settings))
    method.update(groups, 1e-3)
    planned = sum(memory.training_bytes(model.config, settings, dtype, 256, 8, recompute).values())
    assert planned / 4 < gpu.peak <= planned


@pytest.mark.parametrize("card, config, changes", [
    (8e9, QWEN_0_5B, {"offload": True, "micro_tokens": 4096}),
    (12e9, QWEN_0_5B, {"micro_tokens": 4096}), (16e9, QWEN_0_5B, {}), (24e9, QWEN_0_5B, {}),
    (24e9, QWEN_1_5B, {"offload": True}), (40e9, QWEN_1_5B, {})])
def test_what_fits_small_cards(card, config, changes):
    """GRPO on 128 x 8 answers of 1024 tokens; without the flags it is refused, or all fits."""
    def plan(**changes):
        settings = grpo_settings(prompts=128, group=8, max_new_tokens=1024, **changes)
        return memory.rollout_plan(settings, config, torch.bfloat16, 200, 0.95 * card)
    assert plan(**changes).slots >= 128
    if changes:
        with pytest.raises(ValueError, match="does not fit .*--micro-tokens.*--offload"):
            plan()


def test_a_gpu_without_bf16_computes_in_fp32(here, capsys):
    with GPU(capability=(7, 5)):
        run_here(grpo, *RL, "--out", "old", "--device", "cuda")
        assert capsys.readouterr().err.count("this GPU has no bfloat16: computing in float32") == 1
        with pytest.raises(SystemExit):
            run_here(grpo, *RL, "--out", "new", "--device", "cuda", "--dtype", "bfloat16")
        assert one_line(capsys).endswith("--dtype float32\n")
    assert metrics("old")[1]["sampler_gap"] < 1e-5
