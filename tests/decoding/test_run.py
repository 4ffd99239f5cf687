"""Training a decoder: its loss and views, a run that learns, going on, what is refused."""

import json
import shutil

import pytest
import torch

import iwm
from iwm.actions import draw_photometry
from iwm.config import DecoderConfig
from iwm.decoder import Decoder
from iwm.decoding.config import DecodingConfig, decoder_recipe
from iwm.decoding.run import train_decoder
from iwm.decoding.task import DecodingTask
from iwm.errors import InvalidConfigError
from iwm.model_folder import read_config
from iwm.photometry import transform
from iwm.training.config import DataConfig, OptimConfig
from iwm.world_model import WorldModel


@pytest.fixture
def base(tiny_config, tmp_path):
    """A model at random, saved."""
    WorldModel(tiny_config()).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def _config(base, **changes):
    settings = {
        "model": str(base), "width": 32, "depth": 1, "heads": 2, "steps": 60, "batch_size": 8, "device": "cpu",
        "precision": "float32", "log_every": 1, "checkpoint_every": 20, "monitor_every": 0,
        "data": DataConfig(workers=0), "optim": OptimConfig(lr=3e-3, lr_start=0.0, clip=1.0),
    }  # fmt: skip
    return DecodingConfig(**settings | changes)


def _records(out):
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"], r["grad_norm"], r["psnr"]) for r in records]


def test_views_and_loss(base):
    model = iwm.load(base)
    decoder = Decoder(DecoderConfig(space=model.space, width=32, depth=1, heads=2), model.config)
    task = DecodingTask(_config(base, clean=0.5), model, decoder)
    crops = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    keys = [(2, index) for index in range(40)]
    views = task.draw_views(crops, keys)
    params = draw_photometry(model.config.actions.distribution, seed=0, keys=keys, stream=17)
    moved = transform(crops / 255, params)
    same = [bool(torch.equal(view, crop / 255)) for view, crop in zip(views, crops, strict=True)]
    assert 8 < sum(same) < 32
    for row, untouched in enumerate(same):
        if not untouched:
            torch.testing.assert_close(views[row], moved[row])
    loss, scalars = task(crops, 0, keys)
    pixels = decoder(model.encoder(views), (4, 4))
    torch.testing.assert_close(loss, (pixels - views).abs().mean())
    error = ((pixels.clamp(0, 1) - views) ** 2).mean()
    torch.testing.assert_close(scalars["psnr"], 10 * torch.log10(1 / error))
    loss.backward()
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in decoder.parameters())


def test_a_run_learns_and_leaves_a_model_that_decodes(base, photos, tmp_path):
    out = tmp_path / "run"
    assert train_decoder(_config(base), [photos], out, command="iwm pretrain-decoder", license="CC0")
    records = _records(out)
    assert len(records) == 60
    assert sum(r[3] for r in records[-5:]) > sum(r[3] for r in records[:5]) + 10  # 2 dB on average.
    before, after = iwm.load(base), iwm.load(out)
    assert after.space == before.space
    described = read_config(out).decoder
    assert (described.license, described.recipe["command"]) == ("CC0", "iwm pretrain-decoder")
    assert described.provenance["images_seen"] == 480
    assert described.provenance["model"] == str(base)
    latent = after.encode(sorted(photos.rglob("*.jpg")) or sorted(photos.rglob("*.png")))
    assert after.decode(latent).shape == (len(latent), 3, 32, 32)


def test_a_stopped_run_goes_on_bit_for_bit(base, photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_decoder(_config(base), [photos], whole)
    stopped = DecodingTask.after_step

    def stop(self, step):
        if step == 30:
            raise KeyboardInterrupt
        return stopped(self, step)

    DecodingTask.after_step = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train_decoder(_config(base), [photos], parts)
    finally:
        DecodingTask.after_step = stopped
    assert train_decoder(_config(base), [photos], parts)
    assert _records(parts) == _records(whole)
    assert (parts / "decoder.safetensors").read_bytes() == (whole / "decoder.safetensors").read_bytes()


def test_a_run_does_not_go_on_with_another_encoder(base, photos, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(base, model)
    assert train_decoder(_config(model), [photos], out)
    other = iwm.load(model)
    other.encoder.patch_embed.proj.weight.data.add_(0.5)
    other.save_pretrained(model)
    with pytest.raises(InvalidConfigError, match=r"on the encoder .*Continue with the same images"):
        train_decoder(_config(model), [photos], out)


def test_what_cannot_be(base, photos, tmp_path):
    with pytest.raises(InvalidConfigError, match=r"divisible by 4 and by decoder\.heads"):
        train_decoder(_config(base, width=30), [photos], tmp_path / "a")
    model = iwm.load(base)
    model.config = model.config.replace(tuned="all")
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(InvalidConfigError, match="train a decoder for the model it was made from"):
        train_decoder(_config(tmp_path / "tuned"), [photos], tmp_path / "b")
    with pytest.raises(InvalidConfigError, match="clean is 2"):
        _config(base, clean=2)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_the_recipe_fits_the_embedded_model():
    recipe = decoder_recipe("iwm-tiny")
    config = iwm.load().config
    described = DecoderConfig(space="0" * 16, width=recipe.width, depth=recipe.depth, heads=recipe.heads)
    size = config.replace(decoder=described).decoder_parameters * 2
    assert size < 10e6
