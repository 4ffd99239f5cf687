"""Repositories of strangers: what is refused, before what, and in which words."""

import json
import pickle
import resource
import time
from functools import partial

import pytest
import torch
from hub_files import check_cache, check_model
from loopback_hub import Status
from loopback_server import json_answer
from safetensors.torch import load as read_tensors
from safetensors.torch import save as tensors

import iwm
from iwm.errors import (
    IncompatibleWeightsError,
    InvalidConfigError,
    UnknownModelError,
    WeightsUnavailableError,
)
from iwm.finding import download
from iwm.hub import MAX_FILES
from iwm.hub_client import HubOptions
from iwm.model_folder import MAX_CONFIG_BYTES
from iwm.world_model import WorldModel


def changed(content, changes):
    """A config with some fields changed, by dotted name."""
    data = json.loads(content)
    for name, value in changes.items():
        *sections, field = name.split(".")
        part = data
        for section in sections:
            part = part[section]
        part[field] = value
    return json.dumps(data).encode()


def requested(hub):
    """The files whose content was asked for."""
    return {request.subject.rpartition("/")[2] for request in hub.requests if "/resolve/" in request.subject}


def check_config_refused(hub, load, cache, content, words):
    """The model is refused for its config, quickly, and the weights are never asked for."""
    weights = b"never asked for"
    hub.add_repo("org/tiny", {"config.json": content, "model.safetensors": weights})
    began, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for call in (load, partial(load, pretrained=False), partial(WorldModel.from_pretrained, cache_dir=cache)):
        with pytest.raises(InvalidConfigError, match=words):
            call("org/tiny")
    with pytest.raises(InvalidConfigError, match=words):
        download("org/tiny", options=HubOptions(cache_dir=cache))
    assert time.monotonic() - began < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000
    assert "model.safetensors" not in requested(hub)
    check_cache(cache)


TERABYTES = {"encoder.width": 16384, "encoder.depth": 1024, "encoder.heads": 16, "predictor.width": 16384}
CONFIGS = {
    "terabytes": (
        TERABYTES,
        r"config\.json: The config asks for [\d,]+ parameters; 10,000,000,000 are allowed",
    ),
    "width": ({"encoder.width": 1 << 40}, r"encoder\.width is \d+; it must be 1 to 16384"),
    "depth": ({"encoder.depth": 10**9}, r"encoder\.depth is 1000000000; it must be 1 to 1024"),
    "huge number": ({"encoder.depth": 10**400}, r"encoder\.depth is"),
    "grid": ({"encoder.image_size": 16384, "encoder.patch_size": 1}, "makes 16384 patches a side; use 256"),
    "pixels": (
        {"preprocess.size": 16384, "preprocess.resize": 16384},
        r"preprocess\.size makes 2048 patches",
    ),
    "heads": ({"encoder.heads": 0}, r"encoder\.heads is 0"),
    "minus": ({"predictor.depth": -1}, r"predictor\.depth is -1"),
    "nan": ({"encoder.mlp_ratio": float("nan")}, r"encoder\.mlp_ratio is nan"),
    "infinity": ({"predictor.mlp_ratio": float("inf")}, r"predictor\.mlp_ratio is inf"),
    "nan mean": ({"preprocess.mean": [float("nan")] * 3}, r"preprocess\.mean is \(nan"),
    "nan std": ({"preprocess.std": [float("nan")] * 3}, r"preprocess\.std is \(nan"),
    "nan jitter": ({"actions.distribution.brightness": float("nan")}, "jitter strength brightness is nan"),
    "text": ({"encoder.width": "48"}, r"encoder\.width is '48'"),
    "fraction": ({"encoder.width": 48.5}, r"encoder\.width is 48\.5"),
    "list": ({"encoder": [1]}, r"encoder must hold fields, not \[1\]"),
    "field": ({"encoder.widht": 48}, r'No field "encoder\.widht"\. Did you mean "encoder\.width"'),
    "future": (
        {"format": 2, "new": 1},
        "config.json has format 2, this iwm reads up to 1.*pip install --upgrade",
    ),
    "path": ({"name": "../../x"}, r"name is '\.\./\.\./x'; .* must not be a path"),
    "absolute": ({"name": "/etc/x"}, r"name is '/etc/x'; .* must not be a path"),
    "windows": ({"name": "..\\x"}, r"name is '\.\.\\\\\\\\x'|must not be a path"),
    "long name": ({"name": "x" * 100_000}, "must not be a path"),
    "terminal": ({"license": "\x1b[2J"}, r"license is '\\x1b\[2J'; use one line"),
    "layout": (
        {"predictor.layout": "sideways"},
        r'predictor\.layout is "sideways"|predictor\.layout is \'sideways\'',
    ),
}


@pytest.mark.parametrize(("changes", "words"), CONFIGS.values(), ids=CONFIGS)
def test_configs_of_impossible_models(hub, load, cache, files, changes, words):
    check_config_refused(hub, load, cache, changed(files["config.json"], changes), words)


