"""From `--data` to checked splits: names, validation sets, subsets, and bad folders in words."""

import logging
import shutil
from pathlib import Path

import pytest
from labelled_files import write_class_folder, write_segmentation_folder
from PIL import Image

from iwm.errors import InvalidConfigError, InvalidDataError
from iwm.evaluation.labelled import read_mask
from iwm.finetuning.folders import check_outside, listing, parse_data, read_split, read_task


@pytest.fixture
def folder(tmp_path):
    return write_class_folder(tmp_path / "pets", ("cat", "dog"), count=12)


@pytest.fixture
def roads(tmp_path):
    return write_segmentation_folder(tmp_path / "roads", count=4)


@pytest.mark.parametrize(
    ("data", "name", "folder"),
    [
        ("data/flowers", "flowers", "data/flowers"),
        ("data/Flowers 17/train", "flowers-17", "data/Flowers 17/train"),
        ("a-b=data/x", "a-b", "data/x"),
        ("x=a=b", "x", "a=b"),
    ],
)
def test_a_task_is_called_as_it_is_told_or_as_its_folder(data, name, folder):
    assert parse_data(data) == (name, type(parse_data(data)[1])(folder))


def test_a_path_is_a_folder_whatever_it_is_called(folder, tmp_path):
    folder.rename(tmp_path / "x=1")
    assert parse_data(tmp_path / "x=1" / "train") == ("x-1", tmp_path / "x=1" / "train")
    assert read_task(tmp_path / "x=1").labels == ("cat", "dog")
    with pytest.raises(InvalidDataError, match="No such folder: 1"):
        read_task("x=1")


@pytest.mark.parametrize("data", ["My Task=x", "=x", "../up=x"])
def test_a_name_that_cannot_be_a_file_is_refused(data):
    with pytest.raises(InvalidConfigError, match="small letters"):
        parse_data(data)


def test_a_folder_with_train_and_val_stands_for_both(colours):
    data = read_task(str(colours))
    assert data.labels == ("blue", "red")
    assert (data.train.root.name, len(data.train), data.val.root.name, len(data.val)) == (
        "train", 16, "val", 8,
    )  # fmt: skip
    assert data.train.classes == [0] * 8 + [1] * 8
    assert read_task(f"x={colours / 'train'}").val.images == data.val.images
    assert listing([data]).startswith("16 images (files ")


def test_a_folder_with_train_and_val_does_so_beside_another_validation_set(colours, tmp_path):
    others = write_class_folder(tmp_path / "others", count=3)
    data = read_task(str(colours), others)
    assert (data.labels, data.train.root, data.val.root) == (("blue", "red"), colours / "train", others)
    assert read_task(others, colours).val.root == colours / "val"
    assert read_task(str(colours), colours / "train").val.root == colours / "train"
    assert read_split(colours, data.labels).root == colours / "val"


@pytest.mark.parametrize(
    ("train", "val"), [("train", "valid"), ("Train", "Val"), ("TRAINING", "Validation"), ("train", "VALID")]
)
def test_splits_have_several_names(colours, tmp_path, train, val):
    root = tmp_path / "colours"
    shutil.copytree(colours / "train", root / train)
    shutil.copytree(colours / "val", root / val)
    write_class_folder(root / "test", count=1)
    for data in (read_task(str(root)), read_task(str(root / train))):
        assert (data.name, data.labels) == ("colours", ("blue", "red"))
        assert (data.train.root, data.val.root) == (root / train, root / val)
    assert read_split(root, ("blue", "red")).root == root / val
    assert parse_data(str(root / val))[0] == "colours"


def test_splits_are_not_taken_for_classes(colours, scenes, tmp_path):
    root = tmp_path / "pets"
    shutil.copytree(colours, root)
    (root / "val").rename(root / "Test")
    (root / ".thumbs").mkdir()
    with pytest.raises(InvalidDataError) as caught:
        read_task(f"animals={root}")
    assert str(caught.value) == (
        f"{root} holds splits, not classes; write --data animals={root}/train --val animals={root}/Test."
    )
    assert len(read_task(f"animals={root}/train", root / "Test").val) == 8
    with pytest.raises(InvalidDataError, match=f"; write --train {root}/train --val {root}/Test"):
        read_task(root)  # As `iwm eval probe` does.
    with pytest.raises(InvalidDataError, match=f"; write --val colours={root}/Test"):
        read_task(f"colours={colours}", root)
    for held_out in (False, True):
        with pytest.raises(InvalidDataError, match=f"; write --data {root}/Test"):
            read_split(root, ("blue", "red"), held_out=held_out)
    shutil.rmtree(root / "Test")
    with pytest.raises(InvalidDataError, match=f"; write --data pets={root}/train"):
        read_task(str(root))
    shutil.copytree(scenes / "train", tmp_path / "roads" / "train")
    with pytest.raises(InvalidDataError, match="holds splits, not classes"):
        read_task(str(tmp_path / "roads"), segmentation=True)


