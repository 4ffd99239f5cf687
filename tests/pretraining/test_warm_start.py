"""Encoders that timm built, in this library: the same tokens, other grids, and whole runs on them."""

import json
import shlex
from dataclasses import replace

import huggingface_hub.constants
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

import iwm
from iwm.cli.pretrain import parse_overrides, set_dotted
from iwm.config import EncoderConfig, PredictorConfig, PreprocessConfig, WorldModelConfig
from iwm.encoder import Encoder
from iwm.errors import (
    IncompatibleWeightsError,
    InvalidConfigError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.fields import from_dict, to_json
from iwm.pretraining.config import PretrainConfig
from iwm.pretraining.run import check_start, pretrain
from iwm.pretraining.task import PretrainTask
from iwm.pretraining.warm_start import Donor, find_donor, resample_positions, translate
from iwm.world_model import WorldModel

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def _scramble(model):
    """Weights that are all at work, norms and scales too."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)


def _small_vit(**changes):
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 3}
    plain = {"class_token": False, "global_pool": "avg", "num_classes": 5}
    return _scramble(VisionTransformer(**sizes | plain | changes))


def _config(side=64, patch=16, **changes):
    encoder = {"width": 48, "depth": 2, "heads": 4, "mlp_ratio": 3.0, "patch_size": patch, "image_size": side}
    return WorldModelConfig(
        encoder=EncoderConfig(**encoder | changes),
        predictor=PredictorConfig(width=48, depth=1),
        preprocess=PreprocessConfig(size=side, resize=side, mean=MEAN, std=STD),
    )


def _adopted(donor, config):
    adapted = donor.adapt(config)
    encoder = Encoder(adapted.encoder, adapted.preprocess)
    donor.fill(encoder)
    return encoder.eval()


def _reference(vit, images, table=None, mean=MEAN, std=STD):
    """timm's own patch tokens before its final norm, without prefix tokens; under the plain norm."""
    x = vit.patch_embed((images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    if table is None:
        x = vit._pos_embed(x)
        assert vit.num_prefix_tokens == 0
    else:
        x = x + table
    x = vit.blocks(vit.norm_pre(x))
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


@pytest.fixture
def save(tmp_path):
    def write(module, name="donor.safetensors"):
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / name)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("scale", [None, 0.1], ids=["plain", "layer scale"])
def test_tokens_of_a_published_architecture_are_those_of_timm(save, scale):
    vit = _scramble(
        timm.create_model(
            "vit_tiny_patch16_224", class_token=False, global_pool="avg", pretrained=False, init_values=scale
        )
    )
    config = _config(224, width=192, depth=12, heads=3, mlp_ratio=4.0)
    encoder = _adopted(find_donor(save(vit)), config)
    images = torch.rand(2, 3, 224, 224)
    assert ("ls1.gamma" in str(vit.state_dict().keys())) == (scale is not None)
    torch.testing.assert_close(encoder(images), _reference(vit, images), atol=1e-5, rtol=1e-5)
    assert encoder.config.positions == "learned"
    # What is trained on from here is all of it, and nothing else.
    kept = {k for k in vit.state_dict() if not k.startswith(("norm", "fc_norm", "head")) and "gamma" not in k}
    assert {k.replace("position_table", "pos_embed") for k in encoder.state_dict()} == kept


@pytest.mark.parametrize(
    "changes",
    [
        {"class_token": True, "global_pool": "token"},
        {"class_token": True, "no_embed_class": True, "global_pool": "token"},
        {"class_token": True, "reg_tokens": 4, "global_pool": "token", "init_values": 0.3},
        {"class_token": True, "reg_tokens": 4, "no_embed_class": True, "global_pool": "token"},
        {"reg_tokens": 3, "no_embed_class": True},
    ],
    ids=["class", "class without position", "registers", "registers without positions", "registers alone"],
)
def test_class_and_register_tokens_stay_behind_with_their_positions(save, changes):
    vit = _small_vit(**changes)
    encoder = _adopted(find_donor(save(vit)), _config())
    images = torch.rand(2, 3, 64, 64)
    table = vit.pos_embed[:, -16:]
    assert torch.equal(encoder.position_table, table[0])
    torch.testing.assert_close(encoder(images), _reference(vit, images, table), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [32, 96, 128])
@pytest.mark.parametrize("class_token", [False, True])
def test_positions_of_another_grid_are_those_that_timm_makes(save, side, class_token):
    changes = {"class_token": class_token, "global_pool": "token" if class_token else "avg"}
    vit = _small_vit(**changes)
    encoder = _adopted(find_donor(save(vit)), _config(side))
    other = _small_vit(img_size=side, **changes)
    other.load_state_dict(checkpoint_filter_fn(dict(vit.state_dict()), other))
    table = other.pos_embed[:, int(class_token) :]
    assert encoder.position_table.shape == ((side // 16) ** 2, 48)
    torch.testing.assert_close(encoder.position_table[None], table, atol=1e-6, rtol=0)
    images = torch.rand(2, 3, side, side)
    torch.testing.assert_close(encoder(images), _reference(other, images, table), atol=1e-5, rtol=1e-5)


def test_resampling_to_the_same_grid_changes_nothing():
    table = torch.randn(16, 12)
    assert torch.equal(resample_positions(table, 4), table)
    expected = resample_abs_pos_embed(table[None], [7, 7], [4, 4], num_prefix_tokens=0)[0]
    assert torch.equal(resample_positions(table, 7), expected)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_an_encoder_of_this_library_is_a_donor(save, positions):
    config = _config(positions=positions)
    own = _scramble(Encoder(config.encoder, config.preprocess))
    donor = find_donor(save(own))
    for before in ("sincos", "learned"):
        encoder = _adopted(donor, _config(positions=before))
        assert encoder.config.positions == positions
        images = torch.rand(1, 3, 64, 64)
        assert torch.equal(encoder(images), own(images))
    assert (donor.mean, donor.std) == (None, None)
    assert donor.adapt(config).preprocess == config.preprocess


def test_half_precision_weights_are_read_as_float32(save, tmp_path):
    vit = _small_vit(init_values=0.1).half()
    encoder = _adopted(find_donor(save(vit)), _config())
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}
    assert torch.equal(encoder.patch_embed.proj.weight, vit.patch_embed.proj.weight.float())
    folded = vit.blocks[1].mlp.fc2.weight.float() * vit.blocks[1].ls2.gamma.float()[:, None]
    assert torch.equal(encoder.blocks[1].mlp.fc2.weight, folded)


@pytest.mark.parametrize(
    "changes",
    [{"embed_dim": 96}, {"depth": 3}, {"depth": 1}, {"patch_size": 8}, {"mlp_ratio": 4},
     {"embed_dim": 128, "num_heads": 2, "depth": 4, "patch_size": 32, "mlp_ratio": 2}],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_names_the_options_that_make_it_fit(save, changes):
    vit = _small_vit(**changes)
    donor = find_donor(save(vit))
    with pytest.raises(IncompatibleWeightsError) as caught:
        _adopted(donor, _config())
    message = str(caught.value)
    assert message.startswith(f"{donor.source} does not fit the encoder: blocks.") or "patch_embed" in message
    words = shlex.split(message.partition("Its sizes: ")[2])
    assert len(words) >= 2
    fields = json.loads(to_json(PretrainConfig(model=_config())))
    for name, value in parse_overrides(words, fields).items():
        set_dotted(fields, name, value)
    config = from_dict(PretrainConfig, fields).model
    # How many heads no file tells.
    config = config.replace(encoder=replace(config.encoder, heads=vit.blocks[0].attn.num_heads))
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(_adopted(donor, config)(images), _reference(vit, images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_norm": True}, "norm_pre.bias is of no use here"),
        ({"qk_norm": True}, "blocks.0.attn.k_norm.bias is of no use here"),
        ({"in_chans": 1}, r"patch_embed.proj.weight has shape \[48, 1, 16, 16\], expected \[48, 3, 16, 16\]"),
        ({"qkv_bias": False}, "blocks.0.attn.qkv.bias is missing"),
    ],
    ids=str,
)
def test_a_vit_with_other_parts_is_refused(save, changes, message):
    with pytest.raises(IncompatibleWeightsError, match=rf"{message}.*It is not a plain ViT"):
        _adopted(find_donor(save(_small_vit(**changes))), _config())


def test_positions_of_no_square_are_refused(save):
    vit = _small_vit(img_size=(64, 32))
    with pytest.raises(IncompatibleWeightsError, match="has 8 positions, which is no square grid"):
        find_donor(save(vit))


def test_files_that_are_no_donors(save, tmp_path):
    other = save(torch.nn.Linear(2, 2))
    with pytest.raises(IncompatibleWeightsError, match=r"is no ViT in timm's naming; it holds bias, weight"):
        find_donor(other)
    with pytest.raises(
        WeightsUnavailableError, match=r"No encoder at .*gone\. Name a safetensors file, or timm:"
    ):
        find_donor(str(tmp_path / "gone"))
    (tmp_path / "words").write_text("words" * 9)
    with pytest.raises(IncompatibleWeightsError, match="is not a readable safetensors file"):
        find_donor(str(tmp_path / "words"))
    with pytest.raises(WeightsUnavailableError, match=r"is a folder\. Name a safetensors file"):
        find_donor(str(tmp_path))


def test_a_vit_with_other_parts_is_not_said_to_have_other_sizes(save):
    """First what no option mends; a DINOv3 of timm is one."""
    donor = Donor("timm:other", translate(_small_vit(qkv_bias=False, embed_dim=96, depth=3).state_dict(), ""))
    with pytest.raises(IncompatibleWeightsError) as caught:
        _adopted(donor, _config())
    assert str(caught.value) == (
        "timm:other does not fit the encoder: blocks.0.attn.qkv.bias is missing. "
        "It is not a plain ViT, as those of AugReg, DeiT, DINO, DINOv2, MAE and SigLIP are."
    )


def test_the_encoder_of_a_whole_model_is_a_donor(tmp_path):
    torch.manual_seed(0)
    model = WorldModel(_config())
    model.save_pretrained(tmp_path)
    encoder = _adopted(find_donor(str(tmp_path / "model.safetensors")), _config())
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor.half().float())


@pytest.mark.parametrize("heads", [1, 6])
def test_another_number_of_heads_than_timms_is_refused(published, heads):
    donor = find_donor("timm:vit_tiny_patch16_224")
    assert donor.heads == 3
    config = _config(32, width=192, depth=12, heads=heads, mlp_ratio=4.0)
    with pytest.raises(IncompatibleWeightsError) as caught:
        _adopted(donor, config)
    assert str(caught.value) == (
        f"timm:vit_tiny_patch16_224 does not fit the encoder: it has 3 attention heads, expected {heads}. "
        "Its sizes: --model.encoder.heads 3"
    )


@pytest.mark.parametrize(("heads", "told"), [(1, True), (3, False), (6, True)])
def test_a_file_does_not_tell_its_heads_and_unusual_ones_are_doubted(save, photos, caplog, heads, told):
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=192, depth=1, num_heads=3, class_token=False,
                            global_pool="avg")  # fmt: skip
    model = _config(32, width=192, depth=1, heads=heads, mlp_ratio=4.0)
    check_start(_run_config(init_encoder=save(vit)).replace(model=model))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == told
    assert not told or f"and {heads} of {192 // heads} features each are unusual" in said[0]
    assert not told or said[0].endswith("--model.encoder.heads 3?")


def test_an_unknown_name_of_timm_gets_a_suggestion():
    with pytest.raises(UnknownModelError, match=r'no model "vit_tinny_patch16_224".*"vit_tiny_patch16_224"'):
        find_donor("timm:vit_tinny_patch16_224")


def test_without_a_network_timm_has_no_weights(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsUnavailableError, match=r"^timm cannot get the weights of vit_tiny_patch16_224: .+"
    ) as caught:
        find_donor("timm:vit_tiny_patch16_224")
    assert "\n" not in str(caught.value)


@pytest.fixture
def published(monkeypatch):
    """timm's `vit_tiny_patch16_224` with weights of our making, where it would ask the Hub."""
    create, vits = timm.create_model, []

    def without_network(name, pretrained):
        assert pretrained
        vits.append(_scramble(create(name, pretrained=False)))
        return vits[-1]

    monkeypatch.setattr(timm, "create_model", without_network)
    return vits


def _run_config(**changes):
    model = _config(32, width=192, depth=12, heads=3, mlp_ratio=4.0)
    plain = {"steps": 4, "batch_size": 4, "device": "cpu", "precision": "float32", "log_every": 1}
    plain |= {"init_encoder": "timm:vit_tiny_patch16_224", "monitor_every": 0, "checkpoint_every": 2}
    return PretrainConfig(model=model, **plain | changes)


def test_a_run_on_a_frozen_encoder_trains_the_world_model_alone(published, photos, tmp_path):
    config = _run_config(freeze_encoder=True)
    assert pretrain(config, [photos], tmp_path / "run")
    (vit,) = published
    expected = Donor("", translate(vit.state_dict(), "")).weights
    expected["position_table"] = resample_positions(expected["position_table"], 2)
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["task"]
    for prefix in ("student.", "model.encoder."):
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.manual_seed(config.seed)
    before = PretrainTask(config.replace(model=find_donor(config.init_encoder).adapt(config.model)))
    for name, initial in before.model.predictor.state_dict().items():
        assert not torch.equal(initial, state[f"model.predictor.{name}"]), name
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["ema"] for record in records] == [1.0] * 4
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["preprocess"]["mean"] == described["preprocess"]["std"] == [0.5] * 3
    assert described["encoder"]["positions"] == "learned"
    assert described["recipe"]["init_encoder"] == "timm:vit_tiny_patch16_224"
    assert described["recipe"]["freeze_encoder"] is True
    model = iwm.load(tmp_path / "run")
    pixels = torch.rand(2, 3, 32, 32)
    vit.set_input_size((32, 32))  # timm's own way to another grid.
    expected = _reference(vit, pixels, vit.pos_embed[:, 1:], (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    # Stored in half precision.
    torch.testing.assert_close(model.encode(pixels).tokens, expected, atol=0.03, rtol=0)


def test_an_encoder_that_is_not_frozen_moves_on_from_its_donor(save, photos, tmp_path):
    vit = _small_vit(img_size=32, patch_size=8)
    config = _run_config(init_encoder=save(vit), steps=2).replace(model=_config(32, 8))
    assert pretrain(config, [photos], tmp_path / "run")
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["task"]
    for prefix in ("student.", "model.encoder."):
        for name in ("position_table", "patch_embed.proj.weight", "blocks.1.mlp.fc2.bias"):
            start = dict(vit.state_dict())["pos_embed" if name == "position_table" else name]
            moved = (state[prefix + name] - start.view_as(state[prefix + name])).abs()
            assert 0 < moved.max() < 0.02
    described = json.loads((tmp_path / "run" / "config.json").read_text())
    assert described["preprocess"]["mean"] == list(MEAN)  # A file does not tell; ours stay.


def test_a_run_goes_on_after_its_donor_is_gone(save, photos, tmp_path):
    source = save(_small_vit(img_size=32, patch_size=8))
    config = _run_config(init_encoder=source).replace(model=_config(32, 8))
    assert pretrain(config, [photos], tmp_path / "whole")

    class CutError(Exception):
        """The power."""

    after_step = PretrainTask.after_step

    def cut(self, step):
        if step == 2:
            raise CutError
        return after_step(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PretrainTask, "after_step", cut)
        with pytest.raises(CutError):
            pretrain(config, [photos], tmp_path / "run")
    (tmp_path / "donor.safetensors").unlink()
    assert pretrain(config, [photos], tmp_path / "run")
    for name in ("model.safetensors", "student.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(WeightsUnavailableError, match="No encoder at"):
        pretrain(config, [photos], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(InvalidConfigError, match=r"init_encoder was .*, now ''"):
        pretrain(config.replace(init_encoder=""), [photos], tmp_path / "run")


def test_a_students_file_of_a_run_begins_another(make_config, photos, tmp_path):
    config = make_config(steps=1, monitor_every=0)
    pretrain(config, [photos], tmp_path / "first")
    file = tmp_path / "first" / "student.safetensors"
    following = make_config(steps=1, monitor_every=0, init_encoder=str(file), freeze_encoder=True)
    assert pretrain(following, [photos], tmp_path / "second")
    assert (tmp_path / "second" / "student.safetensors").read_bytes() == file.read_bytes()
    described = json.loads((tmp_path / "second" / "config.json").read_text())
    assert described["encoder"]["positions"] == "sincos"
