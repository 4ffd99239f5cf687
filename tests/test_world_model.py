"""The world model: encodings, pooled embeddings, actions in latent space, and its fingerprint."""

import copy
import dataclasses
import math
import pickle
import warnings
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

import iwm.world_model
from iwm.actions import CLEAN, Action, Photometry, stack_actions
from iwm.errors import (
    IncompatibleLatentError,
    InvalidActionError,
    InvalidImageError,
    SaveError,
    UntrainedActionWarning,
)
from iwm.latent import Latent
from iwm.world_model import WorldModel

ACTIONS = [
    Action(),
    Action(brightness=2.0, hue=0.1),
    Action(contrast=0.5, saturation=1.5, blur=1.0),
    Action(grayscale=True),
    Action.between(Photometry(solarize=True, brightness=0.7), Photometry(hue=-0.2)),
]
OTHER = Action(brightness=0.5, solarize=True)


@pytest.fixture
def make(tiny_config):
    """World models with random weights everywhere, so that actions matter."""

    def build(layout="inplace", conditioning="adaln", encoding="pair"):
        torch.manual_seed(1)
        model = WorldModel(tiny_config(layout, conditioning, encoding))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    return build


@pytest.fixture
def model(make):
    return make()


def check_close(actual, expected, atol=2e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def normalized(tokens):
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def pair_vector(action):
    """The `pair` action vector, number by number."""
    return [
        value
        for view in (action.source, action.target)
        for value in (
            math.log(view.brightness), math.log(view.contrast), math.log(view.saturation),
            5 * view.hue, float(view.grayscale), view.blur / 2, float(view.solarize),
        )
    ]  # fmt: skip


def test_encode_is_the_encoder_on_preprocessed_pixels(model, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    resized = np.array(photo.resize((36, 36), Image.Resampling.BICUBIC))[2:34, 2:34]
    pixels = torch.from_numpy(resized / 255.0).permute(2, 0, 1).float()[None]
    with torch.no_grad():
        expected = model.encoder(pixels)
    for image in (photo, tmp_path / "photo.png", str(tmp_path / "photo.png"), np.array(photo), pixels):
        latent = model.encode(image)
        check_close(latent.tokens, expected)
        assert (latent.grid, latent.space) == ((4, 4), model.space)


def test_encodings_are_normalised(model):
    tokens = model.encode(torch.rand(2, 3, 32, 32)).tokens
    check_close(tokens.mean(-1), torch.zeros(2, 16))
    check_close(tokens.var(-1, correction=0), torch.ones(2, 16), atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_the_batch_size_changes_nothing(model, batch_size):
    images = torch.rand(5, 3, 32, 32)
    each = [model.encode(image) for image in images]
    check_close(model.encode(images, batch_size).tokens, torch.cat([one.tokens for one in each]))
    check_close(model.embed(images, batch_size), torch.cat([one.tokens.mean(1) for one in each]))


@pytest.mark.parametrize("progress", [False, True])
def test_embed_is_the_mean_of_encode(model, progress):
    images = list(torch.rand(3, 3, 32, 32))
    check_close(model.embed(images, 2, progress), model.encode(images, 2, progress).mean())


def test_embed_streams_and_keeps_only_pooled_tokens(model):
    pulled, seen, alive = [], [], []

    def stream():
        for i in range(9):
            pulled.append(i)
            yield torch.rand(3, 32, 32)

    def watch(module, args, output):
        seen.append((len(pulled), sum(reference() is not None for reference in alive)))
        alive.append(weakref.ref(output))

    model.encoder.register_forward_hook(watch)
    assert model.embed(stream(), batch_size=2).shape == (9, 48)
    assert [count for count, _ in seen] == [2, 4, 6, 8, 9]
    assert max(earlier for _, earlier in seen) <= 1


def test_images_that_cannot_be_encoded(model, tmp_path):
    with pytest.raises(InvalidImageError, match="No images were given"):
        model.encode([])
    with pytest.raises(InvalidImageError, match=r"absent\.png"):
        model.embed([torch.rand(3, 32, 32), tmp_path / "absent.png"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode(torch.rand(3, 32, 32), batch_size=0)


@pytest.mark.parametrize("layout", ["append", "inplace"])
def test_apply_action_is_the_normalised_prediction(make, layout):
    model = make(layout)
    latent = model.encode(torch.rand(5, 3, 32, 32))
    moved = model.apply_action(latent, ACTIONS)
    vectors = torch.tensor([pair_vector(action) for action in ACTIONS])
    with torch.no_grad():
        raw = model.predictor(latent.tokens, vectors, (4, 4))
    assert (raw - normalized(raw)).abs().max() > 0.1
    check_close(moved.tokens, normalized(raw))
    assert (moved.grid, moved.space) == (latent.grid, latent.space)


@pytest.mark.parametrize("layout", ["inplace", "append"])
@pytest.mark.parametrize("conditioning", ["adaln", "feature", "sequence", "none"])
def test_one_source_for_all_actions_is_a_source_for_each(make, layout, conditioning):
    """What actions share is computed once; nothing else changes."""
    model = make(layout, conditioning)
    latent = model.encode(torch.rand(1, 3, 32, 32))
    vectors = model.encode_photometry(stack_actions(ACTIONS))
    with torch.no_grad():
        shared = model.predictor(latent.tokens, vectors, latent.grid)
        each = model.predictor(latent.tokens.expand(len(ACTIONS), -1, -1), vectors, latent.grid)
    check_close(shared, each, atol=1e-4)
    assert shared.shape == each.shape


def test_an_action_beyond_training_is_said_once(model):
    latent = model.encode(torch.rand(1, 3, 32, 32))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.apply_action(latent, Action(brightness=1.39, hue=-0.1))
        assert not caught
        model.apply_action(latent, Action(brightness=2.5))
        model.apply_action(latent, Action(brightness=2.5))
    assert [c.category for c in caught] == [UntrainedActionWarning]
    said = str(caught[0].message)
    assert "tiny was not trained for brightness 2.5 in the target view" in said
    assert "trained range: brightness 0.6 to 1.4" in said
    assert "no grayscale, no blur, no solarize" in said
    assert caught[0].filename == __file__
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.apply_action(latent, Action(brightness=2.5, blur=9, hue=0.4))
    assert [str(c.message).split(" for ")[1].split(" in ")[0] for c in caught] == ["hue 0.4", "blur 9"]


def test_the_warning_is_about_the_line_that_asked(model):
    latent = model.encode(torch.rand(2, 3, 32, 32))
    calls = {
        "contrast": lambda: model.predict(torch.rand(1, 3, 32, 32), Action(contrast=5)),
        "hue": lambda: model.roll(latent, [Action(hue=0.4)]),
        "blur": lambda: model.invariant(latent, actions=[Action(blur=9)]),
    }
    for name, call in calls.items():
        with pytest.warns(UntrainedActionWarning, match=name) as caught:
            call()
        assert caught[0].filename == __file__


@pytest.mark.parametrize("most", [1, 2, 3, 5, 256])
def test_many_actions_equal_one_at_a_time(model, monkeypatch, most):
    # 16 tokens of width 32, the queries, keys and values of which are the widest activation.
    monkeypatch.setattr(iwm.world_model, "ACTION_BYTES", {"cpu": most * 16 * 32 * 3 * 4})
    latent = model.encode(torch.rand(5, 3, 32, 32))
    sizes = []
    model.predictor.register_forward_hook(lambda _, args, output: sizes.append(len(output)))

    def check(source, actions, pairs):
        sizes.clear()
        moved = model.apply_action(source, actions)
        assert max(sizes) <= most
        assert sum(sizes) == len(moved) == 5
        check_close(moved.tokens, torch.cat([model.apply_action(z, a).tokens for z, a in pairs]))

    check(latent[2], ACTIONS, [(latent[2], action) for action in ACTIONS])
    check(latent, ACTIONS, zip(latent, ACTIONS, strict=True))
    check(latent, tuple(ACTIONS), zip(latent, ACTIONS, strict=True))
    check(latent, OTHER, [(z, OTHER) for z in latent])
    moved = model.apply_action(latent[2], ACTIONS).tokens
    assert (moved[1:] - moved[:1]).abs().amax(dim=(1, 2)).min() > 1e-2


@pytest.mark.parametrize(
    ("latents", "action", "words"),
    [
        (3, ACTIONS[:2], "3 latents and 2 actions do not pair up; pass one action for all"),
        (2, ACTIONS[:1], "2 latents and 1 actions do not pair up"),
        (3, [], "3 latents and 0 actions do not pair up"),
        (1, [], "Nothing to do: pass at least one latent and one action"),
        (0, [], "Nothing to do"),
        (0, OTHER, "Nothing to do"),
        (1, [CLEAN], r"Expected iwm\.Action, got Photometry; write iwm\.Action"),
        (2, [OTHER, None], r"Expected iwm\.Action, got NoneType"),
    ],
)
def test_what_does_not_pair_up(model, latents, action, words):
    latent = model.encode(torch.rand(3, 3, 32, 32))[:latents]
    with pytest.raises(InvalidActionError, match=words):
        model.apply_action(latent, action)


def test_predict_encodes_and_acts(model):
    images = torch.rand(5, 3, 32, 32)
    latent = model.encode(images)
    assert torch.equal(model.predict(images, ACTIONS).tokens, model.apply_action(latent, ACTIONS).tokens)
    assert torch.equal(model.predict(images[0], OTHER).tokens, model.predict(images[0], [OTHER]).tokens)


def test_predictions_are_normalised_and_can_be_acted_on_again(model):
    moved = model.predict(torch.rand(2, 3, 32, 32), OTHER)
    check_close(moved.tokens.mean(-1), torch.zeros(2, 16))
    check_close(moved.tokens.var(-1, correction=0), torch.ones(2, 16), atol=1e-3)
    twice = model.apply_action(moved, OTHER.inverse())
    with torch.no_grad():
        vectors = torch.tensor([pair_vector(OTHER.inverse())] * 2)
        check_close(twice.tokens, normalized(model.predictor(moved.tokens, vectors, (4, 4))))
    assert len(Latent.cat([moved, twice])) == 4


def test_high_level_calls_record_no_gradients(model):
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    latent = model.encode(images)
    results = (
        latent.tokens, model.embed(images),
        model.apply_action(latent, OTHER).tokens, model.predict(images, OTHER).tokens,
    )  # fmt: skip
    assert [result.requires_grad for result in results] == [False] * 4
    assert model.encoder(images).requires_grad
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("encoding", ["pair", "difference"])
@pytest.mark.parametrize("conditioning", ["adaln", "feature"])
def test_gradients_reach_the_photometry_through_the_predictor(make, conditioning, encoding):
    model = make("inplace", conditioning, encoding).double()
    tokens = model.encode(torch.rand(1, 3, 32, 32)).tokens
    weights = torch.randn_like(tokens)
    params = torch.tensor([[[1.0, 1, 1, 0, 0, 0, 0], [1.3, 0.8, 1.1, 0.1, 0, 1, 0]]], dtype=torch.float64)

    def score(p):
        return (model.predictor(tokens, model.encode_photometry(p), (4, 4)) * weights).sum()

    leaf = params.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf), leaf)
    for column in range(4):
        step = torch.zeros_like(params)
        step[0, 1, column] = 1e-5
        with torch.no_grad():
            slope = (score(params + step) - score(params - step)) / 2e-5
        assert abs(slope) > 1e-3
        check_close(gradient[0, 1, column], slope, atol=1e-5)


def test_action_vectors_are_the_models_own(make):
    params = torch.tensor([[action.source.params, action.target.params] for action in ACTIONS])
    check_close(make().encode_photometry(params), torch.tensor([pair_vector(action) for action in ACTIONS]))
    assert make(encoding="difference").encode_photometry(params).shape == (5, 10)
    assert make().to(torch.bfloat16).encode_photometry(params).dtype == torch.bfloat16


def test_the_space_is_that_of_the_encoders_weights(make):
    space = make().space
    assert make().space == space
    assert len(space) == 16
    for name in ("encoder.blocks.1.mlp.fc2.bias", "encoder.patch_embed.proj.weight"):
        changed = make()
        changed.get_parameter(name).data.view(-1)[3] += 0.1
        assert changed.space != space
    predictor_changed = make()
    predictor_changed.predictor.project_in.weight.data += 1.0
    assert predictor_changed.space == space


def test_a_known_space_survives_a_cast_and_a_change_of_weights_ends_it(make):
    model, space = make(), make().space
    assert model.space == space
    assert model.to(torch.bfloat16).space == space
    with torch.no_grad():
        model.encoder.patch_embed.proj.bias += 0.5
    assert model.space != space


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_of_the_same_space(make, dtype, copied):
    model, space = make(), make().space
    twin = copied(model.to(dtype))
    assert twin.space == space
    with torch.no_grad():
        twin.encoder.patch_embed.proj.bias += 0.5
    assert twin.space != space
    assert copied(twin).space == twin.space
    assert model.space == space


def test_a_compiled_encoder_is_of_the_same_space_and_saved_as_itself(make, tmp_path):
    model, space = make(), make().space
    model.encoder = torch.compile(model.encoder, backend="eager")
    assert model.space == space
    model.save_pretrained(tmp_path)
    assert WorldModel.from_pretrained(tmp_path).space == space


def test_weights_that_lost_bits_are_not_saved(make, tmp_path):
    """Adapters, decoders and libraries are of the weights before."""
    model = make()
    model.save_pretrained(tmp_path)
    half = WorldModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for slip in (half, half.float()):
        with pytest.raises(SaveError, match=r"bfloat16.*dtype=torch\.float32"):
            slip.save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    merged = make()
    assert merged.space
    merged.encoder.patch_embed.proj.bias.data += 0.5  # As those write who merge weights.
    merged.save_pretrained(tmp_path / "merged")
    assert WorldModel.from_pretrained(tmp_path / "merged").space != merged.space
    trained = make().to(torch.bfloat16)
    with torch.no_grad():
        trained.encoder.patch_embed.proj.bias += 0.5
    trained.save_pretrained(tmp_path / "trained")
    assert WorldModel.from_pretrained(tmp_path / "trained").space == trained.space


def test_space_depends_on_pixel_normalisation_and_sizes(make):
    model = make()
    shifted = model.config.replace(
        preprocess=dataclasses.replace(model.config.preprocess, mean=(0.0, 0.0, 0.0))
    )
    twin = WorldModel(shifted)
    twin.load_state_dict(model.state_dict())
    assert twin.space != model.space


@pytest.mark.parametrize("slip", [iwm.Photometry(brightness=2), None, 3])
def test_something_that_is_no_action_is_named(make, slip):
    model = make()
    with pytest.raises(InvalidActionError, match=rf"got {type(slip).__name__}; write iwm\.Action"):
        model.apply_action(model.encode(torch.rand(3, 32, 32)), slip)


def test_progress_reads_no_further_ahead(make):
    seen = []

    def stream():
        for i in range(6):
            seen.append(i)
            yield torch.rand(3, 32, 32)

    batches = make()._encode_batches(stream(), 2, progress=True)
    next(batches)
    assert seen == [0, 1]
    batches.close()


def test_latents_of_another_space_are_refused(make):
    model, other = make(), make()
    other.encoder.patch_embed.proj.bias.data += 0.5
    image = torch.rand(3, 32, 32)
    with pytest.raises(
        IncompatibleLatentError, match=rf"another encoder \(space {other.space}, this model's"
    ):
        model.apply_action(other.encode(image), OTHER)
    with pytest.raises(IncompatibleLatentError, match="cannot be mixed"):
        Latent.cat([model.encode(image), other.encode(image)])


def test_an_action_blind_model_ignores_the_action(make):
    model = make(conditioning="none")
    moved = model.apply_action(model.encode(torch.rand(3, 32, 32)), ACTIONS)
    check_close(moved.tokens, moved.tokens[:1].expand(5, -1, -1))


def test_a_model_made_in_inference_mode_works(tiny_config):
    with torch.inference_mode():
        model = WorldModel(tiny_config())
        assert len(model.predict(torch.rand(3, 32, 32), OTHER).space) == 16


def test_space_survives_a_round_trip_of_whole_numbers(tmp_path, tiny_config):
    config = tiny_config()
    encoder = dataclasses.replace(config.encoder, mlp_ratio=4)
    pixels = dataclasses.replace(config.preprocess, mean=(0, 0, 0), std=[1, 1, 1])
    model = WorldModel(config.replace(encoder=encoder, preprocess=pixels))
    model.save_pretrained(tmp_path)
    assert WorldModel.from_pretrained(tmp_path).space == model.half().space


def test_from_pretrained_gives_the_class_it_is_asked_of(tmp_path, make):
    class Mine(WorldModel):
        pass

    make().save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tmp_path)) is Mine


@pytest.mark.parametrize("slip", ["photo.jpg", torch.rand(1, 16, 48)])
def test_something_that_is_no_latent_is_named(make, slip):
    model = make()
    with pytest.raises(IncompatibleLatentError, match=r"write model\.encode\(image\)"):
        model.apply_action(slip, OTHER)
    bank = iwm.Bank.from_latents(model.encode(torch.rand(3, 32, 32)))
    with pytest.raises(IncompatibleLatentError, match=r"write model\.encode\(image\)"):
        bank.search(slip)


def test_saving_without_a_student_leaves_none_of_another_model(tmp_path, make):
    (tmp_path / "student.safetensors").write_bytes(b"another model's")
    make().save_pretrained(tmp_path)
    assert not (tmp_path / "student.safetensors").exists()


def test_a_model_says_where_it_is_and_what_to_call(model):
    assert model.device == torch.device("cpu")
    assert model.encode(torch.rand(3, 32, 32)).tokens.device == model.device
    with pytest.raises(TypeError, match=r"several outputs: write model\.encode\(images\), model\.predict"):
        model(torch.rand(1, 3, 32, 32))


def test_an_image_is_named_by_its_number_in_the_whole_list(model):
    good = [torch.rand(3, 40, 40) for _ in range(4)]
    with pytest.raises(InvalidImageError, match=r"^Image 3 of the list: Float tensor"):
        model.encode([*good[:3], good[3] + 7], batch_size=2)
    with pytest.raises(InvalidImageError, match=r"^Float tensor"):
        model.encode(good[3] + 7)


@pytest.mark.parametrize(
    ("action", "message"), [(ACTIONS[:2], "3 latents and 2 actions do not pair up"), (1.4, "got float")]
)
def test_predict_says_what_does_not_pair_up_before_it_encodes(model, monkeypatch, action, message):
    monkeypatch.setattr(model, "encode", lambda images: pytest.fail("encoded"))
    with pytest.raises(InvalidActionError, match=message):
        model.predict([torch.rand(3, 32, 32)] * 3, action)
