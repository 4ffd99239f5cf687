"""The generated model card: what the Hub reads of it, and that all of it comes from the config."""

import json
import math
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from iwm.config import (
    STRENGTHS,
    ActionConfig,
    EncoderConfig,
    PredictorConfig,
    PreprocessConfig,
    WorldModelConfig,
)
from iwm.model_card import CITATION, MARK, datasets, scores, write_card
from iwm.model_folder import read_config
from iwm.zoo import ZOO

REPO = "org/my-model"
MEASURED = {
    "apply-mrr-full-100x256": {
        "overall": {"mrr": 0.76964, "hits": {"1": 0.65}},
        "command": "iwm eval mrr --model run --data /home/me/imagenette/val --images 100",
    },
    "knn-20-cats": {"accuracy": 0.5, "command": "iwm eval knn --train a/train --val pets/val -k 20"},
    "knn-20-untold": {"accuracy": 1},
}
PROVENANCE = {
    "data": [
        {"folder": "/home/me/secret/imagenet/train", "images": 9469, "files_sha256": "a6"},
        {"folder": "photos", "images": 3},
    ],
    "images": 9472, "steps": 11000, "images_seen": 704000, "hours": 1.647, "machine": "2 CPU threads",
}  # fmt: skip


@pytest.fixture
def card(tiny_config):
    """`card(**changes of the config)`: the card's front matter, as plain YAML, and its body."""

    def write(**changes):
        text = write_card(tiny_config().replace(**changes), REPO)
        text.encode()
        _, front, body = re.split(r"^---\n", text, maxsplit=2, flags=re.MULTILINE)
        ModelCard(text)  # The Hub's client can read it.
        return yaml.safe_load(front), body

    return write


def check_rows(body):
    """The tables by their left column; no row has a cell too many."""
    rows = [re.split(r"(?<!\\) *\| *", line)[1:-1] for line in body.splitlines() if line.startswith("|")]
    assert all(len(row) in (2, 3) for row in rows), rows
    return {name: value for name, value, *_ in rows}


def test_a_config_without_metrics_and_provenance(card):
    front, body = card()
    assert front == {
        "license": "other",
        "license_name": "unspecified",
        "library_name": "iwm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["world-model", "jepa", "self-supervised", "arxiv:2403.00504"],
    }
    assert body.startswith(f"\n{MARK}\n\n# my-model\n")
    assert 'iwm.load("org/my-model")' in body
    assert "Nothing is recorded about its training." in body
    assert "## Scores" not in body
    assert "## Training" not in body
    assert CITATION in body


@pytest.mark.parametrize(
    ("named", "license_id", "license_name"),
    [
        ("mit", "mit", None),
        ("Apache-2.0", "apache-2.0", None),
        ("CC-BY-NC-SA-4.0", "cc-by-nc-sa-4.0", None),
        ("none yet (not published)", "other", "none-yet-not-published"),
        ("unspecified", "other", "unspecified"),
        ("", "other", "unspecified"),
        ("名", "other", "unspecified"),
        ("My: own # {licence} - [v2] & 'x' \"y\" % @ ` ! *", "other", "my-own-licence-v2-x-y"),
        ("null", "other", "null"),
        ("no", "other", "no"),
        ("- a", "other", "a"),
        ("MIT | ---", "other", "mit"),
    ],
)
def test_licences(card, named, license_id, license_name):
    front, body = card(license=named)
    assert (front["license"], front.get("license_name")) == (license_id, license_name)
    assert check_rows(body)["licence of the weights"] == named.replace("|", r"\|")


def test_scores_are_those_of_the_config(card):
    front, body = card(metrics=MEASURED)
    (index,) = front["model-index"]
    assert index["name"] == "my-model"
    found = {
        metric["name"]: (metric["type"], metric["value"], result["dataset"]["name"])
        for result in index["results"]
        for metric in result["metrics"]
    }
    assert found == {
        "apply-mrr-full-100x256": ("mrr", 0.7696, "imagenette"),
        "knn-20-cats": ("accuracy", 0.5, "pets"),
        "knn-20-untold": ("accuracy", 1.0, "knn-20-untold"),
    }
    rows = check_rows(body)
    assert rows["apply-mrr-full-100x256"] == "mrr 0.770"
    assert rows["knn-20-cats"] == "accuracy 0.500"
    for metric in MEASURED.values():
        assert f"`{metric.get('command', 'not recorded')}`" in body


