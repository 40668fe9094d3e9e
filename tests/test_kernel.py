"""kernel.py against attention written out: on a GPU, or without one in Triton's interpreter."""
import pytest
import torch

import model as M
import sample as S
from test_model import tiny
from test_sample import PROMPTS, as_graphs, tokens_of  # noqa: F401 (a fixture)

kernel = pytest.importorskip("kernel", reason="kernel.py needs Triton, which is not installed",
                             exc_type=ImportError)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SLOTS, PAGES = 7, 4
# The interpreter computes bf16 products wrongly, so without a GPU another half precision.
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16


def by_hand(q, k, v, position, keys, values):
    """One sequence: q [H, D], k and v [KV, D]; keys and values [P, KV, PAGE, D] as they shall be."""
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
    q, k, v = (torch.randn(b, heads, 1, size).to(dtype) for heads in (kv * group, kv, kv))
    cos, sin = M.rotary(position[:, None], config)
    turned = [M.rotate(x, cos, sin)[:, :, 0] for x in (q, k)]
    wanted = cache.clone()
    expected = torch.stack([
        by_hand(turned[0][row], turned[1][row], v[row, :, 0], int(position[row]),
                wanted[0, :, row], wanted[1, :, row]) for row in range(b)])

    cache = cache.to(DEVICE)
    found = kernel.attend(*(x.to(DEVICE) for x in (q, k, v, cos, sin, position)),
                          torch.zeros(b, dtype=torch.bool, device=DEVICE), *cache, splits=splits)
    tight = dtype == torch.float32
    torch.testing.assert_close(found.double().cpu()[:, :, 0], expected, rtol=0,
                               atol=2e-6 if tight else 2e-2 if DEVICE == "cuda" else 2e-3)
    torch.testing.assert_close(cache.cpu(), wanted, rtol=1e-6 if tight else 1e-2, atol=1e-6)


def test_what_is_done_is_not_read():
    """Only the new token is: what is in the cache may be anything."""
    cache = torch.full((2, 1, 1, 1, S.PAGE, 16), float("nan"), device=DEVICE)
    q, k, v = torch.randn(3, 1, 1, 1, 16, device=DEVICE)
    at = torch.tensor([9], device=DEVICE)
    cos, sin = M.rotary(at[:, None], M.Config(8, 16, 8, 1, 1, 1))
    for splits in (1, 2):
        out = kernel.attend(q, k, v, cos, sin, at, torch.tensor([True], device=DEVICE), *cache,
                            splits=splits)
        torch.testing.assert_close(out, v)


@pytest.mark.skipif(DEVICE == "cuda", reason="test_sample.py does this with the graphs themselves")
def test_sampling_with_it_equals_the_plain_way(as_graphs, monkeypatch):  # noqa: F811
    """As on CUDA: one size for every length; and a slot that goes on after its end falls out."""
    attend = kernel.attend
    calls = []

    def watched(*args):
        calls.append(len(args[0]))
        return attend(*args, splits=1)
    monkeypatch.setattr(kernel, "attend", watched)
    monkeypatch.setattr(S, "kernel", kernel)

    def both():
        assert max(map(len, PROMPTS)) + 58 == 2 * S.PAGE
        return [tokens_of(S.generate(tiny(), PROMPTS[:3], max_new_tokens=58, slots=2, seed=5,
                                     temperature=t, stop={1, 17} if t else set())) for t in (0, 1)]
    found = both()
    assert set(calls) == {1, 2}
    monkeypatch.undo()
    assert found == both()