def test_a_run_stays_out_of_the_folders_that_were_named(colours, folder, tmp_path):
    data = [read_task(colours / "train", colours / "val"), read_task(folder)]
    for place in (colours / "train", colours / "val" / "x", folder / "cat", folder / ".." / "pets"):
        with pytest.raises(InvalidConfigError, match=f"--out {place} is.* the data folder"):
            check_outside(place, "--out", data)
    for place in (tmp_path, colours / "run", tmp_path / "pets-run", Path("run")):
        check_outside(place, "--out", data)
    with pytest.raises(InvalidConfigError, match="is inside the data folder"):
        check_outside(colours / "run", "--out", [read_task(colours)])


def test_one_in_ten_of_every_class_is_held_out_wherever_the_folder_is(folder, tmp_path):
    data = read_task(str(folder))
    assert (len(data.train), data.val.classes) == (22, [0, 1])
    assert not set(data.train.images) & set(data.val.images)
    shutil.copytree(folder, tmp_path / "elsewhere")
    moved = read_task(str(tmp_path / "elsewhere"))
    assert [p.name for p in moved.val.images] == [p.name for p in data.val.images]


def test_a_subset_is_evenly_spaced_and_named_by_its_own_hash(folder):
    whole, part = read_task(str(folder)), read_task(str(folder), images=6)
    assert len(part.train) == 6
    assert part.train.classes == [0, 0, 0, 1, 1, 1]
    assert part.val == whole.val
    assert listing([part]) != listing([whole])
    with pytest.raises(InvalidDataError, match='No training image of class "dog" is left'):
        read_task(str(folder), images=1)


def test_validation_labels_must_be_known_and_keep_the_training_numbers(folder, tmp_path):
    write_class_folder(tmp_path / "dogs", ("dog", "aardvark"), count=2)
    with pytest.raises(
        InvalidDataError, match=r"classes that the task does not have: aardvark\. It has cat, dog"
    ):
        read_task(str(folder), tmp_path / "dogs")
    shutil.rmtree(tmp_path / "dogs" / "aardvark")
    assert read_task(str(folder), tmp_path / "dogs").val.classes == [1, 1]


def test_a_listing_names_the_validation_images_too(folder, tmp_path):
    others = [
        write_class_folder(tmp_path / name, ("cat", "dog"), count=n) for name, n in (("a", 2), ("b", 3))
    ]
    first, second = (listing([read_task(str(folder), other)]) for other in others)
    assert first != second
    assert first.split(", ")[0] == second.split(", ")[0]
    assert ", validated on 4 (files " in first


def test_a_listing_says_what_numbers_in_masks_mean(roads):
    before = listing([read_task(str(roads), segmentation=True)])
    (roads / "labels.txt").write_text("road\nvoid\nsky\n")
    assert listing([read_task(str(roads), segmentation=True)]) != before


def test_bad_class_folders(folder, tmp_path):
    with pytest.raises(InvalidDataError, match=r"No such folder: .*missing"):
        read_task(str(tmp_path / "missing"))
    (folder / "empty").mkdir()
    with pytest.raises(InvalidDataError, match=r"No images in .*empty"):
        read_task(str(folder))
    (folder / "empty").rmdir()
    shutil.rmtree(folder / "dog")
    with pytest.raises(InvalidDataError, match='a single class, "cat"; a task needs at least two'):
        read_task(str(folder))


def test_unreadable_images_are_counted_named_and_skipped_only_on_demand(folder, caplog):
    images = sorted(folder.rglob("*.png"))
    for path in images[:3]:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InvalidDataError) as caught:
        read_task(str(folder))
    held = [p for p in images[:3] if p in read_task(str(folder), skip_unreadable=True).val.images]
    assert f"{3 - len(held)} of 22 images in {folder} cannot be used" in str(caught.value)
    assert images[0].name in str(caught.value)
    assert "--skip-unreadable" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        data = read_task(str(folder), skip_unreadable=True)
    assert len(data.train) + len(data.val) == 21
    assert "skipped: " in caplog.text


def test_what_was_held_out_and_cannot_be_read_is_said_to_be(folder):
    for path in read_task(str(folder)).val.images:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(
        InvalidDataError, match=r"2 of 2 images held out for validation in .*pets cannot be used"
    ):
        read_task(str(folder))


def test_a_class_of_unreadable_images_is_not_a_matter_of_their_number(folder, tmp_path):
    for path in (folder / "dog").iterdir():
        path.write_text("no image")
    write_class_folder(tmp_path / "val", ("cat", "dog"), count=1)
    for images in (0, 6):
        with pytest.raises(
            InvalidDataError, match=r'None of the training images of class "dog" in .* can be read'
        ):
            read_task(str(folder), tmp_path / "val", images=images, skip_unreadable=True)