def test_data_is_named_without_where_it_lay(card):
    front, body = card(provenance=PROVENANCE)
    assert front["datasets"] == ["imagenet", "photos"]
    assert "secret" not in str(front) + body
    told = [line for line in body.splitlines() if line.startswith("- ")]
    assert told == [
        "- data: imagenet, photos", "- images: 9472", "- steps: 11000", "- images seen: 704000",
        "- hours: 1.647", "- machine: 2 CPU threads",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("imagenette/train", ["imagenette"]),
        ("/data/cats/images/train/", ["cats"]),
        (r"C:\Users\me\secret\imagenet\train", ["imagenet"]),
        ("C:/Users/me/cats", ["cats"]),
        ("~/my photos", ["myphotos"]),
        ("s3://bucket/cats", ["cats"]),
        ("../cats/val", ["cats"]),
        ("train", []),
        ("..", []),
        ("/", []),
        ("", []),
        ("- a: [b]", ["ab"]),
    ],
)
def test_names_of_data_folders(folder, names):
    assert datasets({"data": [{"folder": folder}, {"folder": folder}]}) == names


@pytest.mark.parametrize(
    "data", [None, "ImageNet", 3, {}, [], [None, 3, "x", [], {}], [{"folder": None}][:0]]
)
def test_data_of_another_shape(card, data):
    front, _ = card(provenance={"data": data})
    assert "datasets" not in front


@pytest.mark.parametrize(
    "metric",
    [
        None, 0.5, "0.5", True, [], [0.5], {}, {"accuracy": None}, {"accuracy": "0.5"}, {"accuracy": True},
        {"accuracy": [0.5]}, {"accuracy": math.nan}, {"accuracy": math.inf}, {"accuracy": -math.inf},
        {"accuracy": 10**400}, {"accuracy": -(10**400)}, {"accuracy": 1.5}, {"accuracy": -0.1}, {"overall": None},
        {"overall": 0.5}, {"overall": {}}, {"overall": [1]}, {"overall": {"mrr": {"mrr": 0.5}}},
        {"overall": {"mrr": math.nan}, "accuracy": 0.5},
    ],
    ids=lambda metric: str(metric)[:24],
)  # fmt: skip
def test_what_is_no_score_is_left_out(card, metric):
    metrics = {"odd": metric, "good": {"accuracy": 0.25}}
    assert scores(metrics) == {"good": ("accuracy", 0.25)}
    front, body = card(metrics=metrics)
    assert [
        metric["name"] for result in front["model-index"][0]["results"] for metric in result["metrics"]
    ] == ["good"]
    assert check_rows(body)["good"] == "accuracy 0.250"
    assert card(metrics={"odd": metric}) == card()


def test_a_folder_whose_name_was_quoted(card):
    command = "iwm eval mrr --data '/data/my cats/val' --images 3"
    front, _ = card(metrics={"knn": {"accuracy": 0.5, "command": command}})
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "mycats"


@pytest.mark.parametrize(
    "command",
    [
        None,
        3,
        [],
        ["--data", 3],
        {},
        "",
        "--data",
        "iwm --data",
        "--data ..",
        "iwm eval knn --data 'half a",
        "a | b\n# c\n---\n`",
    ],
)
def test_commands_of_any_shape(card, command):
    front, body = card(metrics={"knn": {"accuracy": 0.5, "command": command}})
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "knn"
    assert check_rows(body)["knn"] == "accuracy 0.500"
    assert [line for line in body.splitlines() if line.startswith("#")] == [
        "# my-model", "## Scores", "## Citation"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "", "---", "a: b", "- a", "# a", "{a}", "[a]", "'a", '"a', "a\n---\nb: c", "a\r\n# b", "null", "1", "| a | b |",
        "!!python/object:os.system", "&a *a", "\x1b[31m", "ünï😀\u2028x", "%", "@", "`",
    ],
)  # fmt: skip
def test_names_that_mean_something_to_yaml_or_markdown(card, name):
    front, body = card(metrics={name: {"accuracy": 0.5}}, provenance={"x": 1, name: f"{name}\n# {name}"})
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 0.5, "name": name}]
    assert [line for line in body.splitlines() if line.startswith(("#", "---"))] == [
        "# my-model", "## Scores", "## Training", "## Citation"
    ]  # fmt: skip
    assert "accuracy 0.500" in check_rows(body).values()


def test_deep_json_is_no_trouble(card):
    deep = {"overall": json.loads("[" * 150 + "]" * 150)}
    front, _ = card(metrics={"deep": deep}, provenance={"deep": deep}, recipe={"deep": deep})
    assert "model-index" not in front


