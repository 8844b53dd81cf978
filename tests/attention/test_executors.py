"""One pattern, three executors, brute force: all the same; and what density means."""

import pytest
import torch

from sparselens.attention import executors
from sparselens.attention.executors import block_mask, choose, flex, gather, masked
from sparselens.attention.pattern import Allowed, Pattern, full, pooled, share_heads, top_blocks
from sparselens.models.attention_function import Heads

SIZES = [(1, 1), (1, 33), (16, 16), (17, 17), (40, 64), (100, 100)]


def padding(n_q: int, n_k: int, left: bool = True) -> torch.Tensor:
    """Causal mask of two rows, the second with padding."""
    mask = torch.ones(n_q, n_k, dtype=torch.bool).tril(n_k - n_q).expand(2, 1, -1, -1).clone()
    pad = min(5, n_k - 1)
    if left:
        mask[1, :, :, :pad] = False
    else:
        mask[1, :, :, n_k - pad :] = False
        mask[1, :, max(n_q - pad, 0) :] = False
    return mask


def allowed_of(n_q: int, n_k: int, kind: str) -> Allowed:
    if kind in ("left", "right"):
        return Allowed(n_q, n_k, True, padding(n_q, n_k, kind == "left"))
    return Allowed(n_q, n_k, kind == "causal")


def random_pattern(allowed: Allowed, block: tuple[int, int], heads: int = 4, share: float = 0.4) -> Pattern:
    shape = full(allowed, 2, heads, block).keep.shape
    return Pattern(torch.rand(shape) < share, block).repaired_for(allowed)


def heads_for(n_q: int, n_k: int, causal: bool = True, kv: int = 2) -> Heads:
    return Heads(torch.randn(2, 4, n_q, 8), torch.randn(2, kv, n_k, 8), torch.randn(2, kv, n_k, 8), None, causal, 0.3)


