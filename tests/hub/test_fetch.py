"""Models from a Hub: names, revisions, what is requested, and life without a network."""

import pytest
from hub_files import check_cache, check_model, check_tensors, model_files, pinned_entry

import iwm
from iwm.errors import UnknownModelError, WeightsUnavailableError
from iwm.finding import download
from iwm.hub import RepoName, fetch
from iwm.hub_client import HubOptions
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

MAIN = {"config.json", "model.safetensors"}
STRANGERS = (
    "pytorch_model.bin",
    "modeling.py",
    "model.pt",
    "model.safetensors.index.json",
    "../x",
    "sub/folder/model.safetensors",
    "sub/config.json",
    "Config.json",
    "task-.safetensors",
    ".gitattributes",
)


@pytest.fixture
def files(tmp_path, tiny_config):
    """The newest model on the Hub."""
    return model_files(tmp_path / "saved", tiny_config(), student=True) | {"README.md": b"# A model\n"}


@pytest.fixture
def old(tmp_path, tiny_config):
    """The model before it."""
    return model_files(tmp_path / "old", tiny_config(), seed=1)


@pytest.fixture
def commits(hub, files, old):
    """`org/tiny` with a tag on its first commit and a pull request on the second; both commits."""
    first = hub.add_repo("org/tiny", old)
    second = hub.commit("org/tiny", files | dict.fromkeys(STRANGERS, b"no"))
    hub.tag("org/tiny", "v1.0", first)
    hub.tag("org/tiny", "refs/pr/1", second)
    return first, second


@pytest.fixture(params=[{"local_files_only": True}, {}], ids=["local_files_only", "HF_HUB_OFFLINE"])
def offline(request, hub, load, monkeypatch):
    """`load` where no request may be made; that there was none is seen at the end."""

    def loads(*args, **options):
        if not request.param:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        before = len(hub.requests)
        try:
            return load(*args, **request.param, **options)
        finally:
            assert len(hub.requests) == before
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    return loads


def requested(hub):
    """Names of the files that were asked for so far; the list of requests starts anew."""
    names = {request.subject.split("/resolve/")[1].split("/", 1)[1].removeprefix("pr/1/")
             for request in hub.requests if "/resolve/" in request.subject}  # fmt: skip
    hub.requests.clear()
    return names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", ("org/name", None, False)),
        ("hf-hub:org/name", ("org/name", None, True)),
        ("o/n@main", ("o/n", "main", False)),
        ("org/name.v2_x-y@v1.0", ("org/name.v2_x-y", "v1.0", False)),
        ("hf-hub:org/name@refs/pr/1", ("org/name", "refs/pr/1", True)),
        (f"org/name@{'a' * 40}", ("org/name", "a" * 40, False)),
        (f"{'o' * 96}/n", ("o" * 96 + "/n", None, False)),
    ],
)
def test_names_of_repositories(text, expected):
    assert RepoName.parse(text) == RepoName(*expected)


@pytest.mark.parametrize(
    "text",
    ["", "name", "a/b/c", "/org/name", "./org", "../name", "org/..", "org/na..me", "org/name@", "org/name@a..b",
     "org/name@/x", "org/name@x/", "org/name@a b", "org/name@a@b", "org/name\n", "org/na me", " org/name",
     "org/.name", "-org/name", "hf-hub:", "hf-hub:name", "HF-HUB:org/name", "hf-hub:hf-hub:org/name",
     "http://x/y", "https://huggingface.co/org/name", "org\\name", "org/name\0", "~/name", f"{'o' * 97}/n"],
)  # fmt: skip
def test_texts_that_name_no_repository(text):
    assert RepoName.parse(text) is None
    with pytest.raises(UnknownModelError, match="called"):
        iwm.load(text)


@pytest.mark.parametrize(
    ("name", "revision", "newest"),
    [
        ("org/tiny", None, True),
        ("hf-hub:org/tiny", None, True),
        ("org/tiny@main", None, True),
        ("org/tiny@main", "main", True),
        ("org/tiny@refs/pr/1", None, True),
        ("org/tiny", "refs/pr/1", True),
        ("org/tiny@v1.0", None, False),
        ("org/tiny", "v1.0", False),
        ("hf-hub:org/tiny@{first}", None, False),
        ("org/tiny", "{first}", False),
        ("org/tiny@{second}", "{second}", True),
    ],
)
def test_every_way_to_name_a_revision(load, cache, commits, files, old, tmp_path, name, revision, newest):
    name, revision = (text and text.format(first=commits[0], second=commits[1]) for text in (name, revision))
    model = load(name, revision=revision)
    check_model(model, files if newest else old)
    check_model(
        WorldModel.from_pretrained(name, revision=revision, cache_dir=cache), files if newest else old
    )
    assert model.space == iwm.load(tmp_path / ("saved" if newest else "old")).space
    assert not model.training
    assert [path.name for path in cache.glob("models--org--tiny/snapshots/*")] == [commits[newest]]
    check_cache(cache)


