"""engine/kernels.py against the same written out in PyTorch: on a GPU, or without one in Triton's
interpreter (that of Triton 3.6 needs numpy below 2.4)."""
import copy

import pytest
import torch

import model as M
import sample as S
from emulator import GPU
from engine import noise
from engine.graphs import Graphs
from helpers import tiny
from test_sample import tokens_of

kernels = pytest.importorskip("engine.kernels", exc_type=ImportError,
                              reason="engine/kernels.py needs Triton, which is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS, PAGES = 7, 4
pytestmark = pytest.mark.extras
# The interpreter computes bf16 products wrongly, so without a GPU another half precision.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def decoder_of(model, length):
    positions = torch.arange(length, device=model.head_weight.device)
    return kernels.Decoder(model, *M.rotary(positions, model.config))


def by_hand(q, k, v, position, keys, values):
    """One sequence: q [H, D], k and v [KV, D]; writes into keys and values [P, KV, PAGE, D]."""
    page, at = divmod(position, S.PAGE)
    keys[page, :, at], values[page, :, at] = k, v
    group = len(q) // len(k)
    rows = []
    for head in range(len(q)):
        seen, what = (x[:, head // group].flatten(0, 1)[:position + 1].double()
                      for x in (keys, values))
        weights = (seen @ q[head].double() * len(q[head])**-0.5).softmax(0)
        rows.append(weights @ what)
    return torch.stack(rows)


@pytest.mark.parametrize("kv, group, size, dtype, splits", [
    (2, 6, 128, torch.float32, 1), (2, 6, 128, torch.float32, 4), (1, 7, 64, HALF, 1),
    (2, 6, 128, HALF, 16), (1, 1, 10, torch.float32, 2), (1, 20, 24, torch.float32, 1)])
def test_attention_to_the_cache(kv, group, size, dtype, splits):
    """Positions at every edge of a page; more splits than pages; odd sizes; heads of a group."""
    torch.manual_seed(0)
    position = torch.tensor([0, 1, S.PAGE - 1, S.PAGE, S.PAGE + 1, PAGES * S.PAGE - 1])
    b = len(position)
    config = M.Config(8, size, 8, 1, 1, 1, rope_theta=1e4)
    cache = torch.randn(2, PAGES, SLOTS, kv, S.PAGE, size).to(dtype)
    q, k, v = parts = [torch.randn(b, n, size).to(dtype) for n in (kv * group, kv, kv)]
    cos, sin = M.rotary(torch.arange(PAGES * S.PAGE), config)               # [1, T, D]
    turned = [M.rotate(x, *(table[0, position, None] for table in (cos, sin))) for x in (q, k)]
    wanted = cache.clone()
    expected = torch.stack([
        by_hand(turned[0][row], turned[1][row], v[row], int(position[row]),
                wanted[0, :, row], wanted[1, :, row]) for row in range(b)])

    cache = cache.to(DEVICE)
    qkv = torch.cat(parts, dim=1).flatten(1)
    found = kernels.attend(*(x.to(DEVICE) for x in (qkv, cos, sin, position)),
                          torch.zeros(b, dtype=torch.bool, device=DEVICE), *cache, splits=splits)
    tight = dtype == torch.float32
    torch.testing.assert_close(found.double().cpu().view(b, -1, size), expected, rtol=0,
                               atol=2e-6 if tight else 2e-2 if DEVICE == "cuda" else 2e-3)
    torch.testing.assert_close(cache.cpu(), wanted, rtol=1e-6 if tight else 1e-2, atol=1e-6)


def test_what_is_done_is_not_read():
    """Only the new token is: what is in the cache may be anything."""
    cache = torch.full((2, 1, 1, 1, S.PAGE, 16), float("nan"), device=DEVICE)
    qkv = torch.randn(1, 3 * 16, device=DEVICE)
    cos, sin = M.rotary(torch.arange(10, device=DEVICE), M.Config(8, 16, 8, 1, 1, 1))
    for splits in (1, 2):
        out = kernels.attend(qkv, cos, sin, torch.tensor([9], device=DEVICE),
                            torch.tensor([True], device=DEVICE), *cache, splits=splits)
        torch.testing.assert_close(out, qkv[:, 32:])


@pytest.mark.parametrize("size, out, dtype", [(48, 6, torch.float32), (1100, 9, torch.float32),
                                              (2048, 130, HALF)])
def test_products_of_one_row(size, out, dtype):
    """Sizes that no block divides; what is added, put before and after, alone and together."""
    torch.manual_seed(0)
    x, weight, bias, residual = (torch.randn(*shape, device=DEVICE).to(dtype) for shape in (
        (1, size), (2 * out, size), (out,), (1, out)))
    norm = M.RMSNorm(size, 1e-6).to(DEVICE, dtype)
    torch.nn.init.normal_(norm.weight)
    exact = {name: t.detach().double() for name, t in (
        ("x", x), ("w", weight), ("b", bias), ("r", residual), ("n", norm.weight))}
    normed = exact["x"] * (exact["x"].square().mean() + 1e-6).rsqrt() * exact["n"]
    gate, up = normed @ exact["w"][:out].T, normed @ exact["w"][out:].T
    plain = exact["x"] @ exact["w"][:out].T
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.2}
    for found, expected in (
            (kernels.product(x, weight[:out]), plain),
            (kernels.product(x, weight[:out], bias, norm), gate + exact["b"]),
            (kernels.product(x, weight, norm=norm, gate=True), gate.sigmoid() * gate * up),
            (kernels.product(x, weight[:out], add_to=residual), plain + exact["r"])):
        torch.testing.assert_close(found.double(), expected, **close)
    torch.testing.assert_close(residual.double(), plain + exact["r"], **close)      # in place


@pytest.mark.parametrize("size", [5, 64, 4160, 9000])
def test_draw_is_that_of_noise(size):
    """Peaks far above the rest or in other chunks; noise at both ends; ids not to be drawn."""
    torch.manual_seed(size)
    logits = 3 * torch.randn(6, size, device=DEVICE)
    logits[1, size // 2] += 200
    logits[2] -= 1e4
    logits[3, 2:] = -1e30
    logits[4, :-2] = -1e30
    u = torch.rand(6, dtype=torch.float64, device=DEVICE)
    for numbers in (u, torch.zeros_like(u), torch.full_like(u, 1 - 2.0**-53)):
        for t in (1.0, 0.6):
            token, logprob = kernels.draw(logits, t, numbers)
            exact = (logits.double() / t).log_softmax(-1)
            torch.testing.assert_close(logprob.double(), exact.gather(-1, token[:, None])[:, 0],
                                       rtol=1e-5, atol=1e-5)
            plain = noise.draw(exact.exp().float(), numbers)
            if numbers[0] < 1 - 2.0**-53:
                assert torch.equal(token, plain)
            else:                           # Rounding decides which of the last ones that can be.
                assert torch.equal(token // 64, plain // 64) and logprob.min() > -100


@pytest.mark.parametrize("size", [5, 1024, 1030])
def test_gate(size):
    both = torch.randn(3, 2 * size, device=DEVICE)
    gate, up = both.split(size, dim=1)
    torch.testing.assert_close(kernels.gated(both), torch.nn.functional.silu(gate) * up)


def test_joined_layers_keep_their_weights_and_can_be_trained():
    """They share memory with the whole, so training moves both. Joined a second time they are where
    they were."""
    torch.manual_seed(0)
    model = M.Transformer(M.Config(50, 16, 24, 2, 4, 2)).to(DEVICE)
    before = copy.deepcopy(model.state_dict())
    decoders = [decoder_of(model, 8) for _ in range(2)]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    model(torch.tensor([[1, 2, 3]], device=DEVICE)).square().sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    attention, mlp = model.model["layers"][1].self_attn, model.model["layers"][1].mlp
    for decoder in decoders:
        qkv, bias, gate_up = decoder.joined[1]
        assert torch.equal(qkv[:16], attention.q_proj.weight)
        assert torch.equal(qkv[16:24], attention.k_proj.weight)
        assert torch.equal(qkv[24:], attention.v_proj.weight)
        assert torch.equal(bias[24:], attention.v_proj.bias)
        assert torch.equal(gate_up[24:], mlp.up_proj.weight)
    name = "model.layers.1.self_attn.v_proj.weight"
    assert not torch.equal(attention.v_proj.weight, before[name])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_is_that_of_the_model(rows, **family):
    """Biases and norms as no fresh model has them; the cache holds what a full pass computes."""
    model = tiny(**family).to(DEVICE)
    c, lengths = model.config, [70, 1, 64][:rows]
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
        cache = torch.zeros(c.num_hidden_layers, 2, 2, rows, c.num_key_value_heads, S.PAGE,
                            c.head_dim, device=DEVICE)
        tokens = [torch.randint(0, c.vocab_size, (1, n + 1), device=DEVICE) for n in lengths]
        expected = torch.cat([model.hidden(row)[:, -1] for row in tokens])
        slots = S.Slots(model, rows, 2 * S.PAGE, 1, 1.0, 1.0, 0, frozenset())
        for row, n in enumerate(lengths):
            kept = slots.prefill([tokens[row][0, :n].tolist()])[0].pages
            cache[:, :, :kept.shape[2], row] = kept[:, :, :, 0]
        found = decoder_of(model, 2 * S.PAGE).hidden(
            torch.cat([row[0, -1:] for row in tokens]), torch.tensor(lengths, device=DEVICE),
            torch.zeros(rows, dtype=torch.bool, device=DEVICE), cache)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE == "cuda", reason="test_sample.py does this with the graphs")
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_weights_are_joined_where_they_are_trained(dtype, monkeypatch):
    """Sampling runs in inference mode, whose tensors can neither be trained (fp32, no copy) nor be
    views of each other (a copy in half precision to read from): both raised an error."""
    monkeypatch.setattr(Graphs, "look_every", 3)
    with GPU(triton=True) as gpu:
        model = tiny(num_hidden_layers=1, num_key_value_heads=1).to("cuda")
        model.compute_dtype, found = dtype, []
        for _ in range(2):
            for one in (model, copy.deepcopy(model)):       # with slots kept from before; without
                found.append(tokens_of(S.generate(one, [[5, 6, 7], [8]], max_new_tokens=4,
                                                  stop=set())))
            tokens = torch.tensor([[5, 6, 7, 3, 4]], device="cuda")
            M.logprobs(model, tokens).sum().backward()
            torch.optim.SGD(model.parameters(), 0.3).step()
    assert found[0] == found[1] != found[2] == found[3]
    assert gpu.compiled
