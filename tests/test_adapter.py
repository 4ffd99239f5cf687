"""Adapters: what their heads read, against the parts put together by hand, and how large they are."""

from dataclasses import replace

import pytest
import torch
from adapter_parts import SPACE, classification, make_model, segmentation, shake
from safetensors.torch import load_file

from iwm.actions import Action, stack_actions
from iwm.adapter import Adapter
from iwm.checkpoint import load_weights, save_adapter
from iwm.config import AdapterConfig, PredictorConfig
from iwm.counting import count_statistics
from iwm.errors import IncompatibleWeightsError, WeightsUnavailableError
from iwm.model_folder import max_weight_bytes, task_file
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

GRID = (4, 4)
OWN = PredictorConfig(width=16, depth=3, layout="append", conditioning="feature", mlp_ratio=2.0)
ONE = {"pets": classification(head="attentive")}
SEVERAL = {
    "pets": classification(),
    "train": classification("a", "b", head="attentive"),
}  # An attribute's name.
DENSE = {"street": segmentation()}


@pytest.fixture
def make(tiny_config):
    """`make(tasks, ...)`: a model and an adapter of other random weights, in eval mode."""

    def build(tasks=None, layout="inplace", conditioning="adaln", **fields):
        torch.manual_seed(1)
        model = make_model(tiny_config(layout, conditioning))
        config = AdapterConfig(tasks=tasks or ONE, space=SPACE, **fields)
        adapter = Adapter(config, model.config).eval()
        shake(adapter)
        return model, adapter

    return build


def check_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def null(model, count=2):
    """The action that changes nothing, as the model reads it."""
    return model.encode_photometry(stack_actions([Action()] * count))


@pytest.mark.parametrize("encoding", ["pair", "difference"])
def test_the_null_action_is_between_two_clean_views(tiny_config, encoding):
    config = tiny_config(encoding=encoding)
    model = make_model(config)
    adapter = Adapter(AdapterConfig(tasks=ONE, space=SPACE), config)
    assert torch.equal(adapter.null_action(torch.zeros(2, 16, 48)), null(model))


def test_a_probe_reads_the_encoder(make):
    model, adapter = make(SEVERAL, reads="encoder")
    images = torch.rand(2, 3, 32, 32)
    tokens = adapter.encode(model.encoder, images, "pets")
    assert torch.equal(tokens, model.encoder(images))
    for task in SEVERAL:
        assert torch.equal(adapter(model, tokens, GRID, task), adapter.head(task)(tokens))
    assert (adapter.predictor, adapter.output_token, len(adapter.task_tokens)) == (None, None, 0)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("layout", ["append", "inplace"])
def test_a_head_reads_the_prediction_of_the_whole_image(make, layout, own):
    model, adapter = make(layout=layout, predictor=OWN if own else None)
    tokens, action = torch.randn(2, 16, 48), torch.randn(2, 14)
    predictor = adapter.predictor if own else model.predictor
    assert (predictor.config == OWN) is own
    head = adapter.head("pets")
    check_close(adapter(model, tokens, GRID, "pets"), head(predictor(tokens, null(model), GRID)))
    check_close(adapter(model, tokens, GRID, "pets", action), head(predictor(tokens, action, GRID)))


@pytest.mark.parametrize("layout", ["append", "inplace"])
def test_a_head_reads_one_token_alone(make, layout):
    model, adapter = make(layout=layout, output="token")
    tokens = torch.randn(2, 16, 48)
    token = adapter.output_token.expand(2, 1, -1)
    answer = model.predictor.respond(tokens, null(model), GRID, token=token)
    assert answer.shape == (2, 1, 48)
    check_close(adapter(model, tokens, GRID, "pets"), adapter.head("pets")(answer))


@pytest.mark.parametrize("output", ["all", "token"])
def test_each_of_several_tasks_has_a_token(make, output):
    model, adapter = make(SEVERAL, predictor=OWN, output=output)
    tokens = torch.randn(2, 16, 48)
    token = None if output == "all" else adapter.output_token.expand(2, 1, -1)
    answers = []
    for task, own in zip(SEVERAL, adapter.task_tokens.values(), strict=True):
        answers.append(
            adapter.predictor.respond(tokens, null(model), GRID, token=token, extra=own.expand(2, 1, -1))
        )
        check_close(adapter(model, tokens, GRID, task), adapter.head(task)(answers[-1]))
    assert (answers[0] - answers[1]).abs().max() > 1e-3


def test_segmentation_reads_the_last_blocks_of_the_predictor_or_the_encoder(make):
    images = torch.rand(2, 3, 32, 32)
    model, adapter = make(DENSE, predictor=OWN)
    tokens = adapter.encode(model.encoder, images, "street")
    features = adapter.predictor.features(tokens, null(model), GRID)
    assert [tuple(part.shape) for part in features] == [(2, 16, 16)] * 4
    check_close(adapter(model, tokens, GRID, "street"), adapter.head("street")(features, GRID))
    model, adapter = make(DENSE, reads="encoder")
    features = adapter.encode(model.encoder, images, "street")
    assert [tuple(part.shape) for part in features] == [(2, 16, 48)] * 4
    check_close(adapter(model, features, GRID, "street"), adapter.head("street")(features, GRID))


def test_one_encoding_serves_an_image_and_its_pixels(make):
    tasks = {"pets": classification(), **DENSE}
    model, adapter = make(tasks, reads="encoder")
    images = torch.rand(2, 3, 48, 32)
    features = adapter.encode(model.encoder, images, "street")
    tokens = adapter.encode(model.encoder, images, "pets")
    assert torch.equal(adapter(model, features, (6, 4), "pets"), adapter(model, tokens, (6, 4), "pets"))


