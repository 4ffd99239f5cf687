"""Decoders: shapes, sizes counted before building, files, the latent space they belong to."""

import json

import pytest
import torch
import torch.nn.functional as F

import iwm
from iwm.actions import Action
from iwm.config import DecoderConfig
from iwm.counting import decoder_channels, decoder_factors
from iwm.decoder import Decoder
from iwm.errors import (
    IncompatibleLatentError,
    IncompatibleWeightsError,
    InvalidConfigError,
    WeightsUnavailableError,
)
from iwm.model_folder import DECODER_FILE, WEIGHTS_FILE, read_config
from iwm.publishing import push
from iwm.world_model import WorldModel

SMALL = {"width": 32, "depth": 1, "heads": 2}


def with_decoder(config):
    """A model with a decoder, both at random."""
    model = WorldModel(config)
    decoder = Decoder(DecoderConfig(space=model.space, **SMALL), config)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    # As it is stored, so that what is read again is the same.
    model.add_decoder(decoder.half().float())
    return model


@pytest.fixture
def model(tiny_config):
    return with_decoder(tiny_config())


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_is_what_its_parts_say(model):
    """Against the same network written out, one operation after the other."""
    tokens = torch.randn(2, 6, 48)
    grid = (2, 3)
    decoder = model.decoder
    x = decoder.project_in(tokens)
    position = torch.arange(6)
    row, column = (position // 3 + 0.5) * (4 / 2) - 0.5, (position % 3 + 0.5) * (4 / 3) - 0.5
    frequency = 10000.0 ** -(torch.arange(8) / 8)
    table = [f(axis[:, None] * frequency) for axis in (row, column) for f in (torch.sin, torch.cos)]
    x = decoder.norm(decoder.blocks[0](x + torch.cat(table, dim=1)))
    image = torch.stack([x[:, i] for i in range(6)], dim=2).reshape(2, 32, 2, 3)
    for stage in decoder.stages:
        image = F.conv2d(image, stage.spread.weight, stage.spread.bias, padding=1)
        batch, channels, height, width = image.shape
        image = image.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        image = image.reshape(batch, channels // 4, 2 * height, 2 * width)
        image = image + F.conv2d(F.gelu(image), stage.refine.weight, stage.refine.bias, padding=1)
    image = F.conv2d(F.gelu(image), decoder.to_pixels.weight, decoder.to_pixels.bias, padding=1) + 0.5
    assert image.shape == (2, 3, 16, 24)
    torch.testing.assert_close(decoder(tokens, grid), image, rtol=1e-4, atol=1e-4)


def test_decode_is_clipped_in_batches_and_without_gradients(model):
    images = torch.rand(5, 3, 32, 32)
    latent = model.apply_action(model.encode(images), Action(brightness=1.4))
    seen = model.decode(latent, batch_size=2)
    assert seen.shape == (5, 3, 32, 32)
    assert seen.dtype == torch.float32
    assert not seen.requires_grad
    expected = model.decoder(latent.tokens, latent.grid)
    assert (expected < 0).any()
    assert (expected > 1).any()
    torch.testing.assert_close(seen, expected.clamp(0, 1))
    assert not model.decoder.training


@pytest.mark.parametrize(
    ("patch", "factors", "channels"),
    [
        (16, [2, 2, 2, 2], [256, 128, 64, 32, 32]),
        (14, [7, 2], [256, 128, 64]),
        (1, [], [256]),
        (6, [3, 2], [256, 128, 64]),
    ],
)
def test_stages(patch, factors, channels):
    assert decoder_factors(patch) == factors
    assert decoder_channels(256, len(factors)) == channels
    assert decoder_channels(16, 2) == [16, 16, 16]


@pytest.mark.parametrize("sizes", [{}, SMALL, {"width": 64, "depth": 3, "heads": 8}])
def test_parameters_are_counted_without_building(tiny_config, sizes):
    config = tiny_config()
    described = DecoderConfig(space="0" * 16, **sizes)
    counted = config.replace(decoder=described).decoder_parameters
    assert counted == sum(p.numel() for p in Decoder(described, config).parameters())
    assert config.decoder_parameters == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 30}, "divisible by 4 and by decoder.heads"),
        ({"width": 32, "heads": 5}, "divisible by 4 and by decoder.heads"),
        ({"depth": 0}, "decoder.depth is 0"),
        ({"heads": 0}, "decoder.heads is 0"),
        ({"space": "../x"}, 'decoder.space is "../x"'),
        ({"license": "a\nb"}, "one line"),
        ({"width": 65536, "depth": 1024}, "parameters"),
    ],
)
def test_impossible_ones(tiny_config, change, words):
    with pytest.raises(InvalidConfigError, match=words):
        tiny_config().replace(decoder=DecoderConfig(**{"space": "0" * 16} | change))


