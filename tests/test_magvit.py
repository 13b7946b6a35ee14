"""MAGVIT-v2 against the official code, its protocol, its files, and the pictures it is given."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cotlib.errors import CorruptError, ForeignError
from cotlib.magvit import Magvit, MagvitConfig, fit, to_images, to_pixels

FIXTURES = Path(__file__).parent / "fixtures" / "showo"
SMALL = MagvitConfig(  # sizes of magvit5
    channels=32,
    encoder_widths=(1, 1, 2, 2, 2),
    encoder_blocks=(1, 1, 1, 1, 2),
    decoder_widths=(1, 1, 2, 2, 2),
    decoder_blocks=(2, 1, 1, 1, 1),
    bits=6,
    image_size=64,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("magvit")
    model = Magvit(SMALL)
    model.load_state_dict(load_file(FIXTURES / "magvit5.safetensors"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(saved) -> Magvit:
    return Magvit.from_pretrained(saved)


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return load_file(FIXTURES / "magvit5_io.safetensors")


# --- Parity ---


def test_the_published_sizes_have_the_published_weights():
    published = json.loads((FIXTURES / "state_dict_shapes_default.json").read_text())["magvitv2"]
    with torch.device("meta"):
        model = Magvit()
    assert {name: [list(t.shape), str(t.dtype)] for name, t in model.state_dict().items()} == published
    assert sum(p.numel() for p in model.parameters()) == 95_387_004
    assert (model.image_size, model.grid, model.n_tokens, model.codebook_size) == (256, 16, 256, 8192)


@pytest.mark.parametrize("name", ["encode", "encode_rect"])
def test_pictures_become_the_official_codes(model, io, name):
    with torch.no_grad():
        z = model.encoder(io[f"{name}.pixels"])
    assert (z - io[f"{name}.pre_quant"]).abs().max() < 1e-4
    assert torch.equal(model.quantize(z).flatten(1), io[f"{name}.codes"])


@pytest.mark.parametrize(("name", "grid"), [("decode", (4, 4)), ("decode_rect", (4, 6))])
def test_codes_become_the_official_pictures(model, io, name, grid):
    codes = io[f"{name}.codes"]
    with torch.no_grad():
        pixels = model.decoder(model.signs(codes.view(-1, *grid)))
    assert (pixels - io[f"{name}.image"]).abs().max() < 1e-4
    off = np.abs(model.decode(codes, grid=grid).astype(int) - to_images(io[f"{name}.image"]))
    assert off.max() <= 1 and off.mean() < 1e-3  # a value on the edge between two bytes may fall either way


def test_the_bytes_of_a_picture_are_the_official_ones(model, io):
    assert np.array_equal(model.decode(io["decode.codes"]), io["decode.uint8"].numpy())
    assert torch.equal(model.signs(io["decode.codes"].view(2, 4, 4)), io["decode.z_q"])


def test_codes_are_signs_most_significant_channel_first(model, io):
    z = torch.tensor([0.5, -1.0, 0.0, -0.1, 2.0, 0.0]).view(1, 6, 1, 1)
    assert model.quantize(z).item() == 0b100010  # zero counts as negative
    assert model.signs(torch.tensor([[[0b100010]]])).flatten().tolist() == [1, -1, -1, -1, 1, -1]
    assert torch.equal(model.quantize.embedding, io["codebook.embedding"])
    assert torch.equal(model.quantize.power_vals, io["codebook.power_vals"])


# --- Pictures ---


@pytest.mark.parametrize("name", ["100x75", "40x40", "75x130", "97x64"])
def test_pictures_are_fitted_as_torchvision_does(name):
    transforms = load_file(FIXTURES / "image_transform.safetensors")
    image = Image.fromarray(transforms[f"{name}_to64.src_uint8_hwc"].numpy())
    pixels = to_pixels(torch.from_numpy(fit(image, 64).copy())[None])[0]
    assert torch.equal(pixels, transforms[f"{name}_to64.pixels"])


def test_a_grey_picture_is_fitted_in_colour():
    assert fit(Image.new("L", (10, 20), 7), 64).tolist() == np.full((64, 64, 3), 7).tolist()


# --- Protocol ---


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def test_batches_change_nothing(model, images):
    codes = model.encode(images)
    assert codes.shape == (5, 16) and codes.dtype == torch.long
    assert torch.equal(codes, model.encode(images, batch_size=2))
    off = np.abs(model.decode(codes, batch_size=2).astype(int) - model.decode(codes))
    assert off.max() <= 1 and off.mean() < 1e-3


def test_no_pictures_are_no_codes_and_back(model):
    assert model.encode(np.empty((0, 64, 64, 3), np.uint8)).shape == (0, 16)
    assert model.decode(torch.empty((0, 16), dtype=torch.long)).shape == (0, 64, 64, 3)


def test_another_grid_is_asked_for_by_name(model):
    wide = np.zeros((1, 64, 96, 3), np.uint8)
    codes = model.encode(wide, grid=(4, 6))
    assert codes.shape == (1, 24) and model.decode(codes, grid=(4, 6)).shape == wide.shape
    with pytest.raises(ValueError, match="64, 64, 3"):
        model.encode(wide)
    with pytest.raises(ValueError, match=r"expected codes \[B, 16\]"):
        model.decode(codes)


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (64, 64, 3), (1, 64, 64, 4)])
def test_a_picture_of_the_wrong_size_is_refused(model, shape):
    with pytest.raises(ValueError, match="64, 64, 3"):
        model.encode(np.zeros(shape, np.uint8))


def test_a_picture_of_floats_is_refused(model):
    with pytest.raises(ValueError, match="got float64"):
        model.encode(np.zeros((1, 64, 64, 3)))


def test_mask_tokens_left_in_are_refused(model):
    with pytest.raises(ValueError, match="were mask tokens left in"):
        model.decode(torch.full((1, 16), 64))


# --- Files ---


def test_what_is_saved_has_the_official_names(saved, model):
    published = load_file(FIXTURES / "magvit5.safetensors")
    state = load_file(saved / "pytorch_model.safetensors")
    assert state.keys() == published.keys() and all(torch.equal(state[k], published[k]) for k in state)
    assert model.config == SMALL and not model.training


def test_the_hubs_usual_name_is_read_too_and_the_size_of_pictures_can_be_chosen(saved, tmp_path):
    shutil.copy(saved / "config.json", tmp_path)
    shutil.copy(saved / "pytorch_model.safetensors", tmp_path / "model.safetensors")
    assert Magvit.from_pretrained(tmp_path, image_size=128).n_tokens == 64


def without_sizes(saved, folder, change=lambda weights: None) -> Path:
    """A folder as published: weights under Show-o's name, and a config.json that holds no sizes."""
    (folder / "config.json").write_text('{"_class_name": "MAGVITv2", "_diffusers_version": "0.30.1"}')
    weights = load_file(saved / "pytorch_model.safetensors")
    change(weights)
    save_file(weights, folder / "pytorch_model.safetensors")
    return folder


def test_sizes_that_no_config_holds_are_read_from_the_weights(saved, model, io, tmp_path):
    published = Magvit.from_pretrained(without_sizes(saved, tmp_path), image_size=64)
    assert published.config == SMALL
    assert np.array_equal(published.decode(io["decode.codes"]), model.decode(io["decode.codes"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("encoder.mid.attn_1.q.bias"), "1 missing: encoder.mid.attn_1.q.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "1 extra: extra"),
        (lambda w: w.clear() or w.update(other=torch.zeros(1)), "382 weights .*382 missing.*1 extra: other"),
    ],
)
def test_weights_that_do_not_fit_are_listed(saved, tmp_path, change, message):
    with pytest.raises(ForeignError, match=message):
        Magvit.from_pretrained(without_sizes(saved, tmp_path, change))


def test_pickled_weights_are_refused(saved, tmp_path):
    shutil.copy(saved / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ValueError, match="never loaded"):
        Magvit.from_pretrained(tmp_path)


def test_sizes_that_do_not_fit_together_are_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_blocks": [1, 1]}))
    with pytest.raises(CorruptError, match="as many levels"):
        Magvit.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="multiple of 16, got 250"):
        MagvitConfig(image_size=250)