def test_two_revisions_contradict_each_other(hub, load, commits):
    with pytest.raises(UnknownModelError, match=r'names revision v1\.0 and revision="main" another'):
        load("org/tiny@v1.0", revision="main")
    assert hub.requests == []


def test_a_folder_has_the_name_first(hub, load, commits, files, tmp_path, tiny_config, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = model_files(tmp_path / "org" / "tiny", tiny_config(), seed=2)
    check_model(load("org/tiny"), own)
    check_model(WorldModel.from_pretrained("org/tiny"), own)
    with pytest.raises(UnknownModelError, match=r'"org/tiny" is a folder and has no revisions'):
        load("org/tiny", revision="main")
    assert hub.requests == []
    check_model(load("hf-hub:org/tiny"), files)
    model_files(tmp_path / "hf-hub:org" / "tiny", tiny_config(), seed=2)
    check_model(load("hf-hub:org/tiny"), files)
    check_model(load("./hf-hub:org/tiny"), own)


def test_a_mistyped_folder_hears_of_both_meanings(load, hub, commits):
    with pytest.raises(UnknownModelError, match=r"There is no runs/one at .* And no folder here is called"):
        load("runs/one")
    with pytest.raises(UnknownModelError) as caught:
        load("hf-hub:runs/one")
    assert "folder" not in str(caught.value)


def test_an_architecture_needs_the_config_alone(load, hub, commits, files, offline):
    model = load("org/tiny", pretrained=False)
    assert model.config == iwm.WorldModelConfig.from_json(files["config.json"])
    assert requested(hub) == {"config.json"}
    assert offline("org/tiny", pretrained=False).config == model.config


@pytest.mark.parametrize("revision", [None, "v1.0", "refs/pr/1"])
def test_a_branch_in_the_cache_costs_one_question(load, hub, commits, files, old, revision):
    load("org/tiny", revision=revision)
    assert requested(hub) == MAIN
    check_model(load("org/tiny", revision=revision), old if revision == "v1.0" else files)
    assert [request.path.split("?")[0].split("/revision/")[0] for request in hub.requests] == [
        "/api/models/org/tiny"
    ]


def test_a_commit_in_the_cache_costs_no_request(load, hub, commits, old, cache):
    first = commits[0]
    load("org/tiny", revision=first)
    hub.requests.clear()
    check_model(load(f"org/tiny@{first}"), old)
    check_model(load("org/tiny", revision=first, verify="always"), old)
    check_model(WorldModel.from_pretrained("org/tiny", revision=first, cache_dir=cache), old)
    assert hub.requests == []


def test_a_pinned_entry_loads_by_its_name_and_then_without_a_request(
    load, hub, commits, files, old, tiny_config, monkeypatch
):
    monkeypatch.setitem(ZOO, "pinned", pinned_entry(tiny_config(), commits[0], old))
    check_model(load("pinned"), old)
    assert requested(hub) == MAIN
    check_model(load("pinned"), old)
    check_model(load("pinned", revision=commits[0]), old)
    assert load("pinned", pretrained=False).config == tiny_config()
    assert hub.requests == []
    check_model(load("pinned", revision="main"), files)
    with pytest.raises(WeightsUnavailableError, match=r"org/tiny has no student\.safetensors; it has config"):
        load("pinned", branch="student")


def test_a_branch_that_moved_is_fetched_anew(load, hub, files, old, cache, offline):
    first = hub.add_repo("org/tiny", old)
    check_model(load("org/tiny"), old)
    second = hub.commit("org/tiny", files)
    check_model(offline("org/tiny"), old)
    check_model(load("org/tiny"), files)
    check_model(offline("org/tiny"), files)
    check_model(offline("org/tiny", revision=first), old)
    hub.tag("org/tiny", "main", first)
    check_model(load("org/tiny"), old)
    check_model(offline("org/tiny"), old)
    check_model(offline("org/tiny", revision=second), files)
    check_cache(cache)


def test_a_branch_that_moves_by_its_weights_alone_keeps_the_config(load, hub, files, old):
    hub.add_repo("org/tiny", old)
    load("org/tiny")
    hub.commit("org/tiny", {"model.safetensors": files["model.safetensors"]})
    hub.requests.clear()
    check_model(load("org/tiny"), files)
    bodies = {request.subject for request in hub.requests if request.method == "GET"}
    assert {subject.rsplit("/", 1)[1] for subject in bodies if "/resolve/" in subject} == {
        "model.safetensors"
    }


def test_the_student_is_fetched_when_it_is_asked_for(load, hub, commits, files, offline):
    load("org/tiny")
    assert requested(hub) == MAIN
    student = load("org/tiny", branch="student")
    check_tensors(student.encoder.state_dict(), files["student.safetensors"])
    assert requested(hub) == {"student.safetensors"}
    check_tensors(offline("org/tiny", branch="student").encoder.state_dict(), files["student.safetensors"])


def test_a_student_that_nobody_published(load, commits):
    with pytest.raises(WeightsUnavailableError, match=r"org/tiny has no student\.safetensors; it has config"):
        load("org/tiny@v1.0", branch="student")


def test_files_of_other_names_are_never_requested(load, hub, commits, files, cache, tmp_path):
    options = HubOptions(cache_dir=cache)
    load("org/tiny")
    assert requested(hub) == MAIN
    folder = download("org/tiny", options=options)
    assert requested(hub) == {"README.md", "student.safetensors"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    download("org/tiny", tmp_path / "copy", options)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {*files, ".iwm"}
    for name in STRANGERS:
        with pytest.raises(WeightsUnavailableError, match="org/tiny has no"):
            fetch("org/tiny", names=[name], options=options)
    assert requested(hub) == set()
    assert {path.name for path in (cache / "models--org--tiny" / "snapshots").glob("*/*")} == files.keys()


def test_weights_of_tasks_belong_to_a_model(hub, files, cache):
    hub.add_repo("org/tiny", files | {"task-knn_2.safetensors": b"head", "task-K.safetensors": b"no"})
    folder = download("org/tiny", options=HubOptions(cache_dir=cache))
    assert {path.name for path in folder.iterdir()} == {*files, "task-knn_2.safetensors"}


def test_without_a_network_the_cache_is_what_there_is(load, hub, commits, files, old, offline):
    for name in ("org/tiny", "org/tiny@v1.0", f"org/tiny@{commits[0]}"):
        with pytest.raises(WeightsUnavailableError) as caught:
            offline(name)
        assert (
            f"config.json of {name} is not in the cache with what it must be, and no request may be made"
            in str(caught.value)
        )
        assert str(caught.value).endswith(
            f'once: `iwm download {name}`. And no folder here is called "{name}".'
        )
    load("org/tiny")
    check_model(offline("org/tiny"), files)
    check_model(offline(f"org/tiny@{commits[1]}"), files)
    with pytest.raises(WeightsUnavailableError, match=r"config\.json of org/tiny@v1\.0 is not in the cache"):
        offline("org/tiny@v1.0")
    with pytest.raises(
        WeightsUnavailableError, match=r"student\.safetensors of org/tiny is not in the cache"
    ):
        offline("org/tiny", branch="student")
    load("org/tiny@v1.0")
    check_model(offline("org/tiny@v1.0"), old)
    check_model(offline(f"org/tiny@{commits[0]}"), old)


def test_without_a_network_a_pinned_entry_needs_its_files(
    load, commits, files, tiny_config, monkeypatch, offline
):
    monkeypatch.setitem(ZOO, "pinned", pinned_entry(tiny_config(), commits[1], files))
    with pytest.raises(WeightsUnavailableError, match=f"iwm download org/tiny@{commits[1]}"):
        offline("pinned")
    load("pinned", branch="student")
    check_model(offline("pinned"), files)


def test_the_clients_own_word_for_offline_counts(load, hub, commits, files, monkeypatch, caplog):
    load("org/tiny")
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_model(load("org/tiny"), files)
    with pytest.raises(WeightsUnavailableError, match=r"is not in the cache .*, and no request may be made"):
        load("org/tiny@v1.0")
    assert hub.requests == []
    assert caplog.records == []


@pytest.mark.parametrize("names", [[], ["model.safetensors"]], ids=["none", "weights"])
@pytest.mark.parametrize("by", ["branch", "commit", "pins"])
def test_the_config_comes_with_whatever_is_asked_for(hub, commits, files, options, names, by):
    sha256 = pinned_entry(None, commits[1], files).hub.sha256 if by == "pins" else None
    revision = None if by == "branch" else commits[1]
    for _ in range(2):
        fetched = fetch("org/tiny", revision, sha256=sha256, names=names, options=options)
        assert {path.name: path.read_bytes() for path in fetched.folder.iterdir()} == {
            name: files[name] for name in ("config.json", *names)
        }
        assert fetched.receipt.files.keys() == files.keys()
    assert requested(hub) == {"config.json", *names}
