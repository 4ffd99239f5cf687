"""The page in a real browser: headless Chromium, which writes down all that it asks for.

    pip install playwright && apt-get install chromium

`IWM_TEST_CHROMIUM` names another executable; `IWM_TEST_SCREENSHOTS` a folder to look at afterwards.
"""

import os
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
import torch
from PIL import Image

import iwm
from iwm.config import DecoderConfig
from iwm.decoder import Decoder

from .conftest import serving

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = os.environ.get("IWM_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs Chromium: apt-get install chromium", allow_module_level=True)
data = pytest.importorskip("skimage.data", reason="photographs come with scikit-image")

WAIT = 120_000
"""Milliseconds: a machine may be busy."""
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
EDIT = iwm.Action(brightness=0.7, hue=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs, an edited one, and files that are none."""
    folder = tmp_path_factory.mktemp("files")
    for name, pixels in (("cat", data.chelsea()), ("coffee", data.coffee())):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    EDIT.apply(Image.fromarray(data.chelsea()).resize((192, 128))).save(folder / "edited.png")
    (folder / "broken.jpg").write_bytes((folder / "cat.png").read_bytes()[:2000])
    (folder / "diary.txt").write_text("Dear diary")
    Image.new("1", (10_000, 10_000)).save(folder / "enormous.png")
    with (folder / "heavy.jpg").open("wb") as file:
        file.truncate(65 << 20)
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """One tab of one user, and what it asked for."""

    def __init__(self, browser, address, size=DESKTOP, **options):
        self.page = browser.new_page(viewport=size, **options)
        self.page.set_default_timeout(WAIT)
        self.errors, self.asked = [], []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.context.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#iwm-photo input[type=file]", state="attached")

    def upload(self, path, where="photo"):
        self.page.set_input_files(f"#iwm-{where} input[type=file]", path)

    def choose_by_keys(self, path):
        """Enter on the button; again where the page was not listening yet."""
        for _ in range(30):
            self.page.locator("#iwm-photo button").first.focus()
            try:
                with self.page.expect_file_chooser(timeout=3000) as opened:
                    self.page.keyboard.press("Enter")
            except sync_api.TimeoutError:
                continue
            opened.value.set_files(path)
            return
        raise AssertionError("Enter opens no file chooser")

    def photograph(self, path):
        self.upload(path)
        self.says("#iwm-message", f"{path.name} is ready.")

    def says(self, where, words):
        self.page.locator(where).get_by_text(words).first.wait_for()

    def slide(self, name, value, tab="act"):
        box = self.page.locator(f"#iwm-{tab}-{name} input[type=number]")
        box.fill(str(value))
        box.press("Enter")

    def pictures(self, where):
        return self.page.locator(f"{where} img").evaluate_all("all => all.map(one => one.src)")

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def screenshot(self, name):
        where = os.environ.get("IWM_TEST_SCREENSHOTS")
        if where:
            self.page.screenshot(path=Path(where) / f"{name}.png")

    def close(self, expected=()):
        """Nothing went wrong in the console, and nobody else was asked for anything."""
        hosts = {
            urllib.parse.urlsplit(url).hostname
            for url in self.asked
            if not url.startswith(("data:", "blob:"))
        }
        self.page.close()
        assert hosts == {"127.0.0.1"}
        assert [words for words in self.errors if not any(re.search(e, words) for e in expected)] == []


@pytest.fixture
def visit(browser, server):
    """`visit(size)` opens the page; every visit is checked at the end."""
    visits = []

    def open_page(*words, **options):
        visits.append(Visit(browser, server.address, *words, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        if not one.page.is_closed():
            one.close()


def test_a_slider_changes_what_is_retrieved(visit, folder):
    here = visit()
    here.photograph(folder / "cat.png")
    before = here.pictures("#iwm-acted")
    here.slide("brightness", 1.4)
    here.says(
        "#iwm-acted", re.compile(r"Asked for brightness x1\.40\. The view asked for comes first of 256\.")
    )
    after = here.pictures("#iwm-acted")
    assert len(before) == len(after) == 3 + 6
    assert before[0] == after[0]  # The photograph.
    assert before[1] != after[1]  # The true pixels.
    assert before[2] != after[2]  # What is imagined.
    assert before[3] != after[3]  # The nearest view.
    assert after[1] == after[3]  # It is the one that was asked for.
    here.screenshot("act")
    here.page.get_by_label("Grayscale").first.check()
    here.says("#iwm-acted", re.compile("Asked for brightness x1.40, grayscale"))
    here.page.locator("#iwm-act-reset").click()
    here.says("#iwm-acted", "Nothing is asked for yet")
    assert here.pictures("#iwm-acted") == before


def test_a_field_is_emptied_and_typed_beyond_an_end(visit, folder):
    here = visit()
    here.photograph(folder / "cat.png")
    box = here.page.locator("#iwm-act-brightness input[type=number]")
    shown = "#iwm-acted .iwm-verdict"
    for typed, words, left in (
        ("1.3", "Asked for brightness x1.30.", "1.3"),
        ("", "Nothing is asked for yet", "1"),
        ("9", "Asked for brightness x1.50.", "1.5"),
        ("-9", "Asked for brightness x0.50.", "0.5"),
    ):
        box.fill(typed)
        here.says(shown, words)
        box.blur()
        sync_api.expect(box).to_have_value(left)
        here.page.wait_for_timeout(500)  # For what the change of the field still asks for.
        here.says(shown, words)
    assert here.page.locator(".toast-body").count() == 0


def test_keys_are_enough_and_the_last_position_counts(visit, folder):
    here = visit()
    here.choose_by_keys(folder / "cat.png")
    here.says("#iwm-message", "cat.png is ready.")
    here.page.locator("#iwm-act-contrast input[type=range]").focus()
    for _ in range(30):
        here.page.keyboard.press("ArrowLeft")
    here.says("#iwm-acted", re.compile(r"Asked for contrast x0\.70\."))
    here.page.locator("#iwm-act-solarize input").focus()
    here.page.keyboard.press("Space")
    here.says("#iwm-acted", re.compile(r"contrast x0\.70, solarize"))
    here.page.get_by_role("tab", name="Undo").focus()
    here.page.keyboard.press("Enter")
    here.page.locator("#iwm-undone").wait_for()


def test_everything_that_is_shown_has_a_name(visit, folder):
    here = visit()
    here.photograph(folder / "cat.png")
    here.slide("hue", 0.1)
    here.says("#iwm-acted", re.compile("hue"))
    assert here.page.locator("h1").count() == 1
    for tab in ("Undo", "Grid", "Act"):
        here.tab(tab)
        assert here.page.locator("img:not([alt]), img[alt='']").count() == 0
        unnamed = here.page.locator("input:visible, button:visible").evaluate_all(
            "all => all.filter(e => !(e.labels?.length || e.ariaLabel || e.title || e.innerText.trim()))"
            ".map(e => e.outerHTML)"
        )
        assert unnamed == []


def test_an_edit_is_undone_and_the_original_found(visit, folder):
    here = visit()
    here.tab("Undo")
    here.upload(folder / "edited.png", "edited")
    here.says("#iwm-undone", "Choose the untouched photograph at the top too")
    here.photograph(folder / "cat.png")
    here.slide("brightness", 0.7, "undo")
    here.slide("hue", 0.1, "undo")
    here.says(
        "#iwm-undone",
        re.compile(r"Undone: brightness x0\.70, hue \+0\.10\. The original comes first of 257\."),
    )
    assert here.page.locator("#iwm-undone .iwm-right").count() == 1
    assert here.page.locator("#iwm-control figcaption").first.inner_text() == "the edited one"
    here.screenshot("undo")
    here.page.locator("#iwm-undo-reset").click()
    here.says("#iwm-undone", "Nothing is undone yet")
    sync_api.expect(here.page.locator("#iwm-message")).to_have_text("")
    here.upload(folder / "edited.png", "edited")
    here.says("#iwm-message", "edited.png is to be undone.")
    here.page.locator("#iwm-find-out").click()
    here.says("#iwm-reading", re.compile("Read by comparison with the untouched photograph: brightness x0"))
    here.says("#iwm-undone", re.compile(r"Undone: brightness x0\."))
    assert float(here.page.locator("#iwm-undo-brightness input[type=number]").input_value()) < 0.85


def test_a_grid_sweeps_one_parameter(visit, folder):
    here = visit()
    here.photograph(folder / "coffee.png")
    here.tab("Grid")
    assert here.page.locator("#iwm-grid tbody tr").count() == 5
    before = here.pictures("#iwm-grid")
    assert len(before) == 5 * 5
    here.page.get_by_label("Hue (turns)").last.check()
    here.says("#iwm-grid", "Hue (turns): from one end")
    assert here.page.locator("#iwm-grid th[scope=row]").first.inner_text().startswith("-0.20")
    after = here.pictures("#iwm-grid")
    assert len(set(after[::5])) == 5
    assert before != after
    here.screenshot("grid")


def test_files_that_cannot_be_read_are_errors_in_words_and_no_end(visit, folder):
    here = visit()
    here.photograph(folder / "cat.png")
    shown = here.pictures("#iwm-acted")
    for name, words in (
        ("broken.jpg", "Cannot read broken.jpg as an image"),
        ("diary.txt", "Cannot read diary.txt as an image"),
        ("enormous.png", "enormous.png has more than 89,478,485 pixels; make it smaller first."),
    ):
        here.upload(folder / name)
        alert = here.page.get_by_role("alert").filter(has_text=words)
        alert.wait_for()
        assert here.pictures("#iwm-acted") == shown
        if name == "enormous.png":
            here.screenshot("error")
    here.slide("saturation", 0.7)
    here.says("#iwm-acted", re.compile(r"Asked for saturation x0\.70"))
    here.photograph(folder / "coffee.png")
    assert here.pictures("#iwm-acted")[0] != shown[0]


def test_a_file_that_is_too_heavy_is_refused_while_it_is_sent(visit, folder):
    here = visit()
    here.upload(folder / "heavy.jpg")
    here.page.get_by_text(
        re.compile("maximum allowed size|exceeds|too large", re.IGNORECASE)
    ).first.wait_for()
    here.page.reload()
    here.page.wait_for_selector("#iwm-photo input[type=file]", state="attached")
    here.photograph(folder / "cat.png")
    here.close(expected=("404", "413", "^Response$"))


def test_two_tabs_do_not_mix(visit, folder):
    one, other = visit(), visit()
    one.photograph(folder / "cat.png")
    other.photograph(folder / "coffee.png")
    shown = [tab.pictures("#iwm-acted")[0] for tab in (one, other)]
    assert shown[0] != shown[1]
    for tab, value in ((one, 0.6), (other, 1.2), (one, 0.8), (other, 1.4)):
        tab.slide("contrast", value)
    one.says("#iwm-acted", re.compile(r"contrast x0\.80"))
    other.says("#iwm-acted", re.compile(r"contrast x1\.40"))
    assert [tab.pictures("#iwm-acted")[0] for tab in (one, other)] == shown


def test_on_a_phone_nothing_is_cut_off_and_the_result_stays_in_sight(visit, folder):
    here = visit(PHONE, has_touch=True)
    here.page.get_by_role("button", name="Cat").tap()
    here.says("#iwm-message", "Cat is ready.")
    for tab in ("Act", "Undo", "Grid"):
        here.tab(tab)
        assert here.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        beyond = here.page.locator("button:visible, input:visible").evaluate_all(
            f"all => all.filter(e => e.getBoundingClientRect().right > {PHONE['width']}).map(e => e.outerHTML)"
        )
        assert beyond == []
    here.tab("Act")
    here.page.get_by_label("Solarize").first.check()
    here.says("#iwm-acted", re.compile("Asked for solarize"))
    here.page.get_by_label("Solarize").first.scroll_into_view_if_needed()
    for part in (".iwm-verdict", ".iwm-hits img >> nth=0"):
        box = here.page.locator(f"#iwm-acted {part}").bounding_box()
        assert 0 <= box["y"] < PHONE["height"]
    here.screenshot("phone")


@pytest.fixture(scope="module")
def decoding_folder(tmp_path_factory):
    """The embedded model with a decoder of random weights: what it imagines is noise, and is shown."""
    model = iwm.load()
    torch.manual_seed(0)
    model.add_decoder(Decoder(DecoderConfig(space=model.space, width=32, depth=1, heads=2), model.config))
    folder = tmp_path_factory.mktemp("decoding") / "model"
    model.save_pretrained(folder)
    return folder


def test_what_a_model_with_a_decoder_imagines_is_shown_in_every_tab(
    browser, needs_gradio, folder, decoding_folder, tmp_path
):
    with serving(tmp_path / "scratch", "--model", decoding_folder) as served:
        here = Visit(browser, served.address, PHONE, has_touch=True)
        assert here.page.get_by_text("This model has no decoder").count() == 0
        here.photograph(folder / "cat.png")
        here.slide("brightness", 1.4)
        here.says("#iwm-acted", re.compile(r"Asked for brightness x1\.40\."))
        acted = here.pictures("#iwm-acted")
        assert len(acted) == 3 + 6
        assert len(set(acted[:3])) == 3  # The photograph, the true pixels, what is imagined.
        assert here.page.locator("#iwm-acted figcaption").nth(2).inner_text() == "Imagined"
        here.screenshot("imagined, act")
        here.tab("Undo")
        here.upload(folder / "edited.png", "edited")
        here.says("#iwm-message", "edited.png is to be undone.")
        here.slide("brightness", 0.7, "undo")
        here.says("#iwm-undone", re.compile(r"Undone: brightness x0\.70"))
        assert len(here.pictures("#iwm-undone")) == 2 + 6
        assert here.page.locator("#iwm-undone figcaption").nth(1).inner_text() == "Imagined original"
        here.screenshot("imagined, undo")
        here.tab("Grid")
        here.page.locator("#iwm-grid tbody tr").nth(4).wait_for()
        grid = here.pictures("#iwm-grid")
        assert len(grid) == 5 * 5
        assert len(set(grid[1::5])) == 5  # Another picture for every value.
        assert here.page.locator("#iwm-grid thead th").nth(2).inner_text() == "Imagined"
        assert here.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        here.screenshot("imagined, grid")
        here.close()
        assert served.end() == (0, "")


def test_in_a_library_photographs_are_found(browser, folder, photos, tmp_path):
    pytest.importorskip("lancedb", reason='pip install "iwm[retrieval]"')
    shelf = tmp_path / "photos"
    shutil.copytree(photos, shelf)
    for name in ("cat.png", "coffee.png"):
        shutil.copy(folder / name, shelf)
    for name in ("astronaut", "rocket"):
        Image.fromarray(getattr(data, name)()).save(shelf / f"{name}.png")
    environment = os.environ | {"PYTHONPATH": str(Path(iwm.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "iwm", "index", str(shelf), "--out", str(tmp_path / "library.lance")]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    with serving(tmp_path / "scratch", tmp_path / "library.lance") as served:
        here = Visit(browser, served.address)
        here.photograph(folder / "coffee.png")
        here.says("#iwm-acted", "The nearest of 16 photographs to the photograph as it is.")
        assert here.page.locator("#iwm-acted .iwm-hits figcaption").first.inner_text() == "coffee.png"
        here.slide("brightness", 0.6)
        here.says("#iwm-acted", re.compile("The nearest of 16 photographs to the prediction for brightness"))
        here.screenshot("library")
        here.tab("Undo")
        here.upload(folder / "edited.png", "edited")
        here.says("#iwm-message", "edited.png is to be undone.")
        here.slide("brightness", 0.7, "undo")
        here.slide("hue", 0.1, "undo")
        here.says("#iwm-undone", re.compile(r"brightness x0\.70, hue \+0\.10 undone"))
        assert here.page.locator("#iwm-undone .iwm-hits figcaption").first.inner_text() == "cat.png"
        here.page.locator("#iwm-find-out").click()
        here.says("#iwm-reading", "Learned from 16 photographs of the library")
        assert str(tmp_path) not in here.page.content()
        here.close()
        assert served.end() == (0, "")