def brute(heads: Heads, keep: torch.Tensor) -> torch.Tensor:
    k, v = (x.double().repeat_interleave(4 // x.shape[1], 1) for x in (heads.key, heads.value))
    scores = (heads.query.double() @ k.transpose(2, 3) * heads.scale).masked_fill(~keep, -torch.inf)
    return (torch.softmax(scores, -1).nan_to_num(0.0) @ v).float()


@pytest.mark.parametrize("kind", ["causal", "both", "left", "right"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [(16, 16), (1, 1), (8, 1), (1, 16), (128, 128)])
def test_executors_agree_with_brute_force(size, block, kind):
    n_q, n_k = size
    allowed = allowed_of(n_q, n_k, kind)
    heads = heads_for(n_q, n_k, kind != "both")
    pattern = random_pattern(allowed, block)
    keep = pattern.rows(allowed)
    truth = brute(heads, keep)
    for run in (masked, gather):
        out = run(heads, pattern, allowed)
        assert out.shape == truth.shape
        torch.testing.assert_close(out, truth, atol=1e-5, rtol=1e-5)
    may = allowed.rows().expand_as(keep)
    assert bool((keep.any(-1) == may.any(-1)).all()), "every query that may look at something does"
    kept, every = pattern.pairs(allowed)
    assert torch.equal(kept, keep.sum((-1, -2)).double()) and torch.equal(every, may.sum((-1, -2)).double())


@pytest.mark.parametrize("kind", ["causal", "both", "left"])
@pytest.mark.parametrize("block", [(32, 32), (128, 128), (1, 1)])
def test_flex_agrees(block, kind):
    n_q = 150  # not a multiple of the kernel's tile, with blocks smaller than it
    allowed, heads = allowed_of(n_q, n_q, kind), heads_for(n_q, n_q, kind != "both")
    pattern = random_pattern(allowed, block)
    torch.testing.assert_close(flex(heads, pattern, allowed), masked(heads, pattern, allowed), atol=1e-5, rtol=1e-5)


def listed(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Lists of tiles as a mask of tokens."""
    n = indices.shape[-1]
    there = torch.where(torch.arange(n) < counts[..., None], indices.long(), n)
    tiles = torch.zeros(*indices.shape[:3], n + 1, dtype=torch.bool).scatter(-1, there, True)[..., :-1]
    return tiles.repeat_interleave(128, -1).repeat_interleave(128, -2)


@pytest.mark.parametrize("kind", ["causal", "both", "left"])
@pytest.mark.parametrize("block", [(128, 128), (64, 64), (64, 1), (256, 256), (48, 48)])
@pytest.mark.parametrize("size", [(150, 150), (130, 400), (384, 384)])
def test_lists_of_tiles_and_their_rule_are_the_pattern(size, block, kind):
    """A compiled kernel reads both; on a CPU the rule alone is used."""
    allowed = allowed_of(*size, kind)
    pattern = random_pattern(allowed, block)
    lists = block_mask(pattern, allowed)
    b, h, q, k = torch.meshgrid(*(torch.arange(n) for n in (2, 4, *lists.seq_lengths)), indexing="ij")
    keep = listed(lists.kv_num_blocks, lists.kv_indices) & lists.mask_mod(b, h, q, k)
    keep |= listed(lists.full_kv_num_blocks, lists.full_kv_indices)
    assert torch.equal(keep[:, :, : size[0], : size[1]], pattern.rows(allowed))
    assert not keep[:, :, : size[0], size[1] :].any(), "what fills up the last tile is not looked at"


@pytest.mark.parametrize("block", [(16, 16), (16, 1), (8, 16)])
def test_pairs_in_tiles_by_blocks_and_by_tokens(block, monkeypatch):
    for kind in ("causal", "both", "left"):
        allowed = allowed_of(70, 90, kind)
        pattern = random_pattern(allowed, block)
        for at_once in (1, 2**20):
            monkeypatch.setattr("sparselens.attention.pattern._AT_ONCE", at_once)
            share = pattern._kept_tokens(allowed, 32) / allowed.tiles((32, 32)).clamp(min=1)
            torch.testing.assert_close(pattern.tiles(allowed, 32), share)


def test_flex_compiles_once_for_lengths_that_are_rounded_alike(monkeypatch):
    from torch._dynamo.testing import CompileCounter
    from torch.nn.attention import flex_attention as module

    counter, original = CompileCounter(), module.flex_attention
    compiled = torch.compile(original, dynamic=False, fullgraph=True, backend=counter)
    monkeypatch.setattr(executors, "_COMPILED", [compiled])
    monkeypatch.setattr(module, "flex_attention", executors._compiled)
    for n in (130, 150, 256):
        allowed, heads = Allowed(n, n), heads_for(n, n)
        pattern = random_pattern(allowed, (64, 64))
        with torch.no_grad():
            out = flex(heads, pattern, allowed)
        torch.testing.assert_close(out, masked(heads, pattern, allowed), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", ["causal", "both", "left"])
def test_full_pattern_is_dense(kind):
    allowed, heads = allowed_of(50, 50, kind), heads_for(50, 50)
    pattern = full(allowed, 2, 4, (16, 16))
    assert pattern.density(allowed) == 1 and pattern.block_density(allowed) == 1
    dense = brute(heads, allowed.rows().expand(2, 4, -1, -1))
    for run in (masked, gather, flex):
        torch.testing.assert_close(run(heads, pattern, allowed), dense, atol=1e-5, rtol=1e-5)


def test_gradients_of_gather_are_those_of_masked():
    allowed, heads = Allowed(40, 40), heads_for(40, 40)
    pattern = random_pattern(allowed, (16, 16))
    grads = []
    for run in (masked, gather):
        inputs = [x.clone().requires_grad_() for x in (heads.query, heads.key, heads.value)]
        run(Heads(*inputs, None, True, 0.3), pattern, allowed).square().sum().backward()
        grads.append([x.grad for x in inputs])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_rows_left_with_nothing_are_repaired_and_counted():
    allowed = Allowed(40, 40)
    nothing = Pattern(torch.zeros(1, 2, 3, 3, dtype=torch.bool), (16, 16))
    fixed = nothing.repaired_for(allowed)
    assert fixed.repaired == 2 * 40 and torch.equal(fixed.keep[0, 0], torch.eye(3, dtype=torch.bool))
    late = nothing.keep.clone()
    late[..., 2] = True  # in the future of all but the last eight
    assert Pattern(late, (16, 16)).repaired_for(allowed).repaired == 2 * 32
    padded = Allowed(40, 40, True, padding(40, 40))  # five queries of the second row are padding
    assert Pattern(nothing.keep.expand(2, -1, -1, -1), (16, 16)).repaired_for(padded).repaired == 2 * (40 + 35)


def test_a_part_is_the_same_queries_alone():
    for kind in ("causal", "left"):
        allowed = allowed_of(40, 60, kind)
        some = allowed.part(10, 25)
        assert torch.equal(some.rows(), allowed.rows(10, 25)[..., : some.n_k])
        assert not allowed.rows(10, 25)[..., some.n_k :].any()


def test_top_blocks_ignores_what_is_not_possible_and_keeps_all_where_few_are():
    scores = torch.tensor([[3.0, 1.0, 2.0, 9.0]])
    possible = torch.tensor([[True, True, True, False]])
    assert top_blocks(scores, 2, possible).tolist() == [[True, False, True, False]]
    assert top_blocks(scores, 9, possible).tolist() == [[True, True, True, False]]
    assert top_blocks(scores, torch.tensor([1]), possible).tolist() == [[True, False, False, False]]


def test_pooled_means_leave_padding_out():
    x = torch.arange(5.0)[None, None, :, None]
    assert pooled(x, 2).flatten().tolist() == [0.5, 2.5, 4.0]
    assert pooled(x, 8).flatten().tolist() == [2.0]


def test_shared_heads_are_equal_inside_a_group():
    scores = torch.randn(1, 4, 3, 3)
    for how in ("mean", "sum", "max"):
        shared = share_heads(scores, 2, how)
        assert torch.equal(shared[:, 0], shared[:, 1]) and not torch.equal(shared[:, 1], shared[:, 2])


def test_auto_takes_gather_for_decoding_and_sparse_blocks_only():
    allowed, one = Allowed(256, 256), Allowed(1, 256)
    assert choose(random_pattern(allowed, (64, 64), share=0.1), allowed) == "gather"
    assert choose(full(allowed, 2, 4), allowed) == "masked"
    assert choose(random_pattern(allowed, (1, 1), share=0.1), allowed) == "masked"
    assert choose(full(one, 2, 4, (1, 16)), one) == "gather"


@pytest.mark.parametrize(
    ("n_q", "block", "wanted"),
    [(4096, 128, "flex"), (4096, 256, "flex"), (4096, 64, "masked"), (2048, 128, "masked"), (1, 128, "gather")],
)
def test_auto_on_a_gpu(n_q, block, wanted):
    allowed = Allowed(n_q, 4096, device=torch.device("cuda"))
    assert choose(Pattern(torch.ones(1, 1, 1, 1, dtype=torch.bool), (block, block)), allowed) == wanted