TEXTS = {
    "no json": (b"not json {", r"config\.json is not valid JSON"),
    "bytes": (b"\xff\xfe\x00\x01", r"config\.json is not valid JSON"),
    "empty": (b"", r"config\.json is not valid JSON"),
    "list": (b"[]", "must hold one JSON object"),
    "number": (b"1e400", "must hold one JSON object"),
    "deep": (b'{"recipe": ' + b'{"a": ' * 100_000 + b"1" + b"}" * 100_001, r"config\.json is not valid JSON"),
    "deep lists": (b"[" * 1_000_000, r"config\.json is not valid JSON"),
    "a little deep": (b'{"recipe": ' + b'{"a": ' * 300 + b"1" + b"}" * 301, r"config\.json: "),
    "digits": (b'{"format": ' + b"9" * 5000 + b"}", r"config\.json"),
    "large text": (b'{"encoder": {"width": "' + b"x" * 900_000 + b'"}}', r"encoder\.width"),
    "large section": (b'{"encoder": "' + b"x" * 900_000 + b'"}', "encoder must hold fields"),
    "large field": (b'{"' + b"x" * 900_000 + b'": 1}', "No field"),
    "other library": (b'{"architectures": ["ViTModel"], "hidden_size": 768}', r'No field "architectures"'),
}


@pytest.mark.parametrize(("content", "words"), TEXTS.values(), ids=TEXTS)
def test_configs_that_are_none(hub, load, cache, content, words):
    check_config_refused(hub, load, cache, content, words)


def test_a_config_that_is_too_large_is_not_even_fetched(hub, load, cache, files):
    padded = files["config.json"] + b" " * (MAX_CONFIG_BYTES + 1 - len(files["config.json"]))
    words = r"config\.json of org/tiny has 4,194,305 bytes; 4,194,304 are allowed"
    check_config_refused(hub, load, cache, padded, words)
    assert requested(hub) == set()
    assert list(cache.glob("**/config.json")) == []
    hub.commit("org/tiny", {"config.json": padded[:-1], "model.safetensors": files["model.safetensors"]})
    check_model(load("org/tiny"), files | {"config.json": padded[:-1]})


def test_weights_that_are_too_large_are_not_even_fetched(hub, load, cache, files):
    config = iwm.WorldModelConfig.from_json(files["config.json"])
    limit = 8 * config.parameters + (1 << 20)
    words = (
        rf"model\.safetensors of org/tiny has {limit + 1:,} bytes; by its config it can have {limit:,}\. Noth"
    )
    hub.add_repo("org/tiny", files | {"model.safetensors": bytes(limit + 1)})
    with pytest.raises(IncompatibleWeightsError, match=words):
        load("org/tiny")
    assert requested(hub) == {"config.json"}
    check_cache(cache)
    student = {"model.safetensors": files["model.safetensors"], "student.safetensors": bytes(limit + 1)}
    hub.commit("org/tiny", student | {"README.md": b"x" * ((1 << 22) + 1)})
    check_model(load("org/tiny"), files)
    with pytest.raises(IncompatibleWeightsError, match=r"^student\.safetensors of org/tiny has"):
        load("org/tiny", branch="student")
    hub.commit("org/tiny", {"student.safetensors": None})
    with pytest.raises(IncompatibleWeightsError, match=r"^README\.md of org/tiny has 4,194,305 bytes"):
        download("org/tiny", options=HubOptions(cache_dir=cache))
    assert not {"student.safetensors", "README.md"} & requested(hub)
    check_model(load("org/tiny"), files)
    check_cache(cache)


