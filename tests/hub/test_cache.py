"""The cache of the Hub's client: filled by others, full, read-only, shared, and left by processes that were killed."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial

import pytest
from hub_files import (
    check_cache,
    check_healed,
    check_model,
    check_tensors,
    flip,
    forget_hashes,
    load_and_tell,
    model_files,
    pinned_entry,
)
from huggingface_hub import hf_hub_download, snapshot_download
from loopback_hub import Stall, Status

import iwm
from iwm.errors import IntegrityError, SaveError, WeightsUnavailableError
from iwm.finding import download
from iwm.hub_client import HubOptions
from iwm.integrity import hash_file
from iwm.zoo import ZOO

MAIN = ("config.json", "model.safetensors")
WEIGHTS = "*/resolve/*/model.safetensors"
ROOT = os.geteuid() == 0


@pytest.fixture
def files(tmp_path, tiny_config):
    return model_files(tmp_path / "saved", tiny_config(), student=True) | {"README.md": b"# A model\n"}


@pytest.fixture
def offline(load):
    return partial(load, local_files_only=True)


@contextmanager
def loading(processes, hub, cache, seconds=60.0):
    """A process that loads `org/tiny`, and where it tells the result."""
    here, there = processes.Pipe(duplex=False)
    process = processes.Process(target=load_and_tell, args=(hub.url, cache, there, seconds))
    process.start()
    there.close()
    try:
        yield process, here
    finally:
        process.kill()
        process.join()
        process.close()
        here.close()


def wait_for(condition):
    """Until it holds, at most two minutes: a loaded machine starts a process slowly."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def under_way(hub, cache):
    """Whether the body of the weights is being sent, and something of it may be in the cache."""
    sent = any(
        r.method == "GET" and r.status == 200 and r.subject.endswith("model.safetensors")
        for r in hub.requests
    )
    return sent and any(cache.glob("models--*/blobs/*.incomplete"))


