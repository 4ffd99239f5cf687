"""`iwm search`: the ranking of a direct computation, whatever the action."""

import re
import shutil

import pytest
from PIL import Image

import iwm

ACTIONS = [
    (["--brightness", "0.6"], {"brightness": 0.6}),
    (["--contrast", "1.4"], {"contrast": 1.4}),
    (["--saturation", "0.5"], {"saturation": 0.5}),
    (["--hue", "-0.2"], {"hue": -0.2}),
    (["--grayscale"], {"grayscale": True}),
    (["--blur", "1.5"], {"blur": 1.5}),
    (["--solarize"], {"solarize": True}),
    (["--brightness", "1.3", "--hue=0.1", "--blur=1"], {"brightness": 1.3, "hue": 0.1, "blur": 1.0}),
]


@pytest.mark.parametrize("index", [0, 7])
def test_without_an_action_a_photograph_finds_itself(command, photos, files, model_folder, index):
    shown = command("search", photos, "--image", files[index], "--model", model_folder, "--json").json
    first, *others = shown["hits"]
    assert first == {"path": str(files[index]), "distance": pytest.approx(0.0, abs=1e-3)}
    assert len(others) == 4
    assert all(hit["distance"] > 1.0 for hit in others)


@pytest.mark.parametrize(("options", "parameters"), ACTIONS, ids=lambda value: " ".join(value))
def test_an_action_ranks_as_the_library_does(command, photos, files, model_folder, options, parameters):
    words = ["search", photos, "-i", files[3], "-m", model_folder, "-k", 12, "--json"]
    shown = command(*words, *options).json
    model, action = iwm.load(model_folder), iwm.Action(**parameters)
    hits = iwm.Bank.from_images(model, files).search(model.predict(files[3], action), k=12)
    assert [hit["path"] for hit in shown["hits"]] == [str(path) for path in hits.ids[0]]
    distances = [hit["distance"] for hit in shown["hits"]]
    assert distances == pytest.approx(hits.distances[0].tolist(), abs=2e-3)
    assert distances == sorted(distances)
    assert (shown["image"], shown["action"], shown["images"]) == (str(files[3]), str(action), 12)


def test_the_lines_of_a_fresh_process_are_what_json_says(
    fresh, command, monkeypatch, photos, symmetric_folder
):
    monkeypatch.chdir(photos)
    words = ["search", ".", "-i", "class0/06.jpg", "-m", symmetric_folder, "-k", 3, "--grayscale"]
    done = fresh(*words, cwd=photos)
    assert (done.code, done.err) == (0, "")
    heading, *lines = done.out.splitlines()
    assert heading == "class0/06.jpg as grayscale=True; nearest of 12"
    hits = command(*words, "--json").json["hits"]
    assert len(lines) == len(hits) == 3
    for rank, (line, hit) in enumerate(zip(lines, hits, strict=True), start=1):
        printed_rank, distance, path = line.split(maxsplit=2)
        assert int(printed_rank) == rank
        assert float(distance) == pytest.approx(hit["distance"], abs=0.01)
        assert path == hit["path"]


def test_without_an_action_the_heading_says_so(command, photos, files, model_folder):
    shown = command("search", photos, "-i", files[2], "-m", model_folder, "-k", 1)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == f"{files[2]} as it is; nearest of 12\n  1      0.00  {files[2]}\n"


def test_long_paths_and_names_like_markup_are_shown_as_they_are(command, files, model_folder, tmp_path):
    names = ["br[final].jpg", "br[/x].jpg", "[bold]a[/bold].jpg", f"{'long ' * 40}/{'name ' * 40}.jpg"]
    for name, source in zip(names, files, strict=False):
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / "all" / name)
    image = tmp_path / "all" / "br[/x].jpg"
    words = ["search", tmp_path / "all", "-i", image, "-m", model_folder]
    hits, shown = command(*words, "--json").json["hits"], command(*words)
    assert (shown.code, shown.err) == (0, "")
    heading, *lines = shown.out.splitlines()
    assert heading == f"{image} as it is; nearest of 4"
    assert sorted(hit["path"] for hit in hits) == sorted(str(tmp_path / "all" / name) for name in names)
    assert [line.split(maxsplit=2)[2] for line in lines] == [hit["path"] for hit in hits]


