"""Every method, in sizes that suit a model of a few dozen tokens."""

import sparselens as sl

PROMPT = 8
METHODS = {
    "vertical_slash": lambda b, **k: sl.VerticalSlash(b, window=6, **k),
    "vertical_slash_64": lambda b, **k: sl.VerticalSlash(b, window=6, granularity="kernel64", **k),
    "flex_prefill": lambda b, **k: sl.FlexPrefill(b, window=6, **k),
    "block_sparse": lambda b, **k: sl.BlockSparse(b, block=4, **k),
    "snapkv": lambda b, **k: sl.SnapKV(b, window=6, prompt=PROMPT, **k),
    "ada_snapkv": lambda b, **k: sl.AdaSnapKV(b, window=6, prompt=PROMPT, **k),
    "quest": lambda b, **k: sl.Quest(b, page=4, prompt=PROMPT, **k),
    "quest_mask": lambda b, **k: sl.Quest(b, page=4, phase="prefill", **k),
    "sink_window": sl.SinkWindow,
    "random_blocks": lambda b, **k: sl.RandomBlocks(b, block=4, **k),
    "oracle": sl.TopKOracle,
    "asa": lambda b, **k: sl.ASA(b, block=4, sample=2, **k),
    "sparsed": lambda b, **k: sl.SparseD(b, block=4, **k),
    "pair": lambda b, **k: sl.attention.Pair(
        sl.BlockSparse(b, block=4), sl.Quest(b, page=4), prompt=PROMPT, **k
    ),
}
BACKENDS = ("torch", "transformer_lens", "nnsight")
TEXTS = ["the quick brown fox jumps over the lazy dog and runs", "a cat sat in the hat"]
