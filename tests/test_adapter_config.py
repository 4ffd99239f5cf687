"""Configs of adapters and tasks: what they may say, and how they are read."""

import json
from dataclasses import replace

import pytest
from adapter_parts import SPACE, classification, segmentation

from iwm.config import (
    MAX_ADAPTERS,
    MAX_LABELS,
    MAX_TASKS,
    AdapterConfig,
    PredictorConfig,
    TaskConfig,
    WorldModelConfig,
)
from iwm.errors import InvalidConfigError, UnknownTaskError

OWN = PredictorConfig(width=96, depth=2, layout="inplace", conditioning="adaln")
FULL = AdapterConfig(
    tasks={
        "pets": classification("Kätzchen", "犬", head="attentive"),
        "cars": classification(batch_norm=True),
    },
    space=SPACE,
    predictor=OWN,
    output="token",
    license="CC-BY-NC-4.0",
    recipe={"steps": 10},
    provenance={"data": [{"folder": "pets/train", "images": 3}]},
    metrics={"pets": {"accuracy": 0.75}},
)
PROBE = AdapterConfig(tasks={"street": segmentation()}, space=SPACE, reads="encoder")
MODEL = WorldModelConfig(adapters={"both": FULL, "street": PROBE}, tuned="encoder")


def test_json_round_trip():
    text = MODEL.to_json()
    assert WorldModelConfig.from_json(text) == MODEL
    fields = json.loads(text)["adapters"]["both"]
    assert fields["tasks"]["pets"] == {
        "kind": "classification", "labels": ["Kätzchen", "犬"], "head": "attentive", "batch_norm": False,
        "channels": 0,
    }  # fmt: skip
    assert fields["predictor"]["width"] == 96


def test_configs_without_adapters_are_read():
    old = json.loads(WorldModelConfig().to_json())
    del old["adapters"], old["tuned"]
    assert WorldModelConfig.from_json(json.dumps(old)) == WorldModelConfig()


def test_tasks_of_a_model():
    assert list(MODEL.tasks) == ["pets", "cars", "street"]
    assert MODEL.tasks["street"] == segmentation()
    assert [MODEL.adapter_of(task) for task in MODEL.tasks] == ["both", "both", "street"]
    with pytest.raises(UnknownTaskError, match=r'"custom" has no task "pest"\. Did you mean "pets"'):
        MODEL.adapter_of("pest")
    with pytest.raises(UnknownTaskError, match=r"it comes without heads\. Leave task out"):
        WorldModelConfig().adapter_of("pets")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "detection"}, r'task\.kind is "detection"\. Did you mean "segmentation"'),
        ({"head": "atentive"}, r'task\.head is "atentive"\. Did you mean "attentive"'),
        ({"head": "upernet"}, 'A classification task has a head "upernet"; use linear or attentive'),
        ({"kind": "segmentation"}, 'A segmentation task has a head "linear"; use upernet'),
        ({"head": "attentive", "batch_norm": True}, "batch_norm goes with a linear head"),
        ({"head": "attentive", "channels": 64}, "channels go with an upernet head"),
        ({"kind": "segmentation", "head": "upernet", "channels": 4097}, "it must be 0 to 4096"),
        ({"labels": ()}, f"A task has 0 labels; it needs 2 to {MAX_LABELS}"),
        ({"labels": ("cat",)}, "A task has 1 labels"),
        ({"labels": ("x",) * (MAX_LABELS + 1)}, "A task has 100001 labels"),
        ({"labels": ("cat", "")}, "A label is ''; use one line of text, 200 characters at most"),
        ({"labels": ("cat", "\x1b[2J")}, r"A label is '\\x1b\[2J'"),
        ({"labels": ("cat", "a\nb")}, r"A label is 'a\\nb'"),
        ({"labels": ("cat", "x" * 201)}, r"A label is 'xxx.*\.\.\."),
    ],
)
def test_impossible_tasks(changes, words):
    with pytest.raises(InvalidConfigError, match=words):
        TaskConfig(**({"kind": "classification", "labels": ("cat", "dog"), "head": "linear"} | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": {}}, f"An adapter has 0 tasks; it needs 1 to {MAX_TASKS}"),
        ({"tasks": {f"t{i}": classification() for i in range(MAX_TASKS + 1)}}, "An adapter has 65 tasks"),
        ({"tasks": {"../x": classification()}}, r"A task is called '\.\./x'; use up to 64 small letters"),
        ({"tasks": {"Pets": classification()}}, "A task is called 'Pets'"),
        ({"tasks": {"a.b": classification()}}, r"A task is called 'a\.b'"),
        ({"tasks": {"x" * 65: classification()}}, "A task is called 'xxx"),
        ({"tasks": {"pets\n": classification()}}, r"A task is called 'pets\\n'"),
        ({"space": ""}, r'adapter\.space is ""; it must be the `space` of a model'),
        ({"space": SPACE.upper()}, r"adapter\.space is "),
        ({"space": SPACE * 2}, r"adapter\.space is "),
        ({"license": "a\nb"}, r"license is 'a\\nb'; use one line"),
        ({"reads": "decoder"}, r'adapter\.reads is "decoder"\. Did you mean "encoder"'),
        ({"output": "tokens"}, r'adapter\.output is "tokens"\. Did you mean "token"'),
        ({"reads": "encoder"}, 'reads "encoder" has no use for a predictor'),
        ({"reads": "encoder", "predictor": None}, 'reads "encoder" has output "all"'),
        ({"tasks": {"street": segmentation()}}, 'Segmentation needs tokens everywhere; use output "all"'),
    ],
)
def test_impossible_adapters(changes, words):
    with pytest.raises(InvalidConfigError, match=words):
        replace(FULL, **changes)