@pytest.mark.parametrize(("k", "shown"), [(1, 1), (12, 12), (500, 12)])
def test_k_hits_or_as_many_as_there_are(command, photos, files, model_folder, k, shown):
    words = ["search", photos, "-i", files[0], "-m", model_folder, "-k", k, "--json"]
    assert len(command(*words).json["hits"]) == shown


@pytest.mark.parametrize(
    ("folder", "image", "options", "message"),
    [
        ("missing", "PHOTO", [], r"No such folder: .*missing"),
        ("broken.jpg", "PHOTO", [], r"No such folder: .*broken\.jpg"),
        ("empty", "PHOTO", [], r"No images in .*empty; looked for .*\.jpg"),
        ("PHOTOS", "missing.jpg", [], r"No such image file: .*missing\.jpg"),
        ("PHOTOS", "broken.jpg", [], r"Cannot read .*broken\.jpg as an image"),
        ("PHOTOS", "PHOTO", ["--hue", "0.7"], r"hue is 0\.7; it must be -0\.5 to 0\.5 turns"),
        ("PHOTOS", "PHOTO", ["--brightness", "-1"], r"brightness is -1\.0; it must be a factor of 0"),
        ("PHOTOS", "PHOTO", ["--blur", "nan"], r"blur is nan; it must be a sigma"),
    ],
    ids=[
        "no folder", "a file", "no images", "no image", "no photograph", "hue", "brightness", "blur"
    ],
)  # fmt: skip
def test_what_cannot_be_searched(
    command, photos, files, bad_photo, model_folder, folder, image, options, message
):
    places = {"PHOTOS": photos, "PHOTO": files[0]}
    (bad_photo.parent / "empty").mkdir()
    words = [places.get(name, bad_photo.parent / name) for name in (folder, image)]
    assert re.search(message, command("search", words[0], "-i", words[1], "-m", model_folder, *options).error)


def test_what_cannot_be_read_in_a_folder_is_skipped_with_a_warning(command, mixed, files, model_folder):
    shown = command("search", mixed, "-i", files[1], "-m", model_folder, "--json")
    bad = re.escape(str(mixed / "br[bold].jpg"))
    assert re.fullmatch(rf"Warning: skipped: Cannot read {bad} as an image: .+\n", shown.err)
    assert shown.json["images"] == 2
    assert [hit["path"] for hit in shown.json["hits"]] == [str(mixed / name) for name in ("c.jpg", "a.jpg")]
    assert shown.json["hits"][0]["distance"] == pytest.approx(0.0, abs=1e-3)


def test_a_folder_where_nothing_can_be_read(command, bad_photo, files, model_folder):
    shown = command("search", bad_photo.parent, "-i", files[0], "-m", model_folder)
    warning, error = shown.err.splitlines()
    assert (shown.code, shown.out) == (1, "")
    assert warning.startswith(f"Warning: skipped: Cannot read {bad_photo} as an image: ")
    assert error == "Error: None of the 1 images can be read."


def test_k_must_be_positive(command, photos, files):
    shown = command("search", photos, "-i", files[0], "-k", 0)
    assert (shown.code, shown.out) == (2, "")
    assert "Invalid value for '-k'" in shown.words


def test_names_that_look_like_emoji_codes_stay_as_they_are(command, tmp_path, model_folder):
    Image.new("RGB", (40, 40), "teal").save(tmp_path / "br:cat:.jpg")
    shown = command("search", tmp_path, "--image", tmp_path / "br:cat:.jpg", "--model", model_folder)
    assert shown.code == 0, shown.err
    assert "br:cat:.jpg" in shown.out


def test_an_action_beyond_training_is_one_line(command, photos, files):
    outcome = command("search", photos, "--image", files[0], "--brightness", "3", "--json")
    assert outcome.json["action"] == "brightness=3.0"
    words = (
        "Warning: iwm-tiny was not trained for brightness 3 in the target view; trained range: brightness 0.5"
    )
    assert outcome.err.startswith(words)
    assert len(outcome.err.splitlines()) == 1