def test_masks_are_not_taken_for_classes(roads, scenes):
    for data in (roads, scenes):
        with pytest.raises(InvalidDataError, match="no classes; to learn masks, add --task segmentation"):
            read_task(str(data))


def test_masks_of_one_bit(roads):
    (roads / "labels.txt").write_text("sky\nroad\n")
    for path in (roads / "masks").iterdir():
        upper = Image.new("1", (48, 40))
        upper.paste(1, (0, 0, 48, 20))
        upper.save(path)
    data = read_task(str(roads), segmentation=True)
    mask = read_mask(data.train.masks[0], data.train.numbers)
    assert [mask.getpixel((5, y)) for y in (0, 19, 20, 39)] == [1, 1, 0, 0]


def test_a_segmentation_folder(roads, scenes):
    data = read_task(str(roads), segmentation=True)
    assert data.labels == ("sky", "road")
    assert data.train.numbers[:4] == (0, 255, 1, -1)
    assert (len(data.train), len(data.val)) == (3, 1)
    assert data.train.masks[0].name == data.train.images[0].name
    ignoring = read_task(str(scenes), segmentation=True, ignore=(2, 200))
    assert ignoring.train.numbers[2] == ignoring.train.numbers[200] == 255


def test_masks_of_which_nothing_counts_are_refused_before_training(roads):
    with pytest.raises(InvalidDataError, match=f"Not one pixel of the 3 masks in {roads}/masks counts"):
        read_task(str(roads), segmentation=True, ignore=(0, 1, 2))
    with pytest.raises(InvalidDataError, match=r"of the 4 masks .* or named with --ignore"):
        read_split(roads, ("sky", "road"), segmentation=True, ignore=(0, 2))
    for path in sorted((roads / "masks").iterdir())[:3]:
        Image.new("L", (48, 40), 1).save(path)  # Of one image alone nothing may count.
    assert len(read_split(roads, ("sky", "road"), segmentation=True)) == 4


def _mask(roads, size=(48, 40), value=0):
    Image.new("L", size, value).save(sorted((roads / "masks").iterdir())[0])


def _without_masks(roads):
    shutil.rmtree(roads / "masks")


def _without_one(roads):
    (roads / "masks" / "2.png").unlink()


def _without_labels(roads):
    (roads / "labels.txt").unlink()


def _twice(roads):
    (roads / "labels.txt").write_text("sky\nsky\n")


def _void(roads):
    (roads / "labels.txt").write_text("void\nvoid\n")


def _gap(roads):
    (roads / "labels.txt").write_text("sky\n\nroad\n\n")


def _colours(roads):
    Image.new("RGB", (48, 40)).save(roads / "masks" / "0.png")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda r: _mask(r, size=(40, 40)),
            r"is 40 x 40 pixels, its image 48 x 40; they must be of one size",
        ),
        (
            lambda r: _mask(r, value=77),
            r"holds the numbers 77, which labels.txt has no line for.*--ignore 77",
        ),
        (_without_masks, "has no folder masks"),
        (_without_one, r"1 images \(2.png\) without a mask; expected masks/2.png"),
        (_without_labels, r"has no labels.txt; write one class name a line.*--labels"),
        (_twice, r'holds "sky" twice'),
        (_void, "labels.txt names nothing but void; write the name of a class that counts"),
        (_gap, r"Line 2 of .*labels.txt is empty, where the name for number 1 .*write void"),
        (_colours, "has colours; it must hold one class number a pixel"),
    ],
)
def test_bad_segmentation_folders(roads, damage, words):
    damage(roads)
    with pytest.raises(InvalidDataError, match=words):
        read_task(str(roads), segmentation=True)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("abcdefh", '"h" and not "g"'),
        ("abcdef", 'none and not "g"'),
        ("abcdefgh", '"h" and not none'),
        ("abcdegf", '"g" and not "f"'),
    ],
)
def test_labels_that_differ_are_told_by_the_difference(roads, tmp_path, labels, words):
    names, others = tmp_path / "names.txt", tmp_path / "others.txt"
    names.write_text("\n".join("abcdefg"))
    others.write_text("\n".join(labels))
    assert len(read_split(roads, tuple("abcdefg"), segmentation=True, labels=names)) == 4
    with pytest.raises(InvalidDataError, match=f"the first that differs is {words}; .*--labels FILE"):
        read_split(roads, tuple("abcdefg"), segmentation=True, labels=others)
    others.rename(write_segmentation_folder(tmp_path / "val") / "labels.txt")
    names.rename(roads / "labels.txt")
    with pytest.raises(InvalidDataError, match=f"other labels than {roads}: .* {words}; .*--labels"):
        read_task(str(roads), tmp_path / "val", segmentation=True)