class Trap:
    """Unpickling it would raise another error."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code of a stranger ran')",)


def damaged(kind, content):
    """Weights that are none, or those of another model."""
    state = read_tensors(content)
    first = next(iter(state))
    match kind:
        case "missing":
            del state[first]
        case "unexpected":
            state["extra.weight"] = torch.zeros(3)
        case "shape":
            state[first] = state[first][None].contiguous()
        case "integers":
            state[first] = state[first].to(torch.int16)
        case "empty":
            state = {}
        case "header":
            return content[:8] + b"x" * 100 + content[108:]
        case "length":
            return (1 << 62).to_bytes(8, "little") + content[8:]
        case "cut":
            return content[:-10]
        case "longer":
            return content + b"0123456789"
        case "nothing":
            return b""
        case "pickle":
            return pickle.dumps(Trap())
        case "offsets":
            size = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + size])
            header[first]["data_offsets"] = [0, 1 << 50]
            text = json.dumps(header).encode()
            return len(text).to_bytes(8, "little") + text + content[8 + size :]
    return tensors(state)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", r"1 missing \("),
        ("unexpected", r"1 unexpected \(extra\.weight\)"),
        ("shape", r"has shape \[1, .*expected"),
        ("integers", "holds I16, expected one of F16"),
        ("empty", r"\d+ missing"),
        *((kind, "is not a readable safetensors file") for kind in
          ("header", "length", "cut", "longer", "nothing", "pickle", "offsets")),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit(hub, load, cache, files, kind, words):
    hub.add_repo("org/tiny", files | {"model.safetensors": damaged(kind, files["model.safetensors"])})
    for _ in range(2):
        with pytest.raises(IncompatibleWeightsError, match=words):
            load("org/tiny")
    check_cache(cache)
    hub.commit("org/tiny", {"model.safetensors": files["model.safetensors"]})
    check_model(load("org/tiny"), files)


def test_values_that_are_no_numbers_arrive_as_they_are(hub, load, files):
    state = read_tensors(files["model.safetensors"])
    next(iter(state.values())).fill_(float("nan"))
    hub.add_repo("org/tiny", files | {"model.safetensors": tensors(state)})
    assert any(parameter.isnan().any() for parameter in load("org/tiny").parameters())


@pytest.mark.parametrize("present", ["config.json", "model.safetensors", "README.md", "pytorch_model.bin"])
def test_repositories_that_hold_no_model(hub, load, cache, files, present):
    content = files | {"README.md": b"#", "pytorch_model.bin": pickle.dumps(Trap())}
    commit = hub.add_repo("org/tiny", {present: content[present]})
    words = r"^org/tiny is no model of this library: it lacks config\.json or model\.safetensors\."
    for options in ({}, {"revision": commit}, {"pretrained": False}, {"branch": "student"}):
        with pytest.raises(WeightsUnavailableError, match=words):
            load("org/tiny", **options)
    with pytest.raises(WeightsUnavailableError, match=words):
        download("org/tiny", options=HubOptions(cache_dir=cache))
    assert requested(hub) == set()
    hub.commit("org/tiny", files)
    check_model(load("org/tiny"), files)


def test_a_repository_without_any_file(hub, load):
    hub.add_repo("org/empty", {})
    with pytest.raises(WeightsUnavailableError, match="is no model of this library"):
        load("org/empty")


@pytest.mark.parametrize(
    "revision",
    ["../../../etc/passwd", "..", ".", "a/./b", "a/../b", "a..b", "/etc/passwd", "a/", "a//b", "main\n", "a b", "\0",
     "a:b", "a\\b", "a?b", "a*b", "HEAD^", "HEAD~1"],
)  # fmt: skip
def test_revisions_that_git_cannot_have(hub, load, cache, files, revision):
    hub.add_repo("org/tiny", files)
    load("org/tiny")
    hub.requests.clear()
    for options in ({}, {"local_files_only": True}):
        with pytest.raises(UnknownModelError, match=r"^org/tiny has no revision .* no branch, tag or commit"):
            load("org/tiny", revision=revision, **options)
    assert hub.requests == []


@pytest.mark.parametrize(
    "revision", ["v1.0+cpu", "feature#1", "a@b", "user/ideas", "100%", "été", "-x", "refs/pr/1"]
)
def test_revisions_that_git_can_have(hub, load, files, revision):
    hub.tag("org/tiny", revision, hub.add_repo("org/tiny", files))
    check_model(load("org/tiny", revision=revision), files)
    check_model(load("org/tiny", revision=revision, local_files_only=True), files)


def test_more_files_than_a_model_can_have_are_not_fetched(hub, load, files, options):
    tasks = {f"task-{i}.safetensors": b"head" for i in range(MAX_FILES - len(files))}
    commit = hub.add_repo("org/tiny", files | tasks)
    check_model(load("org/tiny"), files)
    hub.commit("org/tiny", {"task-one-more.safetensors": b"head"})
    hub.requests.clear()
    words = f"^org/tiny has {MAX_FILES + 1} files of weights; {MAX_FILES} are allowed"
    with pytest.raises(IncompatibleWeightsError, match=words):
        load("org/tiny")
    with pytest.raises(IncompatibleWeightsError, match=words):
        download("org/tiny", options=options)
    assert requested(hub) == set()
    check_model(load("org/tiny", revision=commit), files)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_whose_size_the_hub_does_not_tell_is_not_fetched(hub, load, files, monkeypatch, name):
    hub.add_repo("org/tiny", files)
    healthy = hub.answer

    def silent(request, body):
        answer = healthy(request, body)
        if not request.path.startswith("/api/models/"):
            return answer
        told = json.loads(answer.body)
        (file,) = (file for file in told["siblings"] if file["rfilename"] == name)
        file["size"] = None
        if "lfs" in file:
            file["lfs"]["size"] = None
        return json_answer(told)

    with monkeypatch.context() as patch:
        patch.setattr(hub, "answer", silent)
        with pytest.raises(
            WeightsUnavailableError, match=f"^The Hub does not say how large {name} of org/tiny is"
        ):
            load("org/tiny")
    assert name not in requested(hub)
    check_model(load("org/tiny"), files)


def test_what_a_server_says_stays_short_and_printable(hub, load, files):
    hub.add_repo("org/tiny", files)
    said = "\x1b]0;pwned\x07 " + "x" * 5000
    hub.inject(Status(418, message=said), "/api/models/*")
    with pytest.raises(WeightsUnavailableError, match=r"refuses org/tiny \(418: .*xxx\.\.\.\)\.$") as caught:
        load("org/tiny")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
