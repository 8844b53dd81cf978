"""The command line, for long jobs outside of a notebook: `sparselens embed`, `diff`, `train-sae`, `fetch`.

Progress goes to stderr; results go to stdout, as a path or a table. An error is one line, and the exit code is 2.
Whatever is killed goes on when the same command is given again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

DEFAULT = "smollm2-135m-instruct"


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0, 2 after an error, 130 after an interrupt."""
    from sparselens.errors import SparselensError

    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except SparselensError as error:
        print(f"sparselens: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sparselens: interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a table has seen enough
        sys.stdout = None  # type: ignore[assignment]
    return 0


def _parser() -> argparse.ArgumentParser:
    from sparselens import __version__

    parser = argparse.ArgumentParser(prog="sparselens", description=__doc__, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"sparselens {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, fill in (("embed", _embed, _embed_options), ("diff", _diff, _diff_options),
                            ("train-sae", _train, _train_options), ("fetch", _fetch, _fetch_options)):
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__, formatter_class=_Help)
        command.set_defaults(run=run)
        fill(command)
    return parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and texts as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _texts_options(command: argparse.ArgumentParser, out: str, longest: str) -> None:
    command.add_argument("texts", type=Path, help="file of texts: txt, jsonl, json, csv, tsv or parquet")
    command.add_argument("--out", type=Path, required=True, help=out)
    command.add_argument("--field", default="text", help="column that holds the texts")
    command.add_argument("--model", default=DEFAULT, help="packaged model, hub id, folder or GGUF file")
    command.add_argument("--device", help="such as cuda or cpu")
    command.add_argument("--role", help="wrap each text as a turn of a chat: user or assistant")
    command.add_argument("--max-length", type=int, help=f"longest row in tokens; {longest} if not given")
    command.add_argument("--batch-tokens", type=int, default=2048, help="most tokens in a forward pass")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


# --- embed -------------------------------------------------------------------------------------------------------


def _embed_options(command: argparse.ArgumentParser) -> None:
    _texts_options(command, "folder to write; one that is unfinished is gone on with", "the model's own limit")
    add = command.add_argument
    add("--sae", default=DEFAULT, help="folder, name of a shipped SAE, or hub id")
    add("--pooling", default="max", help="max, mean, sum, binarize or count")
    add("--threshold", type=float, default=0.0, help="a token fires above this")
    add("--min-tokens", type=int, default=1, help="tokens of a text that must fire")
    add("--span", default="all", help="of chats: all, prompt or answer")
    add("--long", default="error", help="longer texts: error, cut, chunk (pooled together) or split (a row each)")
    add("--append", action="store_true", help="add to what is in the folder")
    add("--engine", default="local", help="local or ray")
    add("--workers", type=int, help="Ray actors; as many as fit if not given")


def _embed(options: argparse.Namespace) -> None:
    """Turn a file of texts into features of a dictionary. Prints the folder."""
    from sparselens.embeddings import embed
    from sparselens.models import load_model
    from sparselens.sae import SAE

    names = ("pooling", "threshold", "min_tokens", "role", "span", "long", "append", "engine", "workers", "max_length",
             "batch_tokens")
    settings = {name: getattr(options, name) for name in names}
    frame = _read(options)
    m = load_model(options.model, device=options.device)
    emb = embed(frame, m, SAE.load(options.sae), options.out, text_column=options.field,
                progress=not options.quiet, **settings)
    cost = emb.cost()
    print(f"{emb!r}: {cost.reader_tokens:,} tokens read in {cost.seconds:,.1f} seconds", file=sys.stderr)
    print(options.out)


def _read(options: argparse.Namespace) -> Any:
    from sparselens.datasets import read_texts

    return read_texts(options.texts, options.field)


# --- diff --------------------------------------------------------------------------------------------------------