@pytest.mark.parametrize(
    ("part", "row", "told"),
    [
        ({"encoder": {"width": 96}}, "encoder", "ViT, 2 x 96 (depth x width), 4 heads, patch 8"),
        ({"encoder": {"depth": 3}}, "encoder", "ViT, 3 x 48 (depth x width), 4 heads, patch 8"),
        ({"encoder": {"heads": 2}}, "encoder", "ViT, 2 x 48 (depth x width), 2 heads, patch 8"),
        ({"encoder": {"patch_size": 16}}, "encoder", "ViT, 2 x 48 (depth x width), 4 heads, patch 16"),
        ({"predictor": {"width": 64}}, "world model", "2 x 64, layout `inplace`, conditioning `adaln`"),
        ({"predictor": {"depth": 7}}, "world model", "7 x 32, layout `inplace`, conditioning `adaln`"),
        ({"predictor": {"layout": "append"}}, "world model", "2 x 32, layout `append`, conditioning `adaln`"),
        ({"predictor": {"conditioning": "none"}}, "world model", "2 x 32, layout `inplace`, conditioning `none`"),
        ({"preprocess": {"size": 48, "resize": 50}}, "input", "48 x 48 pixels, shorter side resized to 50"),
        ({"actions": {"encoding": "difference"}}, "actions", "encoded as `difference`; targets had jitter alone"),
        ({"actions": {"symmetric": True}}, "actions", "encoded as `pair`; targets had grayscale, blur and solarize too"),
        (
            {"actions": {"distribution": vars(STRENGTHS["strong"])}}, "trained range",
            "brightness, contrast, saturation, hue up to 0.5, 0.5, 0.4, 0.2 from neutral",
        ),
    ],
)  # fmt: skip
def test_every_number_comes_from_the_config(tiny_config, part, row, told):
    data = json.loads(tiny_config().to_json())
    for section, fields in part.items():
        data[section] |= fields
    config = WorldModelConfig.from_json(json.dumps(data, default=vars))
    before, after = (check_rows(write_card(c, REPO)) for c in (tiny_config(), config))
    assert after.pop(row) == told != before.pop(row)
    assert after.pop("parameters") == f"{config.parameters:,}"
    assert before.pop("parameters") == "81,472"
    assert after == before


def test_the_card_says_nothing_else_in_numbers():
    """Every number of a card of odd sizes is one of its config's, or the paper's."""
    config = WorldModelConfig(
        encoder=EncoderConfig(width=924, depth=13, heads=7, patch_size=31, image_size=62),
        predictor=PredictorConfig(width=644, depth=17),
        actions=ActionConfig(distribution=STRENGTHS["strong"].replace(brightness=0.61, contrast=0.62, saturation=0.63)),
        preprocess=PreprocessConfig(size=62, resize=71),
        metrics={"knn": {"accuracy": 0.123}}, provenance={"steps": 19},
    )  # fmt: skip
    known = {"924", "13", "7", "31", "644", "17", "62", "71", "0.61", "0.62", "0.63", "0.2", "0.123", "19"}
    known |= {f"{config.parameters:,}", "2403.00504", "1.4", "2024", "2"}  # Of the example, the paper, "2-D".
    body = write_card(config, REPO).partition("\n---\n")[2]
    assert set(re.findall(r"\d[\d.,]*\d|\d", body)) <= known


def test_the_card_of_the_embedded_model():
    config = read_config(ZOO["iwm-tiny"].folder)
    text = write_card(config, "org/iwm-tiny")
    data = ModelCard(text).data
    assert (data.license, data.license_name) == ("other", "research-only-trained-on-imagenet-photographs")
    assert data.datasets == ["imagenette", "caltech101", "clothing", "photos"]

    def headline(metric):
        if "predicted" in metric:
            return metric["predicted"]["ssim"]
        return metric["overall"]["mrr"] if "overall" in metric else metric["accuracy"]

    expected = {("imagenette", name): round(headline(metric), 4) for name, metric in config.metrics.items()}
    for adapter in config.adapters.values():
        expected |= {(task, task): round(m["accuracy"], 4) for task, m in adapter.metrics.items()}
    assert {(r.dataset_name, r.metric_name): r.metric_value for r in data.eval_results} == expected
    told = check_rows(text.partition("## Tasks")[0])
    assert told["parameters"] == "8,406,848"
    assert told["licence of the weights"] == "research only (trained on ImageNet photographs)"
    assert f"- machine: {config.provenance['machine']}" in text
    assert "- sittings: from step 0 on optim.stretch 1.25, steps 40000; from step 40000 on " in text
