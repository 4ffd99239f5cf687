"""The paper's hyperparameters, and which recipe goes with what is asked for."""

import re
from dataclasses import replace

import pytest

from iwm.errors import UnknownModelError
from iwm.finetuning.datasets import check_shares
from iwm.finetuning.recipes import RECIPES, find_recipe, protocol
from iwm.training.schedules import learning_rate

PAPER = {  # App. A.2: optimiser, rate, batch, epochs, warmup epochs, decay, drop path, layer decay.
    "linear": ("lars", 6.4, 16384, 90, 10, 0.0, 0.0, 1.0),
    "attentive": ("adamw", 1e-4, 1024, 90, 0, 0.01, 0.0, 1.0),
    "encoder": ("adamw", 2e-3, 1024, 100, 5, 0.005, 0.2, 0.65),
    "predictor": ("adamw", 1e-3, 1024, 100, 5, 0.1, 0.2, 1.0),
    "end-to-end": ("adamw", 2e-3, 1024, 100, 5, 0.1, 0.2, 0.9),
}


@pytest.mark.parametrize("name", PAPER)
def test_hyperparameters_are_the_papers(name):
    config = find_recipe(name)
    optim = config.optim
    assert (
        optim.optimizer, optim.lr, config.batch_size, config.epochs, optim.warmup * config.epochs,
        optim.weight_decay, config.drop_path, config.layer_decay,
    ) == pytest.approx(PAPER[name])  # fmt: skip
    assert (optim.betas, optim.momentum, optim.schedule) == ((0.9, 0.999), 0.9, "cosine")
    assert optim.weight_decay_end == optim.weight_decay
    assert learning_rate(1000, 1000, optim) == pytest.approx(0.0, abs=1e-9)
    assert config.branch == "teacher"
    assert config.action == "null"


def test_augmentation_is_the_papers():
    for name in ("encoder", "predictor", "end-to-end", "multitask"):
        a = find_recipe(name).augment
        assert (a.rand_augment, a.mixup, a.cutmix, a.erasing, a.label_smoothing) == (
            "rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.25, 0.1,
        )  # fmt: skip
    assert find_recipe("attentive").augment.photometry
    assert find_recipe("attentive").data.crop_scale == (0.3, 1.0)
    assert find_recipe("linear").data.crop_scale == (0.08, 1.0)
    assert {find_recipe(n).data.flip for n in RECIPES} == {0.5}


def test_rates_of_the_parts_are_the_papers():
    predictor, whole = find_recipe("predictor"), find_recipe("end-to-end")
    assert predictor.predictor_share == whole.predictor_share == whole.encoder_lr_scale == 0.1
    assert predictor.replace(init="random").predictor_share == 1.0


def test_segmentation_and_multitask_are_the_papers():
    segmentation = find_recipe("segmentation")
    assert (segmentation.steps, segmentation.optim.lr, segmentation.optim.weight_decay) == (
        160_000,
        2e-5,
        0.01,
    )
    assert (segmentation.optim.schedule, segmentation.head) == ("linear", "upernet")
    assert find_recipe("multitask", tasks=4).batch_size == 2048
    for name in ("multitask", "multitask-encoder", "multitask-end-to-end"):
        several = find_recipe(name)
        epochs = several.steps * several.batch_size / 1_281_167
        assert (epochs, several.optim.warmup * epochs) == pytest.approx((50, 5), rel=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_its_command_its_cost_and_the_score_to_expect(name):
    said = RECIPES[name].__doc__ or ""
    options = re.search(r"^    Command: `iwm finetune (.+)`\.$", said, re.MULTILINE)
    assert options, said
    words = options[1].split()
    assert words[words.index("--recipe") + 1] == name
    assert ("--task" in words) == (find_recipe(name).task == "segmentation")
    assert (words.count("--data") > 1) == name.startswith("multitask")
    for word in ("Cost", "Score"):
        assert re.search(rf"^    {word}: .+\.$", said.split("Command: ")[1], re.MULTILINE | re.DOTALL), word


def test_every_protocol_has_a_small_twin():
    paper = {name for name in RECIPES if not name.endswith("-small")}
    assert set(RECIPES) == paper | {f"{name}-small" for name in paper}
    for name in paper:
        whole, small = find_recipe(name), find_recipe(f"{name}-small")
        assert (whole.task, whole.tune, whole.head) == (small.task, small.tune, small.head)
        assert small.batch_size <= 256


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (("classification", "none", None, 1), "attentive"),
        (("classification", "none", "linear", 2), "linear"),
        (("classification", "predictor", None, 1), "predictor"),
        (("classification", "predictor", "linear", 1), "predictor"),
        (("classification", "predictor", None, 3), "multitask"),
        (("classification", "encoder", None, 1), "encoder"),
        (("classification", "encoder", None, 2), "multitask-encoder"),
        (("classification", "all", None, 2), "multitask-end-to-end"),
        (("classification", "all", "attentive", 1), "end-to-end"),
        (("segmentation", "all", None, 1), "segmentation"),
    ],
)
def test_a_recipe_goes_with_what_is_asked_for(asked, name):
    assert protocol(*asked) == name


@pytest.mark.parametrize("small", ["", "-small"])
@pytest.mark.parametrize("tune", ["none", "predictor", "encoder", "all"])
def test_any_number_of_tasks_can_be_tuned_any_way(tune, small):
    for tasks in (1, 2, 3, 7):
        for head in ("linear", None):
            config = find_recipe(protocol("classification", tune, head, tasks) + small, tasks)
            assert config.tune == tune
            check_shares(config, tasks, processes=1)


@pytest.mark.parametrize(("tune", "alone"), [("encoder", "encoder"), ("all", "end-to-end")])
def test_several_tasks_have_the_rates_of_what_is_tuned(tune, alone):
    for small in ("", "-small"):
        several = find_recipe(protocol("classification", tune, None, 3) + small, 3)
        one, multitask = find_recipe(alone + small), find_recipe(f"multitask{small}", 3)
        length = {
            name: getattr(multitask, name) for name in ("steps", "epochs", "batch_size", "monitor_every")
        }
        assert several == one.replace(**length, optim=several.optim)
        assert several.optim == replace(
            one.optim, warmup=0.1
        )  # 5 epochs of 50, or a tenth of the small ones.


def test_a_batch_is_rounded_down_to_the_number_of_tasks():
    assert [find_recipe("attentive-small", n).batch_size for n in (1, 2, 3)] == [128, 128, 126]
    assert find_recipe("predictor", 3).batch_size == 1020  # Mixed in pairs.
    assert find_recipe("encoder-small", 100).batch_size == 100


def test_a_wrong_name_gets_the_nearest():
    with pytest.raises(UnknownModelError, match='Did you mean "predictor"'):
        find_recipe("predicter")