@pytest.mark.parametrize("layout", ["append", "inplace"])
def test_what_is_trained(make, layout):
    """Everything but what a whole image and a null action leave out."""
    for tasks, fields, idle in (
        (SEVERAL, {"predictor": replace(OWN, layout=layout)}, ["predictor.mask_token"][layout == "append" :]),
        (ONE, {"predictor": OWN, "output": "token"}, ["predictor.mask_token"]),
        (DENSE, {"predictor": OWN}, [f"predictor.{n}" for n in ("norm", "project_out")]),
    ):
        model, adapter = make(tasks, **fields)
        tokens = torch.randn(2, 16, 48)
        sum((adapter(model, tokens, GRID, task) ** 3).sum() for task in tasks).backward()
        still = [name for name, p in adapter.named_parameters() if p.grad is None]
        assert all(name.startswith(tuple(idle)) for name in still)
        assert bool(still) is bool(idle)
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("layout", ["append", "inplace"])
@pytest.mark.parametrize("conditioning", ["feature", "sequence", "adaln", "none"])
def test_sizes_are_known_before_anything_is_built(tiny_config, layout, conditioning):
    base = tiny_config(layout, conditioning)
    own = replace(base.predictor, width=24, depth=1)
    checked = 0
    for fields in ({"reads": "encoder"}, {}, {"predictor": own}, {"predictor": own, "output": "token"}):
        for tasks in (ONE, SEVERAL, DENSE | ONE, {"x": classification(batch_norm=True)}):
            if fields.get("output") == "token" and "street" in tasks:
                continue
            config = AdapterConfig(tasks=tasks, space=SPACE, **fields)
            model = base.replace(adapters={"a": config})
            with torch.device("meta"):
                adapter = Adapter(config, model)
            assert sum(p.numel() for p in adapter.parameters()) == model.adapter_parameters("a")
            statistics = sum(b.numel() for b in adapter.buffers() if b.is_floating_point())
            assert statistics == count_statistics(config, model)
            checked += 1
    assert checked == 15


def test_the_papers_model_with_a_head_counts_121_million():
    """Figure 3's and appendix E's 121 M: encoder 85.8 M, predictor 32.9 M, attentive head for ImageNet 2.5 M.

    That is all of a model finetuned end to end. With the encoder frozen, 35.5 M of it are finetuned.
    """
    config = ZOO["iwm-equi-18-384"].config
    labels = tuple(str(i) for i in range(1000))
    tuned = {"imagenet": classification(*labels, head="attentive")}
    model = config.replace(adapters={"imagenet": AdapterConfig(tasks=tuned, space=SPACE)})
    assert model.parameters / 1e6 == pytest.approx(118.6, abs=0.05)
    assert model.adapter_parameters("imagenet") / 1e6 == pytest.approx(2.54, abs=0.01)
    total = model.parameters + model.adapter_parameters("imagenet")
    assert total / 1e6 == pytest.approx(121.2, abs=0.05)
    with torch.device("meta"):
        parts = WorldModel(model), Adapter(model.adapters["imagenet"], model)
    assert sum(p.numel() for part in parts for p in part.parameters()) == total
    own = replace(model.adapters["imagenet"], predictor=config.predictor)
    model = config.replace(adapters={"imagenet": own})
    assert model.adapter_parameters("imagenet") / 1e6 == pytest.approx(35.5, abs=0.05)


@pytest.fixture
def stored(make, tmp_path):
    """A folder, the config in it, and the adapter that was put there."""
    tasks = {"pets": classification(batch_norm=True), **DENSE}
    model, adapter = make(tasks, predictor=OWN)
    config = model.config.replace(adapters={"both": adapter.config})
    adapter.head("pets").norm.running_var.fill_(1e-9)  # Nothing at all in float16.
    save_adapter(tmp_path, config, "both", adapter)
    return tmp_path, config, adapter


def test_an_adapter_is_stored_and_loaded_value_for_value(stored):
    folder, config, adapter = stored
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "task-both.safetensors"}
    path = folder / task_file("both")
    assert path.stat().st_size <= max_weight_bytes(config, path.name) < max_weight_bytes(config)
    trained = {name for name, _ in adapter.named_parameters()}
    on_disk = load_file(path)
    assert {name: t.dtype for name, t in on_disk.items()} == {
        name: torch.float16 if name in trained else torch.float32 for name in on_disk
    }
    with torch.device("meta"):
        loaded = Adapter(config.adapters["both"], config)
    load_weights(path, loaded)
    for name, tensor in adapter.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(
                loaded.state_dict()[name], tensor.half().float() if name in trained else tensor
            )
    assert loaded.head("pets").norm.num_batches_tracked.item() == 0
    model = WorldModel(config)
    tokens = torch.randn(2, 16, 48)
    assert torch.isfinite(loaded.eval()(model, tokens, GRID, "street")).all()


def test_loading_is_strict(stored):
    folder, config, adapter = stored
    fewer = replace(adapter.config, tasks={"pets": adapter.config.tasks["pets"]})
    for described, words in (
        (fewer, r"unexpected \(heads\.task-street\."),
        (replace(adapter.config, predictor=replace(OWN, depth=4)), r"missing \(predictor\.blocks\.3\."),
        (replace(adapter.config, output="all", predictor=replace(OWN, width=24)), "has shape"),
    ):
        with pytest.raises(IncompatibleWeightsError, match=words):
            load_weights(folder / task_file("both"), Adapter(described, config))
    with pytest.raises(WeightsUnavailableError, match="No weights at"):
        load_weights(folder / task_file("other"), adapter)
