"""Make `public_saes.csv.gz`: which public SAEs there are, where they lie, and what site, width and l0 they have.

    python data/registry/make.py path/to/sae_lens/pretrained_saes.yaml

The facts are those of the registry of SAELens (MIT licence), a file of its wheel; sites and widths are read off the
names there.
"""

import csv
import gzip
import io
import math
import re
import sys
from pathlib import Path

import yaml

COLUMNS = ("release", "id", "repo", "path", "format", "model", "site", "site_out", "width", "l0", "norm", "centred")
OUT = Path(__file__).with_name("public_saes.csv.gz")
MLP = ("mlp.hook_in", "hook_mlp_out")
# Kind of a place in a path -> what is read and, by a transcoder, written, below blocks.L.
GEMMA_3 = {"resid_post": ("hook_resid_post", ""), "attn_out": ("attn.hook_z", ""), "mlp_out": ("hook_mlp_out", ""),
           "transcoder": MLP}  # fmt: skip
LETTERS = {"r": "hook_resid_post", "a": "hook_attn_out", "m": "hook_mlp_out"}
D_MODEL = 4096  # of Llama 3.1 8B, whose widths are named as multiples


def place(release: str, facts: dict, sae: dict) -> tuple[str, str]:
    """The site it reads, and the one it writes if that is another."""
    name, path, kind = sae["id"], str(sae["path"]), facts.get("conversion_func") or ""
    named = re.match(r"blocks\.(\d+)\.(hook_[a-z]+(?:_[a-z]+)*)", name)
    if named:
        site = named[2].removesuffix("_")
        return f"blocks.{named[1]}." + ("attn.hook_z" if site == "hook_z" else site), ""
    if "embedding" in path:
        return "hook_embed", ""
    layer = re.search(r"layer_?(\d+)", name) or re.match(r"l(\d+)[ram]_", name)
    at = f"blocks.{layer[1]}."
    if "transcoder" in kind or "transcoder" in path:
        reads, writes = MLP
    elif kind == "gemma_3":
        reads, writes = next(value for key, value in GEMMA_3.items() if path.startswith(key))
    elif kind == "gemma_2":
        ending = re.search(r"-(res|att|mlp)(?:-canonical)?$", release)[1]
        reads = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}[ending]
        writes = ""
    elif kind.startswith("llama_scope"):
        reads, writes = LETTERS[re.match(r"l\d+([ram])_", name)[1]], ""
    else:  # the remaining kinds are all of the residual stream
        reads, writes = "hook_resid_post", ""
    return at + reads, at + writes if writes else ""


def width(release: str, facts: dict, sae: dict) -> int | str:
    """Number of latents, where a name tells it; "16k" and the like mean the power of two next to it, if one is."""
    text = f"{release} {facts['repo_id']} {sae['id']} {sae['path']} {sae.get('neuronpedia', '')}".replace("-220k", "")
    if re.search(r"width[_-]1m", text):
        return 2**20
    power = re.search(r"2pow(\d+)", text)
    if power:
        return 2 ** int(power[1])
    thousands = re.search(r"[-_]W?(\d+)[kK](?![A-Za-z0-9])", text)
    if thousands:
        near = 2 ** round(math.log2(1000 * int(thousands[1])))
        return near if abs(near / (1000 * int(thousands[1])) - 1) < 0.03 else 1024 * int(thousands[1])
    times = re.search(r"_(8|32)x$", sae["id"])
    if times:
        return int(times[1]) * D_MODEL
    counted = re.search(r"_(?:ds)?([1-9]\d{3,5})(?=[:_ ]|$)", f"{sae['id']} {sae['path']}")
    return int(counted[1]) if counted and facts.get("conversion_func") in (None, "connor_rob_hook_z") else ""


def rows(registry: dict) -> list[tuple]:
    """A row an SAE."""
    found = []
    for release, facts in registry.items():
        kind = facts.get("conversion_func") or "saelens"
        model = facts["model"] + ("-it" if "-9b-it" in release and not facts["model"].endswith("-it") else "")
        override = facts.get("config_overrides") or {}
        for sae in facts["saes"]:
            norm = sae.get("norm_scaling_factor") or override.get("normalize_activations") or ""
            processed = (override.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights")
            l0 = sae.get("l0")
            found.append((release, sae["id"], facts["repo_id"], "" if sae["path"] == sae["id"] else sae["path"], kind,
                          model, *place(release, facts, sae), width(release, facts, sae),
                          "" if l0 is None else f"{float(l0):g}", norm, "yes" if processed else ""))  # fmt: skip
    return found


def main(source: str) -> None:
    """Write the table, the same bytes for the same facts."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows(yaml.safe_load(Path(source).read_text(encoding="utf-8"))))
    OUT.write_bytes(gzip.compress(text.getvalue().encode(), 9, mtime=0))
    print(f"{text.getvalue().count(chr(10)) - 1:,} SAEs, {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