def test_there_and_back(model, folder):
    again = iwm.load(folder)
    assert again.decoder is None
    latent = again.encode(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(again.decode(latent), model.decode(latent))
    assert again.config == model.config
    assert not [name for name in again.config.metrics if "decoder" in name]
    again.save_pretrained(folder.parent / "copy")
    assert (folder.parent / "copy" / DECODER_FILE).read_bytes() == (folder / DECODER_FILE).read_bytes()
    assert (folder.parent / "copy" / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


def test_a_decoder_that_was_not_loaded_is_saved_with_the_model(model, folder, tmp_path):
    iwm.load(folder).save_pretrained(tmp_path / "copy")
    latent = model.encode(torch.rand(1, 3, 32, 32))
    torch.testing.assert_close(iwm.load(tmp_path / "copy").decode(latent), model.decode(latent))


def test_a_model_without_one_says_how_to_train_it(tiny_config, tmp_path):
    model = WorldModel(tiny_config())
    with pytest.raises(WeightsUnavailableError, match=r"has no decoder\. Train one: `iwm pretrain-decoder"):
        model.decode(model.encode(torch.rand(1, 3, 32, 32)))
    model.save_pretrained(tmp_path)
    assert not (tmp_path / DECODER_FILE).exists()


def test_another_latent_space_is_refused(model, folder, tiny_config, tmp_path):
    other = WorldModel(tiny_config())
    torch.nn.init.normal_(other.encoder.patch_embed.proj.weight)
    with pytest.raises(
        IncompatibleLatentError, match="A Tensor is no latent; pass what encode or apply_action"
    ):
        model.decode(model.encode(torch.zeros(3, 32, 32)).tokens)
    with pytest.raises(IncompatibleLatentError, match=r"made by another encoder"):
        model.decode(other.encode(torch.rand(1, 3, 32, 32)))
    with pytest.raises(IncompatibleWeightsError, match=f"space {model.space}, this model's is {other.space}"):
        other.add_decoder(model.decoder)
    other.save_pretrained(tmp_path / "other")
    (folder / WEIGHTS_FILE).write_bytes((tmp_path / "other" / WEIGHTS_FILE).read_bytes())
    swapped = iwm.load(folder)
    with pytest.raises(IncompatibleWeightsError, match=r"decoder was trained on another encoder"):
        swapped.decode(swapped.encode(torch.rand(1, 3, 32, 32)))


def test_a_missing_or_cut_file(folder):
    model = iwm.load(folder)
    latent = model.encode(torch.rand(1, 3, 32, 32))
    whole = (folder / DECODER_FILE).read_bytes()
    (folder / DECODER_FILE).write_bytes(whole[:-100])
    with pytest.raises(IncompatibleWeightsError, match=r"decoder\.safetensors is not a readable"):
        model.decode(latent)
    (folder / DECODER_FILE).unlink()
    with pytest.raises(WeightsUnavailableError, match=r"decoder\.safetensors"):
        model.decode(latent)
    (folder / DECODER_FILE).write_bytes(whole)
    assert model.decode(latent).shape == (1, 3, 32, 32)


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_over_the_hub(hub, folder, tmp_path):
    push(folder, "org/seen", token="hf_good")
    model = iwm.load("org/seen", cache_dir=tmp_path / "cache")
    assert not any(DECODER_FILE in r.subject for r in hub.requests if "/resolve/" in r.subject)
    latent = model.encode(torch.rand(2, 3, 32, 32))
    torch.testing.assert_close(model.decode(latent), iwm.load(folder).decode(latent))
    assert any(DECODER_FILE in r.subject for r in hub.requests if "/resolve/" in r.subject)


def test_the_config_is_read_strictly(folder):
    config = json.loads((folder / "config.json").read_text())
    config["decoder"]["depht"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidConfigError, match="depht"):
        read_config(folder)
