"""What the page does when somebody does something: from events to HTML, for one browser tab at a time.

No browser and no gradio: values come in, values go out, and what a user can do wrong comes back as words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from iwm.actions import Photometry
from iwm.errors import InvalidActionError, InvalidConfigError, InvalidImageError, IWMError
from iwm.opening import ImageLike
from iwm.ui.acting import act, sweep
from iwm.ui.html import NOTHING_YET, acted_html, alert, control_html, grid_html, status, undone_html
from iwm.ui.photo import Photo, encode_photo, read_photo
from iwm.ui.places import BANK_SIZE, Shelf, Views
from iwm.ui.sliders import Slider, photometry_of, sliders
from iwm.ui.undoing import edit_photo, read_edit, undo
from iwm.world_model import WorldModel

Values = Sequence[float | bool | None]

MOST_BYTES = 64 << 20
"""Of an uploaded file."""
_NO_ORIGINAL = (
    "Choose the untouched photograph at the top too, so that there is something to find; or start the page with a "
    "library: iwm ui library.lance"
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Kept:
    """What a browser tab keeps of its photograph between two moves of a slider.

    Attributes:
        photo: encoded.
        place: where its predictions are looked up.
    """

    photo: Photo
    place: Views | Shelf


class Desk:
    """A model, perhaps a library, and what can be done with them.

    Args:
        model: the world model; its decoder is loaded, if it has one.
        shelf: the library, if there is one.
        uploads: the only folder from which files are read.

    Raises:
        InvalidActionError: a model that was finetuned as a whole cannot act, one that was trained
            without actions has nothing to move.
    """

    def __init__(self, model: WorldModel, shelf: Shelf | None, uploads: Path) -> None:
        model.check_can_act()
        if model.config.predictor.conditioning == "none":
            raise InvalidActionError(
                f"{model.config.name} is invariant by construction: it knows no actions. Load another model."
            )
        if model.config.decoder is not None:
            model.load_decoder()
        self.model, self.shelf, self._uploads = model, shelf, uploads.resolve()
        self.asking, self.undoing = sliders(model), sliders(model, undoing=True)
        if not self.sweepable:
            raise InvalidActionError(
                "This model was trained on untouched views alone, and knows no action: there is nothing to move."
            )

    @property
    def sweepable(self) -> list[Slider]:
        """The sliders that can be moved."""
        return [slider for slider in self.asking if slider.trained]

    @property
    def preparing(self) -> str:
        """What `keep` is about to do, in words."""
        return "one moment." if self.shelf is not None else f"encoding {BANK_SIZE} views of it, some seconds."

    @property
    def bytes_kept(self) -> int:
        """Memory that one tab's photograph takes, views included."""
        encoder = self.model.config.encoder
        patches = (self.model.preprocess.size // encoder.patch_size) ** 2
        return (1 if self.shelf is not None else BANK_SIZE) * patches * encoder.width * 4

    def open(self, upload: str | None) -> Photo:
        """An uploaded file, decoded and encoded.

        Raises:
            InvalidImageError: it cannot be.
        """
        path = Path(upload or "").resolve()
        if not upload or not path.is_relative_to(self._uploads) or not path.is_file():
            raise InvalidImageError("The file did not arrive; choose it again.")
        if path.stat().st_size > MOST_BYTES:
            raise InvalidImageError(
                f"{path.name} has more than {MOST_BYTES >> 20} MB; make it smaller first."
            )
        return read_photo(self.model, path.read_bytes(), path.name)

    def keep(self, photo: Photo) -> Kept:
        """A photograph with the place to search; its views are encoded here, where there is no library."""
        place = Views(self.model, photo) if self.shelf is None else self.shelf
        return Kept(photo=photo, place=place)

    def sample(self, image: ImageLike, name: str) -> Photo:
        """A photograph that came with the program."""
        return encode_photo(self.model, image, name)

    def act(self, kept: Kept | None, values: Values) -> str:
        """The tab *Act*."""
        if kept is None:
            return NOTHING_YET
        try:
            shown = act(self.model, kept.photo, photometry_of(values), kept.place)
        except IWMError as error:
            return alert(str(error))
        return acted_html(shown, library=self.shelf is not None)

    def undo(self, kept: Kept | None, edited: Photo | None, values: Values) -> tuple[str, str]:
        """The tab *Undo*, and its control: of an edited photograph, or of one that the sliders edit."""
        if kept is None and edited is None:
            return NOTHING_YET, ""
        place = self._place(kept)
        if place is None:
            return alert(_NO_ORIGINAL), ""
        try:
            edit = photometry_of(values)
            shown = undo(self.model, self._to_undo(kept, edited, edit), edit, place)
        except IWMError as error:
            return alert(str(error)), ""
        return undone_html(shown, library=self.shelf is not None), control_html(shown)

    def find_out(
        self, kept: Kept | None, edited: Photo | None, values: Values
    ) -> tuple[str, tuple[float, ...] | None]:
        """Words about the edit, and where the sliders should stand; None leaves them.

        They stay where they are while they make the edit themselves.
        """
        try:
            photo = self._to_undo(kept, edited, photometry_of(values))
            reading = read_edit(self.model, photo, self._place(kept))
        except IWMError as error:
            return alert(str(error)), None
        return status(reading.words), reading.edit.params if edited else None

    def _place(self, kept: Kept | None) -> Views | Shelf | None:
        if self.shelf is not None:
            return self.shelf
        return kept.place if kept else None

    def _to_undo(self, kept: Kept | None, edited: Photo | None, edit: Photometry) -> Photo:
        if edited:
            return edited
        if kept is None:
            raise InvalidConfigError("Choose a photograph first.")
        return edit_photo(self.model, kept.photo, edit)

    def grid(self, kept: Kept | None, name: str) -> str:
        """The tab *Grid*."""
        if kept is None:
            return NOTHING_YET
        slider: Slider = next((s for s in self.asking if s.name == name), self.asking[0])
        try:
            rows = sweep(self.model, kept.photo, slider, kept.place)
        except IWMError as error:
            return alert(str(error))
        return grid_html(slider, rows, library=self.shelf is not None)
