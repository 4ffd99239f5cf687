"""What the browser is sent: pictures inside, described, and no stranger's markup."""

import base64
import io
import re

from PIL import Image

from iwm.actions import CLEAN, Photometry
from iwm.ui.acting import act, sweep
from iwm.ui.html import acted_html, alert, control_html, grid_html, undone_html
from iwm.ui.places import Hit, Search
from iwm.ui.sliders import sliders
from iwm.ui.undoing import Undone, edit_photo, undo

VIEW = Photometry(contrast=0.8)


def sources(html):
    return re.findall(r'<img src="([^"]+)"', html)


def test_every_picture_is_inside_and_described(acting_model, photo, views):
    shown = acted_html(act(acting_model, photo, VIEW, views), library=False)
    assert len(sources(shown)) == 2 + 6
    for source in sources(shown):
        kind, data = source.split(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    described = re.findall(r'<img [^>]*alt="([^"]*)"', shown)
    assert len(described) == 8
    assert described[1] == "Control: the pixels of the photograph, contrast x0.80"
    assert all(described)


def test_words_say_where_the_view_asked_for_came(acting_model, photo, views):
    found = act(acting_model, photo, VIEW, views)
    place = "first of 16" if found.found.rank == 1 else f"number {found.found.rank:g} of 16"
    assert f"Asked for contrast x0.80. The view asked for comes {place}." in acted_html(found, library=False)
    clean = acted_html(act(acting_model, photo, CLEAN, views), library=False)
    assert "Nothing is asked for yet: move a slider." in clean


def test_a_grid_is_a_table_with_headings(acting_model, photo, views):
    slider = sliders(acting_model)[3]
    table = grid_html(slider, sweep(acting_model, photo, slider, views), library=False)
    assert re.findall(r'<th scope="row">([^<]+)', table) == ["-0.20", "-0.10", "+0.00", "+0.10", "+0.20"]
    heads = ["Hue (turns)", "True pixels", "Nearest 1", "Nearest 2", "Nearest 3"]
    assert re.findall(r'<th scope="col">([^<]+)', table) == heads
    assert len(sources(table)) == 5 * 4


def test_undoing_names_the_control(acting_model, photo, views):
    shown = undo(acting_model, edit_photo(acting_model, photo, VIEW), VIEW, views)
    words = undone_html(shown, library=False)
    assert "Undone: contrast x0.80. The original comes " in words
    assert f"Without undoing it comes number {shown.control.rank:g} of 17." in words
    assert "the edited one" in control_html(shown)


def test_names_of_files_are_no_markup():
    name = '<script>alert("x")</script>&.jpg'
    found = Search(hits=(Hit(picture=None, caption=name, distance=1.0),), size=1)
    shown = Undone(edit=CLEAN, edited=Image.new("RGB", (8, 8)), imagined=None, found=found, control=found)
    html = undone_html(shown, library=True) + alert(name)
    assert "<script>" not in html
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;.jpg" in html
    assert "cannot be read any more" in html
