"""Fine-tunes of SAM 2 at other sizes, and the registry of models that have a name."""

import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import masklet
from masklet import checkpoints
from masklet.checkpoints import KNOWN_MODELS, hub
from masklet.checkpoints.meta import META_SIZES, meta_tensors, released_config
from masklet.compat import transformers as compat
from masklet.config import edgetam_config
from masklet.model.sam2 import Sam2Model


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory):
    """A file in Meta's layout with the tensors of SAM 2.1 tiny. All of them are one number each, to be small."""
    with torch.device("meta"):
        shapes = Sam2Model(released_config(96, (1, 2, 7, 2))).state_dict()
    path = tmp_path_factory.mktemp("files") / "tiny.pt"
    torch.save({"model": meta_tensors({n: torch.tensor(0.01).expand(t.shape) for n, t in shapes.items()})}, path)
    return path


@pytest.fixture
def fetched(tiny_file, tmp_path, monkeypatch):
    """Stands in for the Hub; its calls."""
    calls = []

    def fetch(repository, filename, **_):
        calls.append((repository, filename))
        return str(shutil.copy(tiny_file, tmp_path / filename))

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    return calls


def test_medsam2_is_fetched_by_name_and_runs_at_its_own_size(fetched):
    sam = masklet.load("medsam2")
    assert set(fetched) == {("wanglab/MedSAM2", "MedSAM2_latest.pt")}
    assert sam.engine.config.image_size == 512
    assert sam.image_processor.input_hw == (512, 512)


@pytest.mark.parametrize(
    ("name", "resolution", "side"),
    [
        ("MedSAM2_CTLesion.pt", None, 512),
        ("medsam2_mine.pt", None, 512),
        ("MedSAM2_latest.pt", 1024, 1024),
        ("my_fine_tune.pt", None, 1024),
        ("my_fine_tune.pt", 640, 640),
    ],
)
def test_a_file_has_the_size_of_its_name_unless_another_is_given(tiny_file, tmp_path, name, resolution, side):
    path = shutil.copy(tiny_file, tmp_path / name)
    sam = masklet.load(path, resolution=resolution)
    assert sam.engine.config.image_size == side
    assert sam.image_processor.input_hw == (side, side)


def test_the_size_is_kept_in_a_folder(tiny_folder, tmp_path):
    masklet.load(tiny_folder, resolution=96).model.save_pretrained(tmp_path)
    sam = masklet.load(tmp_path)
    assert sam.engine.config.image_size == 96
    assert sam.image_processor.input_hw == (96, 96)


def test_the_drop_in_classes_take_the_size_of_the_name_too(tiny_file, tmp_path):
    path = shutil.copy(tiny_file, tmp_path / "MedSAM2_2411.pt")
    config = compat.Sam2VideoConfig.from_pretrained(path)
    assert config.image_size == config.prompt_encoder_config.image_size == 512
    assert checkpoints.read_processor(path)[0] == {"size": 512}


def test_a_folder_with_the_name_of_a_model_has_priority(tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "medsam2")
    monkeypatch.chdir(tmp_path)
    assert masklet.load("medsam2").engine.config.image_size == 64


@pytest.mark.slow
def test_the_speed_classes_follow_the_operations_of_encoding_an_image():
    configs = {"edgetam": edgetam_config(), "medsam2": released_config(96, (1, 2, 7, 2))}
    sizes = ("tiny", "small", "base-plus", "large")
    configs |= {f"sam2.1-hiera-{size}": released_config(*key) for size, key in zip(sizes, META_SIZES, strict=True)}
    known = {model.name: model for model in KNOWN_MODELS}
    for name, config in configs.items():
        side = 512 if name == "medsam2" else config.image_size
        with torch.device("meta"):
            network, pixels = Sam2Model(config).eval(), torch.empty(1, 3, side, side)
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            network.encode(pixels)
        limits = dict(zip(hub.SPEEDS, (50e9, 400e9, 1000e9, float("inf")), strict=True))
        assert known[name].speed == next(s for s, limit in limits.items() if counter.get_total_flops() <= limit)
        assert known[name].parameters == pytest.approx(sum(p.numel() for p in network.parameters()), rel=1e-3)