@pytest.mark.parametrize(
    ("adapters", "words"),
    [
        ({"Both": FULL}, "An adapter is called 'Both'"),
        ({"": FULL}, "An adapter is called ''"),
        ({"one": FULL, "two": FULL}, 'Adapters "one" and "two" both have a task "pets"; rename one'),
        ({f"a{i}": PROBE for i in range(MAX_ADAPTERS + 1)}, "A model has 33 adapters; 32 are allowed"),
        (
            {"wide": replace(FULL, predictor=PredictorConfig(width=100))},
            r"predictor\.width 100 must be divisible by encoder\.heads",
        ),
        (
            {"huge": replace(FULL, predictor=PredictorConfig(width=12288, depth=24))},
            r"The config asks for [\d,]+ parameters; 10,000,000,000 are allowed",
        ),
    ],
)
def test_impossible_models(adapters, words):
    with pytest.raises(InvalidConfigError, match=words):
        WorldModelConfig(adapters=adapters)


def test_adapters_count_towards_the_largest_model(monkeypatch):
    total = MODEL.parameters + sum(map(MODEL.adapter_parameters, MODEL.adapters))
    monkeypatch.setattr("iwm.config.MAX_PARAMETERS", total)
    assert MODEL.replace() == MODEL
    monkeypatch.setattr("iwm.config.MAX_PARAMETERS", total - 1)
    with pytest.raises(InvalidConfigError, match=f"asks for {total:,} parameters"):
        MODEL.replace()


LONG = "\x1b[2J" * 50_000


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["adapters", "both", "tsaks"], 1, r'No field "adapters\.both\.tsaks"\. Did you mean "adapters\.both\.tasks"'),
        (["adapters", "both", "tasks", "pets", "lables"], 1, r'Did you mean "adapters\.both\.tasks\.pets\.labels"'),
        (["adapters", "both", "predictor", "widht"], 1, r'Did you mean "adapters\.both\.predictor\.width"'),
        (["adapters", "both", "predictor"], "small", r"adapters\.both\.predictor must hold fields, not 'small'"),
        (["adapters", "both"], 3, r"adapters\.both must hold fields, not 3"),
        (["adapters", "both", "tasks", "pets"], [], r"adapters\.both\.tasks\.pets must hold fields"),
        (["adapters"], [], r"adapters is \[\]: Input should be"),
        (["adapters", "both", "tasks"], 7, r"adapters\.both\.tasks is 7: Input should be"),
        (["adapters", "both", "tasks", "pets", "labels"], ["a", 2], r"labels\.1 is 2: Input should be"),
        (["adapters", "both", "tasks", "pets", "labels"], "cat", r"labels is 'cat': Input should be"),
        (["adapters", "both", "space"], None, r"adapters\.both\.space is None"),
        (["tuned"], "predictor", r"tuned is 'predictor': Input should be|tuned is \"predictor\""),
        (["adapters", LONG], {"x": 1}, "No field"),
        (["adapters", "both", "tasks", LONG], {"x": 1}, "No field"),
        (["adapters", "both", "tasks", LONG], {"kind": LONG}, "No field|is "),
        (["adapters", "both", "tasks", "pets", LONG], 1, "No field"),
        (["adapters", "both", "tasks", "pets", "labels"], [LONG, "a"], "A label is"),
        (["adapters", "both", "metrics"], LONG, r"adapters\.both\.metrics is"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_a_stranger_says_is_checked_by_name_and_stays_short(path, value, words):
    fields = json.loads(MODEL.to_json())
    part = fields
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    with pytest.raises(InvalidConfigError, match=words) as caught:
        WorldModelConfig.from_json(json.dumps(fields))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


def test_what_is_missing_is_named():
    fields = json.loads(MODEL.to_json())
    del fields["adapters"]["street"]["space"]
    with pytest.raises(InvalidConfigError, match=r"adapters\.street\.space is .*: Field required"):
        WorldModelConfig.from_json(json.dumps(fields))
