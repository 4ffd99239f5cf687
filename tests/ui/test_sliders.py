"""The seven sliders: as far as training went, and no further."""

import pytest

from iwm.actions import CLEAN, Photometry
from iwm.config import STRENGTHS, ActionConfig
from iwm.errors import InvalidActionError
from iwm.photometry import FIELDS
from iwm.ui.sliders import photometry_of, sliders
from iwm.world_model import WorldModel


def test_they_span_the_trained_range(acting_model):
    rows = sliders(acting_model)
    assert [row.name for row in rows] == list(FIELDS)
    ends = {row.name: (row.low, row.high) for row in rows}
    assert ends == {
        "brightness": (0.5, 1.5), "contrast": (0.5, 1.5), "saturation": (0.6, 1.4), "hue": (-0.2, 0.2),
        "grayscale": (0, 1), "blur": (0, 2), "solarize": (0, 1),
    }  # fmt: skip
    assert photometry_of([row.start for row in rows]) == CLEAN
    assert all(row.trained for row in rows)


def test_what_was_only_ever_undone_is_asked_for_in_undoing_alone(tiny_config):
    model = WorldModel(tiny_config().replace(actions=ActionConfig(distribution=STRENGTHS["paper"])))
    asked = {row.name for row in sliders(model) if row.trained}
    assert asked == {"brightness", "contrast", "saturation", "hue"}
    assert all(row.trained for row in sliders(model, undoing=True))


def test_values_of_a_grid(acting_model):
    rows = {row.name: row for row in sliders(acting_model)}
    assert rows["hue"].values(5) == [-0.2, -0.1, 0.0, 0.1, 0.2]
    assert rows["grayscale"].values(5) == [0, 1]


def test_positions_are_a_photometry():
    found = photometry_of([1.4, 1, None, -0.1, True, 0.5, False])
    assert found == Photometry(brightness=1.4, hue=-0.1, grayscale=True, blur=0.5)
    with pytest.raises(InvalidActionError, match="hue is 7"):
        photometry_of([1, 1, 1, 7, False, 0, False])
