"""Folders with one subfolder a class."""

import pytest

from iwm.errors import InvalidDataError
from iwm.evaluation.labelled import read_class_folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_images_and_labels_are_sorted_by_class_and_path(tmp_path):
    touch(tmp_path, "dog/2.jpg", "dog/1.PNG", "cat/deep/3.webp", "cat/1.jpg", "cat/notes.txt")
    touch(tmp_path, "stray.jpg", ".cache/4.jpg")
    data = read_class_folder(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in data.images] == [
        "cat/1.jpg", "cat/deep/3.webp", "dog/1.PNG", "dog/2.jpg"
    ]  # fmt: skip
    assert data.labels == ["cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("files", "folder", "words"),
    [
        ([], "absent", "No such folder: .*absent"),
        (["one.jpg"], ".", "has no class subfolders; expected .*/cat/1.jpg"),
        ([".hidden/1.jpg"], ".", "has no class subfolders"),
        (["cat/1.jpg", "dog/notes.txt"], ".", "No images in .*dog"),
        (["one.jpg"], "one.jpg", "No such folder: .*one.jpg"),
    ],
)
def test_folders_that_are_no_classes(tmp_path, files, folder, words):
    touch(tmp_path, *files)
    with pytest.raises(InvalidDataError, match=words):
        read_class_folder(tmp_path / folder)