@contextmanager
def mounted(path, *options):
    """A mount of one's own, for root alone."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextmanager
def read_only(path):
    """A folder that nobody can write to: a read-only mount for root, whom permissions do not bind."""
    if ROOT:
        with mounted(path, "--bind", path):
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
            yield
        return
    folders = [path, *(folder for folder in path.rglob("*") if folder.is_dir() and not folder.is_symlink())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize("all_at_once", [True, False], ids=["snapshot_download", "hf_hub_download"])
def test_a_cache_that_another_program_filled_is_used_and_verified(
    load, hub, commit, files, cache, offline, all_at_once
):
    if all_at_once:
        snapshot_download("org/tiny", cache_dir=cache, endpoint=hub.url)
    else:
        for name in MAIN:
            hf_hub_download("org/tiny", name, cache_dir=cache, endpoint=hub.url)
    check_model(offline("org/tiny"), files)
    check_model(offline(f"org/tiny@{commit}"), files)
    forget_hashes()
    for receipt in cache.glob("models--org--tiny/.iwm/*"):
        receipt.unlink()
    flip(cache / "models--org--tiny" / "snapshots" / commit / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"model\.safetensors of org/tiny@.* is not what was published"):
        offline("org/tiny")
    check_cache(cache)
    check_model(load("org/tiny"), files)


def test_what_another_program_left_out_can_still_be_fetched(load, hub, commit, files, cache, offline):
    for name in MAIN:
        hf_hub_download("org/tiny", name, cache_dir=cache, endpoint=hub.url)
    name = f"org/tiny@{commit}"
    offline(name)
    hub.requests.clear()
    load(name)
    assert hub.requests == []
    check_tensors(load(name, branch="student").encoder.state_dict(), files["student.safetensors"])
    folder = download(name, options=HubOptions(cache_dir=cache))
    assert {path.name for path in folder.iterdir()} == files.keys()


def test_a_pinned_entry_leaves_nothing_out_of_its_repository(
    load, commit, files, cache, tiny_config, monkeypatch
):
    main = {name: files[name] for name in MAIN}
    monkeypatch.setitem(ZOO, "pinned", pinned_entry(tiny_config(), commit, main))
    load("pinned")
    folder = download(f"org/tiny@{commit}", options=HubOptions(cache_dir=cache))
    assert {path.name for path in folder.iterdir()} == files.keys()


@pytest.mark.parametrize("where", ["..", "link", "relative", "text"])
def test_the_cache_may_be_named_in_any_way(hub, commit, files, tmp_path, monkeypatch, where):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    cache = {"..": tmp_path / "real" / ".." / "real" / "c", "link": tmp_path / "link" / "c",
             "relative": "real/c", "text": f"{tmp_path}//real/c/"}[where]  # fmt: skip
    check_model(iwm.load("org/tiny", cache_dir=cache), files)
    flip(tmp_path / "real" / "c" / "models--org--tiny" / "snapshots" / commit / "model.safetensors")
    with pytest.raises(IntegrityError, match="was removed from the cache; the next call fetches it anew"):
        iwm.load("org/tiny", cache_dir=cache)
    check_model(iwm.load("org/tiny", cache_dir=cache), files)
    check_cache(tmp_path / "real" / "c")


def test_a_home_folder_in_the_name_of_the_cache(hub, commit, files, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    check_model(iwm.load("org/tiny", cache_dir="~/hub"), files)
    assert (tmp_path / "hub" / "models--org--tiny").is_dir()


def test_what_killed_downloads_left_behind_goes_after_a_day(load, hub, commit, cache):
    load("org/tiny")
    blobs = cache / "models--org--tiny" / "blobs"
    ages = {"abc.12345678.incomplete": 25 * 3600, "def.incomplete": 23 * 3600, "old": 25 * 3600}
    for name, age in ages.items():
        (blobs / name).write_bytes(b"half")
        os.utime(blobs / name, (time.time() - age,) * 2)
    load("org/tiny")
    assert {path.name for path in blobs.iterdir()} & ages.keys() == {"def.incomplete", "old"}


def test_a_reference_that_a_power_cut_left_behind_heals(load, commit, files, cache):
    load("org/tiny")
    for content in ("", "\0" * 40, "0" * 40, "../../.."):
        (cache / "models--org--tiny" / "refs" / "main").write_text(content)
        with pytest.raises(WeightsUnavailableError, match="not in the cache"):
            load("org/tiny", local_files_only=True)
        check_model(load("org/tiny"), files)
        check_model(load("org/tiny", local_files_only=True), files)


def test_a_read_only_cache_that_holds_the_model(hub, load, cache, commit, files, tiny_config, monkeypatch):
    load("org/tiny")
    monkeypatch.setitem(
        ZOO, "pinned", pinned_entry(tiny_config(), commit, {name: files[name] for name in MAIN})
    )
    (cache / "models--org--tiny" / ".iwm" / f"{commit}.json").unlink()
    forget_hashes()
    hashed = []
    monkeypatch.setattr("iwm.integrity.hash_file", lambda *of: hashed.append(of[0].name) or hash_file(*of))
    with read_only(cache):
        for options in ({}, {"local_files_only": True}, {"revision": commit}):
            check_model(load("org/tiny", **options), files)
            assert hashed == list(MAIN)  # Where nothing can be written, the process remembers.
        check_model(load("org/tiny", verify="always"), files)
        check_model(load("pinned"), files)
        hub.commit("org/tiny", {"config.json": files["config.json"] + b" "})
        with pytest.raises(
            WeightsUnavailableError, match=r"Cannot write config\.json of org/tiny to the cache \(\["
        ):
            load("org/tiny")
        check_model(load("org/tiny", local_files_only=True), files)
    assert load("org/tiny").config == tiny_config()
    check_cache(cache)


def test_a_damaged_file_in_a_read_only_cache(load, cache, commit, files, snapshot):
    load("org/tiny")
    flip(snapshot / "model.safetensors")
    with read_only(cache):
        for _ in range(2):
            with pytest.raises(
                IntegrityError, match=r"is not what .* It cannot be removed \(.*\): delete .*, or use"
            ):
                load("org/tiny")
    with pytest.raises(IntegrityError, match="It was removed from the cache"):
        load("org/tiny")
    check_model(load("org/tiny"), files)
    check_cache(cache)


def test_an_empty_read_only_cache(hub, load, cache, commit, files):
    cache.mkdir()
    words = r"^Cannot write config\.json of org/tiny to the cache \(.*\)\. Name another place with cache_dir=\.\.\. or HF_HOME"
    with read_only(cache), pytest.raises(WeightsUnavailableError, match=words):
        load("org/tiny")
    check_healed(hub, load, cache, files)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none", "/dev/null"])
def test_places_where_no_cache_can_be(hub, commit, tmp_path, place):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(
        WeightsUnavailableError, match=r"^Cannot write config\.json of org/tiny to the cache \(\["
    ):
        iwm.load("org/tiny", cache_dir=tmp_path / place)
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
@pytest.mark.filterwarnings("ignore:Not enough free disk space")
@pytest.mark.parametrize(("left", "name"), [(0, "config.json"), (100_000, "model.safetensors")])
def test_a_full_disk(hub, load, cache, commit, files, tmp_path, left, name):
    words = rf"^No space left for {name} of org/tiny in the cache\. Make room, or name another place with cache_dir"
    with mounted(cache, "-t", "tmpfs", "-o", "size=1m", "none"):
        (cache / "large").write_bytes(bytes((1 << 20) - left - left % 4096))
        with pytest.raises(WeightsUnavailableError, match=words):
            load("org/tiny")
        check_cache(cache)
        (cache / "large").unlink()
        check_healed(hub, load, cache, files)


@pytest.mark.skipif(not ROOT, reason="only root can mount a small disk")
def test_a_download_to_a_full_disk(commit, cache, files, tmp_path):
    to = tmp_path / "small"
    with mounted(to, "-t", "tmpfs", "-o", "size=64k", "none"):
        with pytest.raises(SaveError, match=r"Cannot write .*model\.safetensors.*No space left"):
            download("org/tiny", to / "copy", HubOptions(cache_dir=cache))
        with pytest.raises((WeightsUnavailableError, SaveError)):
            iwm.load(to / "copy")


def test_a_limit_on_the_size_of_files(hub, load, cache, commit, files):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            WeightsUnavailableError, match=r"^No space left for model\.safetensors .*File too large"
        ):
            load("org/tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_healed(hub, load, cache, files)


def test_two_processes_at_once(hub, load, cache, commit, files, processes, tmp_path):
    with loading(processes, hub, cache) as (_, first), loading(processes, hub, cache) as (_, second):
        with hub.lock:  # No answer before both have asked.
            wait_for(lambda: len(hub.requests) == 2)
        results = [first.recv(), second.recv()]
    assert results == [iwm.load(tmp_path / "saved").space] * 2
    check_healed(hub, load, cache, files)


def test_a_process_that_is_killed_within_a_download(hub, load, cache, commit, files, snapshot, processes):
    hub.inject(Stall(100_000), WEIGHTS)
    with loading(processes, hub, cache) as (process, _):
        wait_for(lambda: under_way(hub, cache))
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
    assert not (snapshot / "model.safetensors").exists()
    (left,) = cache.glob("models--*/blobs/*.incomplete")
    with pytest.raises(
        WeightsUnavailableError, match=r"model\.safetensors of org/tiny@.* is not in the cache"
    ):
        load("org/tiny", revision=commit, local_files_only=True)
    check_healed(hub, load, cache, files)
    os.utime(left, (1, 1)) if left.exists() else None
    load("org/tiny")
    assert not left.exists()


def test_the_interrupt_key_ends_a_download(hub, load, cache, commit, files, snapshot):
    hub.inject(Stall(100_000), WEIGHTS)
    code = "import iwm, sys; iwm.load('org/tiny', cache_dir=sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, cache], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # A background job's ignore it.
    )  # fmt: skip
    with process:
        wait_for(lambda: under_way(hub, cache))
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]  # The stalled transfer would take longer.
    assert process.returncode in (-signal.SIGINT, 130)
    assert errors.strip().endswith("KeyboardInterrupt")
    assert not (snapshot / "model.safetensors").exists()
    check_healed(hub, load, cache, files)


def test_an_hour_that_the_hub_wants_is_not_waited(hub, load, cache, commit, files, processes):
    hub.inject(Status(429, {"Retry-After": "3600"}), WEIGHTS)
    began = time.monotonic()
    with loading(processes, hub, cache, seconds=1.0) as (process, results):
        told = results.recv()
        process.join(10)
        assert process.exitcode == 0
    assert time.monotonic() - began < 15
    assert told.startswith(
        f"WeightsUnavailableError: {hub.url} stalls over model.safetensors of org/tiny (nothing"
    )
    check_healed(hub, load, cache, files)


def test_a_config_that_another_program_cached_makes_an_architecture(load, hub, commit, files, cache, offline):
    hf_hub_download("org/tiny", "config.json", cache_dir=cache, endpoint=hub.url)
    config = iwm.WorldModelConfig.from_json(files["config.json"])
    hub.requests.clear()
    for name in ("org/tiny", f"org/tiny@{commit}"):
        assert offline(name, pretrained=False).config == config
        with pytest.raises(
            WeightsUnavailableError, match=r"model\.safetensors of .* is not in the cache with"
        ):
            offline(name)
    assert load(f"org/tiny@{commit}", pretrained=False).config == config
    assert hub.requests == []


def test_what_another_program_cached_is_what_there_is_while_the_hub_is_down(
    hub, load, commit, files, options, cache, caplog
):
    for name in MAIN:
        hf_hub_download("org/tiny", name, cache_dir=cache, endpoint=hub.url)
    hub.inject(Status(503), "/api/models/*")
    folder = download(f"org/tiny@{commit}", options=options)
    assert {path.name for path in folder.iterdir()} == set(MAIN)
    assert f"Going on with the copy in the cache ({commit[:12]})." in caplog.text
    with pytest.raises(
        WeightsUnavailableError, match=r"student\.safetensors of .* the Hub cannot be reached"
    ):
        load(f"org/tiny@{commit}", branch="student")
    hub.heal()
    assert {path.name for path in download(f"org/tiny@{commit}", options=options).iterdir()} == files.keys()


def test_plain_files_of_another_program_say_nothing_of_themselves(
    hub, load, commit, files, cache, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.file_download.are_symlinks_supported", lambda *_: False)
    for name in MAIN:
        hf_hub_download("org/tiny", name, cache_dir=cache, endpoint=hub.url)
    words = (
        r"config\.json of org/tiny@.* is not in the cache with what it must be, and no request may be made"
    )
    with pytest.raises(WeightsUnavailableError, match=words):
        load(f"org/tiny@{commit}", local_files_only=True)
    check_model(load(f"org/tiny@{commit}"), files)
    check_model(load(f"org/tiny@{commit}", local_files_only=True), files)
