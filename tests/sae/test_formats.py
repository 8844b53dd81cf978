import json
from pathlib import Path

import pytest
import torch

from sparselens.errors import FetchError, FileFormatError, InputError, StorageError
from sparselens.sae import SAE, registry, shipped
from tests.sae.test_sae import random_sae


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder of shipped SAEs: two of one model (the second the default), one of another."""
    monkeypatch.setattr(registry, "roots", lambda: [tmp_path / "none", tmp_path / "saes"])
    for name, default in {"toy/blocks.1.hook_x/a": False, "toy/blocks.2.hook_x/b": True, "other/s/r": False}.items():
        folder = random_sae(metadata={"where": name}).save(tmp_path / "saes" / name)
        card = json.loads((folder / "card.json").read_text()) | {"default": default}
        (folder / "card.json").write_text(json.dumps(card))
    return tmp_path / "saes"


@pytest.mark.parametrize(
    "name, found",
    [
        ("toy", "toy/blocks.2.hook_x/b"),
        ("toy/blocks.1.hook_x", "toy/blocks.1.hook_x/a"),
        ("toy/blocks.2.hook_x/b", "toy/blocks.2.hook_x/b"),
        ("other", "other/s/r"),
    ],
)
def test_shipped_names(shelf, name, found):
    assert SAE.load(name).metadata["where"] == found


def test_the_list_of_shipped_saes(shelf):
    assert [(entry.name, entry.default) for entry in shipped()] == [
        ("other/s/r", False),
        ("toy/blocks.1.hook_x/a", False),
        ("toy/blocks.2.hook_x/b", True),
    ]


def test_a_shipped_sae_may_be_in_our_own_layout(shelf):
    sae = SAE("mp", d_in=4, d_sae=6, k=2, metadata={"where": "own"})
    sae.save(shelf / "third/blocks.0.hook_x/mp")
    assert SAE.load("third/blocks.0.hook_x/mp").metadata["where"] == "own"


def test_unknown_names_name_the_closest(shelf):
    with pytest.raises(InputError, match="Closest: toy"):
        SAE.load("tooy")
    with pytest.raises(InputError, match="Closest: toy/blocks.2.hook_x/b"):
        SAE.load("toy/blocks.2.hok_x/b")


def test_several_without_a_default_are_listed(shelf):
    card = shelf / "toy/blocks.2.hook_x/b/card.json"
    card.write_text("{}")
    with pytest.raises(InputError, match="fits several"):
        SAE.load("toy")


def test_hub_names_fetch_only_what_is_needed(shelf, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot_download(repo, allow_patterns, **settings):
        asked.append((repo, allow_patterns, settings))
        return str(shelf / "toy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert SAE.load("hf://org/repo/blocks.1.hook_x/a").metadata["where"] == "toy/blocks.1.hook_x/a"
    assert SAE.load("org/repo/blocks.2.hook_x/b").metadata["where"] == "toy/blocks.2.hook_x/b"
    assert asked[0][0] == "org/repo" and "blocks.1.hook_x/a/cfg.json" in asked[0][1]
    with pytest.raises(FetchError, match="has no SAE in nowhere"):
        SAE.load("org/repo/nowhere")
    SAE.from_pretrained("org/repo/blocks.1.hook_x/a", revision="v2", cache_dir="here", local_files_only=True)
    assert asked[-1][2] == {"revision": "v2", "cache_dir": Path("here"), "local_files_only": True}


def test_uploading_sends_the_saved_folder(monkeypatch):
    import huggingface_hub

    sent = {}

    class Api:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo, private, exist_ok):
            sent["repo"] = (repo, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, path_in_repo, commit_message, revision):
            sent["files"] = sorted(path.name for path in folder_path.iterdir())
            sent["place"] = path_in_repo
            return "address"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert random_sae().push_to_hub("org/repo/blocks.1/a", private=True) == "address"
    assert sent["repo"] == ("org/repo", True, True) and sent["place"] == "blocks.1/a"
    assert sent["files"] == ["card.json", "cfg.json", "sae_weights.safetensors"]


def test_an_unreachable_hub_is_a_fetch_error(shelf, monkeypatch):
    import huggingface_hub

    def fail(*_args, **_kwargs):
        raise OSError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FetchError, match="no route"):
        SAE.load("org/repo")


def test_the_card_tells_the_facts(tmp_path):
    folder = random_sae(site="s", metadata={"fvu": 0.1, "n_tokens": 5}).save(tmp_path / "sae")
    card = json.loads((folder / "card.json").read_text())
    assert card["fvu"] == 0.1 and card["site"] == "s" and card["k"] == 4
    plain = random_sae().save(tmp_path / "plain", format="saelens")
    assert sorted(file.name for file in plain.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_saving_never_replaces_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="is not an SAE"):
        random_sae().save(tmp_path)
    with pytest.raises(InputError, match="is not an SAE"):
        random_sae().save(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    folder = random_sae().save(tmp_path / "new" / "sae")
    second = random_sae()
    second.save(folder)
    assert torch.equal(SAE.load(folder).W_dec, second.W_dec)


def test_other_mistakes(tmp_path):
    with pytest.raises(InputError, match="Closest: saelens"):
        random_sae().save(tmp_path / "sae", format="sae-lens")
    with pytest.raises(FileFormatError, match="no SAE in a known format"):
        SAE.load(tmp_path)
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(FileFormatError, match="give the folder"):
        SAE.load(tmp_path / "x.txt")
    with pytest.raises(InputError, match="no SAE called"):
        SAE.load(tmp_path / "missing")


def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    from sparselens.sae import format_saelens

    def full(*_args):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(format_saelens, "save_file", full)
    with pytest.raises(StorageError, match="No space left"):
        random_sae().save(tmp_path / "sae")
    assert not list(tmp_path.iterdir())
