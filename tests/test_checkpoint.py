"""Model folders: atomic writing, strict loading, errors that name what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import iwm
from iwm.checkpoint import load_weights, save_model, write_tensors
from iwm.config import EncoderConfig, PredictorConfig, PreprocessConfig, WorldModelConfig
from iwm.errors import IncompatibleWeightsError, InvalidConfigError, SaveError, WeightsUnavailableError
from iwm.files import atomic_write, remove, write_text
from iwm.model_folder import MAX_CONFIG_BYTES, read_config
from iwm.world_model import WorldModel

CONFIG = WorldModelConfig(
    name="test",
    encoder=EncoderConfig(width=16, depth=1, heads=2, patch_size=8, image_size=16),
    predictor=PredictorConfig(width=8, depth=1),
    preprocess=PreprocessConfig(size=16, resize=16),
    metrics={"mrr": 0.5},
)

# Fills the disk for real: the kernel refuses files of more than 4 KiB.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch
from iwm.checkpoint import write_tensors
from iwm.errors import SaveError
from iwm.files import write_text
from iwm.training.config import RunConfig
from iwm.training.run_folder import RunFolder

folder = Path(sys.argv[1])
write_text(folder / "a.txt", "old")
write_tensors(folder / "b.safetensors", {"x": torch.arange(3.0)})
run = RunFolder(folder / "run", RunConfig(), resume=False)
run.start(RunConfig(), 0)
run.save_state({"x": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for write in (
    lambda: write_text(folder / "a.txt", "new" * 10_000),
    lambda: write_text(folder / "c.txt", "new" * 10_000),
    lambda: write_tensors(folder / "b.safetensors", {"x": torch.zeros(30_000)}),
    lambda: run.save_state({"x": torch.zeros(30_000)}),
):
    try:
        write()
    except SaveError as error:
        print(error)
"""


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 2)
        self.two = nn.Linear(2, 2, bias=False)