def _diff_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("a", type=Path, help="folder of embedded texts")
    add("b", type=Path, help="the folder to compare it with")
    add("--out", type=Path, help="write everything to this .html, .csv or .parquet file, and print its path")
    add("--alpha", type=float, default=0.05, help="1 minus the confidence; the q-value that counts")
    add("--top", type=int, default=20, help="rows to print")
    add("--match-length", action="store_true", help="compare texts of like length")
    add("--min-tokens", type=int, default=1, help="tokens of a text that must fire")
    add("--names", nargs=2, metavar=("A", "B"), help="what to call the two; the folders' names if not given")


def _diff(options: argparse.Namespace) -> None:
    """Find the features that tell two embedded sets of texts apart. Prints a table, tabs between its columns."""
    from sparselens.embeddings import SAEEmbedding, diff
    from sparselens.errors import InputError, closest

    kinds = (".html", ".csv", ".parquet")
    if options.out is not None and options.out.suffix not in kinds:
        raise InputError(f"cannot write {options.out.name!r}: valid endings are {', '.join(kinds)}."
                         f"{closest(options.out.suffix, kinds)}")
    a, b = SAEEmbedding.load(options.a), SAEEmbedding.load(options.b)
    names = tuple(options.names or (options.a.resolve().name, options.b.resolve().name))
    found = diff(a, b, alpha=options.alpha, min_tokens=options.min_tokens, match_length=options.match_length,
                 names=names)
    print(*found.notes, sep="\n", file=sys.stderr)
    frame = found.to_frame()
    if options.out is None:
        print(frame.head(options.top).to_csv(sep="\t", index=False, float_format="%.4g"), end="")
        return
    if options.out.suffix == ".html":
        found.save(options.out)
    else:
        _write(frame, options.out)
    print(options.out)


def _write(frame: Any, path: Path) -> None:
    """Write a frame as CSV or Parquet."""
    from sparselens.files import write_whole

    with write_whole(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)


# --- train-sae ---------------------------------------------------------------------------------------------------


def _train_options(command: argparse.ArgumentParser) -> None:
    _texts_options(command, "folder of the run; one that is unfinished is gone on with", "256")
    add = command.add_argument
    add("--site", required=True, help="where in the model, such as blocks.14.hook_resid_post")
    add("--n-tokens", type=int, required=True, help="tokens to train on")
    add("--architecture", default="topk", help="kind of SAE, such as topk, batchtopk, jumprelu or relu")
    add("--d-sae", type=int, help="number of latents; 8 times the width of the site if not given")
    add("--k", type=float, default=32, help="active latents per token")
    add("--lr", type=float, default=3e-3, help="peak learning rate")
    add("--seed", type=int, default=0, help="of the weights and of the order of the rows")


def _train(options: argparse.Namespace) -> None:
    """Train a sparse autoencoder on the texts of a file. Prints the folder of the SAE."""
    from sparselens.models import load_model
    from sparselens.sae import harvest, train_sae

    texts = _read(options)[options.field].tolist()
    m = load_model(options.model, device=options.device)
    progress = not options.quiet
    store = harvest(m, texts, options.site, options.out / "activations", options.n_tokens, role=options.role,
                    context=options.max_length or 256, batch_tokens=options.batch_tokens, progress=progress)
    k = int(options.k) if options.k == int(options.k) else options.k
    sae, run = train_sae(store, n_tokens=options.n_tokens, architecture=options.architecture, d_sae=options.d_sae,
                         k=k, lr=options.lr, seed=options.seed, out=options.out, live=False, progress=progress)
    print(f"{sae}: {run.n_tokens:,} tokens, fvu {sae.metadata.get('fvu')}", file=sys.stderr)
    print(options.out / "sae")


# --- fetch -------------------------------------------------------------------------------------------------------


def _fetch_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="?", default=DEFAULT, help="packaged model or hub id")
    command.add_argument("--sae", help="an SAE to fetch as well: hub id")


def _fetch(options: argparse.Namespace) -> None:
    """Fetch a model, so that it is there when there is no network. Prints where it lies."""
    from sparselens.models import load_model
    from sparselens.sae import SAE

    m = load_model(options.model)
    print(f"{m!r}", file=sys.stderr)
    print(m.module.config.name_or_path or m.name)
    if options.sae:
        print(f"{SAE.load(options.sae)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
