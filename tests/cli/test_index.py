"""`iwm index`, and `iwm search` on what it makes: against the folder form, and everything that is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import iwm
from iwm.index.photo import content_hash
from iwm.world_model import WorldModel

pytest.importorskip("lancedb", reason='pip install "iwm[retrieval]"')

ACTION = ["--brightness", "0.6", "--grayscale"]


@pytest.fixture
def library(command, photos, model_folder, tmp_path):
    path = tmp_path / "my library.lance"
    assert command("index", photos, "--out", path, "--model", model_folder).code == 0
    return path


@pytest.fixture
def another_folder(tiny_config, tmp_path):
    WorldModel(tiny_config()).save_pretrained(tmp_path / "another")
    return tmp_path / "another"


def test_a_library_is_made_and_brought_up_to_date(command, photos, model_folder, tmp_path):
    folder, library = tmp_path / "p", tmp_path / "my library.lance"
    shutil.copytree(photos, folder)
    words = ["index", folder, "--out", library, "--model", model_folder]
    first = command(*words)
    assert (first.code, first.err) == (0, "")
    line, hint = first.out.splitlines()
    assert re.fullmatch(
        rf"{library}: 12 added, 0 updated, 0 unchanged, 0 removed, 0 skipped; 12 photographs \([\d.]+ s\)\.",
        line,
    )
    assert hint == (
        f"Search it: iwm search '{library}' --model {model_folder} --image photo.jpg --brightness 0.6"
    )
    files = sorted(folder.rglob("*.jpg"))
    files[0].unlink()
    Image.new("RGB", (40, 40), "red").save(files[1])
    Image.new("RGB", (40, 40), "blue").save(folder / "new.jpg")
    done = command(*words, "--json").json
    assert done.pop("seconds") >= 0
    assert done == {
        "library": str(library), "model": "tiny", "space": iwm.load(model_folder).space,
        "added": 1, "updated": 1, "unchanged": 10, "removed": 0, "skipped": [], "remarks": [], "photos": 13,
    }  # fmt: skip
    pruned = command(*words, "--json", "--prune").json
    assert (pruned["removed"], pruned["unchanged"], pruned["photos"]) == (1, 12, 12)


def test_searches_are_those_of_the_folder(command, photos, files, library, model_folder):
    options = ["-i", files[3], "-m", model_folder, "-k", 12, *ACTION, "--json"]
    ours, folder = command("search", library, *options).json, command("search", photos, *options).json
    assert [hit["path"] for hit in ours["hits"]] == [hit["path"] for hit in folder["hits"]]
    first = Path(ours["hits"][0]["path"])
    about = {
        "width": 50, "height": 40, "bytes": first.stat().st_size, "mtime_ns": first.stat().st_mtime_ns,
        "hash": content_hash(first.read_bytes()), "taken": None,
    }  # fmt: skip
    assert ours["hits"][0] == {key: ours["hits"][0][key] for key in ("path", "distance")} | about
    distances = [hit["distance"] for hit in folder["hits"]]
    assert [hit["distance"] for hit in ours["hits"]] == pytest.approx(distances, abs=0.02)
    assert {**ours, "hits": 0} == {**folder, "hits": 0}


def test_the_lines_of_fresh_processes(fresh, photos, files, model_folder, tmp_path):
    words = [photos, "--out", "l.lance", "-m", model_folder]
    done = fresh("index", *words, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    done = fresh("search", "l.lance", "-i", files[2], "-m", model_folder, "-k", 1, cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(
        rf"{re.escape(str(files[2]))} as it is; nearest of 12\n  1 +0\.0\d  .*04\.jpg\n", done.out
    )


def test_an_exported_model_indexes_and_searches_for_the_model_it_was_made_from(
    command, photos, files, library, model_folder, tmp_path
):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    WorldModel.from_pretrained(model_folder).export(tmp_path / "served", "onnx", "fp32")
    made = command("index", photos, "--out", tmp_path / "own.lance", "--model", tmp_path / "served", "--json")
    assert made.json["added"] == len(files)
    asked = ("--image", files[0], "--brightness", "0.7", "--json", "--model")
    hits = [
        command("search", place, *asked, model).json["hits"]
        for place, model in ((tmp_path / "own.lance", model_folder), (library, tmp_path / "served"))
    ]
    assert [hit["path"] for hit in hits[0]] == [hit["path"] for hit in hits[1]]
    ray = ("index", photos, "--out", library, "--model", tmp_path / "served", "--engine", "ray")
    assert "which this command cannot use; name the model it was made from" in command(*ray).error


@pytest.mark.parametrize("place", ["folder", "library"])
def test_a_contact_sheet(command, photos, files, library, model_folder, tmp_path, place):
    searched = library if place == "library" else photos
    sheet = tmp_path / "out" / "sheet.png"
    shown = command("search", searched, "-i", files[0], "-m", model_folder, "-k", 4, "--sheet", sheet)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[-1] == f"Wrote {sheet}."
    with Image.open(sheet) as picture:
        assert picture.size == (8 + 5 * 168, 8 + 190)
        # The query and its nearest, which is itself.
        assert picture.crop((8, 8, 168, 168)).tobytes() == picture.crop((176, 8, 336, 168)).tobytes()


def test_a_photograph_deleted_since_is_a_gray_cell(command, photos, files, model_folder, tmp_path):
    folder, library, sheet = tmp_path / "p", tmp_path / "l.lance", tmp_path / "s.png"
    shutil.copytree(photos, folder)
    command("index", folder, "--out", library, "-m", model_folder)
    (folder / files[0].relative_to(photos)).unlink()
    words = ["-i", files[0], "-m", model_folder, "-k", 1, "--sheet", sheet]
    assert command("search", library, *words).code == 0
    with Image.open(sheet) as picture:
        assert picture.getpixel((176 + 80, 88)) == (221, 221, 221)


def test_filters(command, photos, files, library, model_folder):
    words = ["search", library, "-i", files[0], "-m", model_folder, "-k", 12, "--json"]
    under = command(*words, "--under", photos / "class1").json["hits"]
    assert sorted(Path(hit["path"]).name for hit in under) == [f"{i:02}.jpg" for i in range(1, 12, 2)]
    assert len(command(*words, "--min-side", 40).json["hits"]) == 12
    none = command(*words, "--min-side", 41).json
    assert (none["hits"], none["images"]) == ([], 0)
    assert command(*words, "--under", photos / "class1").json["images"] == 6
    shown = command(*words[:-1], "--min-side", 41)
    assert shown.out == f"{files[0]} as it is; no photograph in {library} matches.\n"
    assert command(*words, "--taken-from", "2024-05-01").json["hits"] == []
    assert "'2024' does not match the formats '%Y-%m-%d'" in command(*words, "--taken-from", "2024").words


def test_a_stop_says_what_is_kept_and_what_to_type(command, monkeypatch, photos, model_folder, tmp_path):
    out = tmp_path / "a.lance"

    def stopped(index, *words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("iwm.index.Index.update", stopped)
    shown = command("index", photos, "--out", out, "--model", model_folder)
    assert (shown.code, shown.out) == (130, "")
    assert shown.err == f"Warning: stopped; {out} has 0 photographs. The same command goes on.\n"


def test_an_empty_library_is_not_searched(command, files, model_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    library = tmp_path / "l.lance"
    command("index", tmp_path / "empty", "--out", library, "--model", model_folder)
    error = command("search", library, "--image", files[0], "--model", model_folder).error
    assert error == f"Error: {library} is empty; fill it: iwm index PHOTOS --out {library}\n"


def test_other_weights_of_the_same_name_are_asked_for(command, library, files, another_folder):
    error = command("search", library, "--image", files[0], "--model", another_folder).error
    assert "other weights of the name" in error
    assert "say where they are, with --model on the command line, or index the photographs again" in error


def test_what_is_skipped_is_said_and_written(command, mixed, model_folder, tmp_path):
    Image.new("CMYK", (40, 40)).save(mixed / "print.jpg")
    report = tmp_path / "report.json"
    words = ["index", mixed, "--out", tmp_path / "l.lance", "-m", model_folder, "--report", report]
    shown = command(*words)
    assert shown.code == 0
    bad = mixed / "br[bold].jpg"
    assert shown.err.splitlines() == [
        f"Warning: skipped: Cannot read {bad} as an image: its format is not known.",
        f"Warning: {mixed / 'print.jpg'}: CMYK; converted to RGB without a colour profile",
    ]
    written = json.loads(report.read_text())
    assert [remark["path"] for remark in written["skipped"]] == [str(bad)]
    assert (written["added"], written["photos"]) == (3, 3)


def test_names_reach_no_terminal_raw(command, files, model_folder, tmp_path):
    folder, library = tmp_path / "p\x1b[2J", tmp_path / "l.lance"
    folder.mkdir()
    shutil.copy(files[0], folder / "a\n\x1b]0;b.jpg")
    Image.new("CMYK", (40, 40)).save(folder / "c\n\x9b.jpg")
    (folder / "d\x07.jpg").touch()
    shown = command("index", folder, "--out", library, "-m", model_folder)
    assert len(shown.err.splitlines()) == 2
    assert r"c\n\x9b.jpg: CMYK" in shown.err
    outputs = [shown.out, shown.err]
    for place in (folder, library):
        shown = command("search", place, "-i", folder / "a\n\x1b]0;b.jpg", "-m", model_folder)
        assert shown.out.splitlines()[1].endswith(r"p\x1b[2J/a\n\x1b]0;b.jpg")
        outputs += [shown.out, shown.err]
    for text in outputs:
        assert all(character.isprintable() or character == "\n" for character in text)


def test_many_bad_files_are_counted_and_the_first_are_named(command, files, model_folder, tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    shutil.copy(files[0], folder)
    for i in range(25):
        (folder / f"bad{i:02}.png").touch()
    shown = command("index", folder, "--out", tmp_path / "l.lance", "-m", model_folder)
    lines = shown.err.splitlines()
    assert shown.code == 0
    assert len(lines) == 21
    assert lines[0] == f"Warning: skipped: {folder / 'bad00.png'} is empty: zero bytes."
    assert lines[-1] == "Warning: 25 skipped, 0 remarks; --report FILE writes them all."


def test_other_weights_are_refused_with_what_to_type(command, photos, files, library, another_folder):
    for words in (["index", photos, "--out", library], ["search", library, "-i", files[0]]):
        error = command(*words, "--model", another_folder).error
        assert re.search(r'by other weights of the name "tiny" \(space \w+, not \w+\)', error)
        assert "index the photographs again: iwm index PHOTOS --out NEW.lance" in error


def test_the_library_names_its_model(command, files, library):
    error = command("search", library, "-i", files[0]).error
    assert 'was made by "tiny", which is no zoo name; say where it is with --model.' in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["search", "TMP/no.lance", "-i", "PHOTO"], r"No library at .*no\.lance; make it: iwm index PHOTOS --out"),
        (["search", "PHOTOS", "-i", "PHOTO", "--min-side", "9"], r"is no library; --under, .* iwm index .* --out library"),
        (["search", "PHOTOS", "-i", "PHOTO", "--sheet", "TMP/s.txt"], r"end its name in \.png"),
        (["search", "PHOTOS", "-i", "PHOTO", "--sheet", "PHOTO/s.png"], r"is a file, not a folder"),
        (["index", "TMP/missing", "--out", "TMP/l.lance"], r"No such file or folder: .*missing"),
        (["index", "file://TMP/missing", "--out", "TMP/l.lance"], r"No such file or folder: file:///.*missing"),
        (["index", "TMP/empty", "--out", "TMP/l.lance", "-m", "MODEL"], r"The library is empty: no image in .*empty"),
        (["index", "PHOTOS", "--out", "TMP/empty/../taken", "-m", "MODEL"], r"taken exists already and is no library"),
        (["index", "PHOTOS", "--out", "TMP/l.lance", "--engine", "rai"], r'No engine is called "rai"\. Did you mean "ray"'),
        (["index", "PHOTOS", "--out", "TMP/l.lance", "--report", "TMP"], r"is a folder; name a file for --report"),
        (["index", "PHOTOS", "--out", "", "-m", "MODEL"], r'The word after "--out" is empty'),
    ],
)  # fmt: skip
def test_what_is_refused(command, photos, files, model_folder, tmp_path, words, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "a.txt").touch()
    places = {"PHOTOS": photos, "PHOTO": files[0], "MODEL": model_folder}
    made = [str(word).replace("TMP", str(tmp_path)) for word in (places.get(w, w) for w in words)]
    made = [word.replace("PHOTO/", f"{files[0]}/") for word in made]
    shown = command(*made)
    assert shown.code == 1
    assert re.search(message, shown.err), shown.err
    assert not (tmp_path / "l.lance").exists() or "empty" in message
