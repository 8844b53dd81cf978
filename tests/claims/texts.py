"""The text that claims about perplexity are checked on."""

import gzip
import os
from pathlib import Path

import torch

import sparselens as sl


def token_ids(model: sl.LiveModel) -> tuple[str, torch.Tensor]:
    """What the text is, and its tokens in a row: WikiText-2 (`wikitext-2/test.txt.gz` below the folder that
    SPARSELENS_TEXTS names), else the answers that come with the project.
    """
    folder = os.environ.get("SPARSELENS_TEXTS")
    if folder:
        with gzip.open(Path(folder) / "wikitext-2" / "test.txt.gz", "rt", encoding="utf-8") as file:
            text, name = file.read(200_000), "WikiText-2 test"
    else:
        text, name = "\n\n".join(sl.datasets.load_answers("formal")["answer"]), "the project's formal answers"
    return name, model.tokenizer(text, return_tensors="pt")["input_ids"][0]
