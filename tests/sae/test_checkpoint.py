import pytest
import torch

from sparselens.errors import FileFormatError, InputError
from sparselens.sae.checkpoint import load_checkpoint, save_checkpoint

SETTINGS = {"k": 3}


def test_the_newest_is_kept_and_comes_back_exactly(tmp_path):
    state = {"a": {"weights.enc": torch.randn(3, 4).T, "since": torch.arange(3)}, "b/c": {"scale": torch.tensor(0.1)}}
    save_checkpoint(tmp_path, 10, {"a": {"since": torch.zeros(3)}}, {"settings": SETTINGS})
    save_checkpoint(tmp_path, 20, state, {"settings": SETTINGS, "seconds": 1.5})
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["00000020"]
    tensors, facts = load_checkpoint(tmp_path, SETTINGS)
    assert facts == {"step": 20, "settings": SETTINGS, "seconds": 1.5}
    assert tensors.keys() == state.keys()
    for name, part in state.items():
        assert all(torch.equal(part[key], tensors[name][key]) for key in part)


def test_half_written_ones_do_not_count(tmp_path):
    (tmp_path / "checkpoints" / ".00000030.x.tmp").mkdir(parents=True)
    assert load_checkpoint(tmp_path, SETTINGS) is None
    save_checkpoint(tmp_path, 40, {"a": {"since": torch.zeros(3)}}, {"settings": SETTINGS})
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1


def test_other_settings_and_damage_are_refused(tmp_path):
    save_checkpoint(tmp_path, 10, {"a": {"since": torch.zeros(3)}}, {"settings": SETTINGS})
    with pytest.raises(InputError, match="k: there 3, now 4"):
        load_checkpoint(tmp_path, {"k": 4})
    file = tmp_path / "checkpoints" / "00000010" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(FileFormatError, match="cut off"):
        load_checkpoint(tmp_path, SETTINGS)