@pytest.fixture
def stored():
    """Tensors that fit a `Pair`."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"one.weight": (2, 3), "one.bias": (2,), "two.weight": (2, 2)}
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_the_file_at_the_end(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert path.exists() is (text == "second")
        assert path.read_text() == text
        assert _names(path.parent) == ["file.txt"]


def test_atomic_write_leaves_what_a_link_leads_to(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("of others")
    link.symlink_to(target)
    write_text(link, "mine")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("of others", "mine", False)


def test_atomic_write_leaves_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(SaveError, match=r"(pipe|null) is a device or a pipe; name a file\.$"):
            write_text(path, "x")
        assert not path.is_file()


def test_atomic_write_takes_the_longest_names(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
    assert len(_names(tmp_path)) == 2


@pytest.mark.parametrize(
    ("raised", "seen"), [(KeyError, KeyError), (KeyboardInterrupt, KeyboardInterrupt), (OSError, SaveError)]
)
def test_atomic_write_keeps_the_old_file_when_the_block_raises(tmp_path, raised, seen):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half of the n")
            raise raised("no")

    with pytest.raises(seen):
        write()
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file.txt"]


def test_files_have_the_permissions_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "text")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_written_is_a_save_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SaveError, match=r"Cannot write .*file/a\.txt: .*What was there before is untouched"):
        write_text(tmp_path / "file" / "a.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match="folder"):
        write_text(tmp_path / "folder", "text")
    assert _names(tmp_path) == ["file", "folder"]


def test_a_file_that_cannot_be_removed_is_a_save_error(tmp_path):
    remove(tmp_path / "absent")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SaveError, match=r"^Cannot remove .*folder: "):
        remove(tmp_path / "folder")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX limits")
def test_a_full_disk_is_a_save_error_and_the_old_files_stay(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(iwm.__file__).parent.parent)}
    child = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    for line, name in zip(lines, ("a.txt", "c.txt", "b.safetensors", "run/state.pt"), strict=True):
        assert line.startswith(f"Cannot write {tmp_path / name}: ")
        assert "untouched" in line
    assert _names(tmp_path) == ["a.txt", "b.safetensors", "run"]
    assert _names(tmp_path / "run") == ["run.json", "state.pt"]
    assert torch.load(tmp_path / "run" / "state.pt", weights_only=True) == {"x": 1}
    assert (tmp_path / "a.txt").read_text() == "old"
    assert torch.equal(load_file(tmp_path / "b.safetensors")["x"], torch.arange(3.0))


def test_write_tensors_takes_views_and_gradients_and_keeps_metadata(tmp_path):
    table = torch.arange(6.0).view(2, 3)
    tensors = {"transposed": table.T, "trained": nn.Parameter(table[0].clone())}
    write_tensors(tmp_path / "t.safetensors", tensors, {"kind": "bank"})
    read = load_file(tmp_path / "t.safetensors")
    assert torch.equal(read["transposed"], table.T)
    assert torch.equal(read["trained"], table[0])
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert file.metadata() == {"kind": "bank"}


def test_a_model_folder_round_trips_in_float16(tmp_path):
    torch.manual_seed(0)
    model, student = WorldModel(CONFIG), nn.Linear(4, 4)
    save_model(tmp_path, CONFIG, model, student)
    assert _names(tmp_path) == ["README.md", "config.json", "model.safetensors", "student.safetensors"]
    assert read_config(tmp_path) == CONFIG
    on_disk = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in on_disk.values()} == {torch.float16}
    loaded = WorldModel(CONFIG)
    load_weights(tmp_path / "model.safetensors", loaded)
    assert loaded.state_dict().keys() == model.state_dict().keys() == on_disk.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half())
    assert torch.equal(load_file(tmp_path / "student.safetensors")["weight"], student.weight.half())


def test_whole_numbers_are_stored_as_they_are(tmp_path):
    save_model(tmp_path, CONFIG, nn.BatchNorm1d(2))
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["num_batches_tracked"].dtype == torch.int64
    assert stored["running_mean"].dtype == torch.float16


def test_a_module_on_the_meta_device_is_filled(tmp_path, stored):
    save_file(stored, tmp_path / "w.safetensors")
    with torch.device("meta"):
        module = Pair()
    load_weights(tmp_path / "w.safetensors", module)
    for name, tensor in module.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, stored[name])
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_floating_point_type_is_read(tmp_path, stored, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in stored.items()}, tmp_path / "w.safetensors")
    module = Pair()
    load_weights(tmp_path / "w.safetensors", module)
    torch.testing.assert_close(module.one.weight.float(), stored["one.weight"].float(), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("two.weight"), [r"1 missing \(two\.weight\)"]),
        (lambda s: s.update(extra=torch.zeros(1).half()), [r"1 unexpected \(extra\)"]),
        (
            lambda s: s.update(three=s.pop("two.weight")),
            [r"1 missing \(two\.weight\)", r"1 unexpected \(three\)"],
        ),
        (
            lambda s: s.update({"one.weight": torch.zeros(3, 2).half()}),
            [r"one\.weight has shape \[3, 2\], expected \[2, 3\]"],
        ),
        (
            lambda s: s.update({"one.bias": torch.zeros(2, dtype=torch.int32)}),
            [r"one\.bias holds I32, expected one of F16"],
        ),
        (
            lambda s: s.update({f"x{i}": torch.zeros(1).half() for i in range(5)}),
            [r"5 unexpected \(x0, x1, x2, \.\.\.\)"],
        ),
    ],
    ids=["missing", "unexpected", "renamed", "shape", "dtype", "many"],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, stored, change, words):
    change(stored)
    path = tmp_path / "w.safetensors"
    save_file(stored, path)
    module = Pair()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for word in [r"w\.safetensors does not fit", *words]:
        with pytest.raises(IncompatibleWeightsError, match=word):
            load_weights(path, module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: b"not weights at all", lambda data: data[:-4], lambda data: data[:20]],
    ids=["empty", "text", "truncated", "header"],
)
def test_a_damaged_file_is_refused(tmp_path, stored, damage):
    path = tmp_path / "w.safetensors"
    save_file(stored, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IncompatibleWeightsError, match=r"w\.safetensors is not a readable safetensors file"):
        load_weights(path, Pair())


def test_missing_weights_are_unavailable(tmp_path):
    with pytest.raises(WeightsUnavailableError, match=r"No weights at .*w\.safetensors"):
        load_weights(tmp_path / "w.safetensors", Pair())


def test_a_folder_without_a_config_is_no_model_folder(tmp_path):
    with pytest.raises(WeightsUnavailableError, match=r"is not a model folder: it has no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"encodr": {}}', r'No field "encodr"\. Did you mean "encoder"'),
        ('{"encoder": {"width": "wide"}}', r"encoder\.width"),
        (" " * (MAX_CONFIG_BYTES + 1), "not a model config"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_with_its_path(tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidConfigError, match=rf"config\.json.*{words}"):
        read_config(tmp_path)


@pytest.mark.parametrize("opened", [2, 3, 4])
def test_a_file_that_is_replaced_while_it_is_read_is_no_mixture(tmp_path, stored, monkeypatch, opened):
    path, calls = tmp_path / "w.safetensors", []
    save_file(stored, path)
    save_file({name: tensor + 1 for name, tensor in stored.items()}, tmp_path / "other")

    def replacing(*args, **options):
        calls.append(args)
        if len(calls) == opened:
            (tmp_path / "other").replace(path)
        return safe_open(*args, **options)

    monkeypatch.setattr("iwm.checkpoint._PIECE", 1)  # Each tensor is read for itself.
    monkeypatch.setattr("iwm.checkpoint.safe_open", replacing)
    module = Pair()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(
        WeightsUnavailableError, match=r"w\.safetensors was replaced while it was read; load it"
    ):
        load_weights(path, module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    load_weights(path, module)
    assert len(calls) >= 2 * (1 + len(stored))
    assert all(torch.equal(tensor, stored[name] + 1) for name, tensor in module.state_dict().items())


def header(tensors, size=24):
    """A safetensors file of this header, with zeros behind it."""
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size)


ESCAPES = "\x1b[2J\u202e\n" * 1000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            header({ESCAPES: {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}),
            r"1 unexpected \(\\x1b\[2J",
        ),
        (
            header(
                {
                    f"{i}{ESCAPES}": {"dtype": "F16", "shape": [2], "data_offsets": [4 * i, 4 * i + 4]}
                    for i in range(6)
                }
            ),
            r"6 unexpected \(0\\x1b\[2J",
        ),
        (
            header({"two.weight": {"dtype": "F32", "shape": [1] * 100_000 + [6], "data_offsets": [0, 24]}}),
            r"two\.weight has shape \[1, 1, 1, .*\.\.\., expected \[2, 2\]",
        ),
        (
            header({"x": {"dtype": ESCAPES, "shape": [6], "data_offsets": [0, 24]}}),
            "is not a readable safetensors",
        ),
        (header({ESCAPES: 7}), "is not a readable safetensors"),
    ],
    ids=["name", "names", "shape", "type", "no tensor"],
)
def test_what_a_stranger_calls_a_tensor_stays_short_and_printable(tmp_path, content, words):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(IncompatibleWeightsError, match=words) as caught:
        load_weights(tmp_path / "w.safetensors", Pair())
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800
