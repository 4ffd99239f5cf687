"""`iwm figure`: the paper's pictures, of any model and any photographs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from iwm.cli.options import (
    AsJson,
    Device,
    ModelName,
    check_output,
    console,
    find_images,
    load_model,
    one_line,
    print_json,
    warn,
)

if TYPE_CHECKING:
    from iwm.evaluation.mrr import Distribution, Protocol
    from iwm.figures.similarity import Compared
    from iwm.opening import ImageLike

Photographs = Annotated[
    list[Path] | None,
    typer.Argument(help="Photographs and folders; by default four that scikit-image ships."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Picture to write: .png, .pdf or .svg.")]
Dpi = Annotated[int, typer.Option(min=30, max=1200, help="Pixels an inch of a .png.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything that is drawn at random.")]


def retrieval_command(
    out: Out,
    images: Photographs = None,
    random: Annotated[
        int | None,
        typer.Option(
            min=1, help="So many rows of random actions (figures S5 to S8), in the place of the named ones."
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Of random actions: transfer (any view to any), apply or undo.")
    ] = "transfer",
    bank_size: Annotated[
        int,
        typer.Option(min=3, max=65_536, help="Views in each photograph's bank, those asked for among them."),
    ] = 256,
    seed: Seed = 0,
    dpi: Dpi = 300,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Actions applied in latent space, and the nearest of a bank of views: figures 1 and S5 to S8.

    One row an action: the source, the view asked for, the three nearest views. Photographs take turns.
    """
    from iwm.demo import retrieve
    from iwm.display import track
    from iwm.evaluation.mrr import check_protocol
    from iwm.figures import save_retrievals
    from iwm.figures.retrieval import NAMED, random_actions, retrievals_to_dict

    check_protocol(protocol)
    photographs = _prepare(out, images, random or len(NAMED))
    world_model = load_model(model, device)
    asked = cast("Protocol", protocol)
    actions = random_actions(world_model, random, asked, seed=seed) if random else NAMED
    rows = retrieve(world_model, photographs, actions, bank_size=bank_size, seed=seed)
    retrievals = list(track(rows, "acting and retrieving", total=len(actions)))
    save_retrievals(retrievals, out, dpi=dpi)
    right = sum(item.rank == 1 for item in retrievals)
    words = [f"Retrieved the view asked for: {right} of {len(retrievals)} actions."]
    _tell(out, {"model": world_model.config.name, "rows": retrievals_to_dict(retrievals)}, words, as_json)


def sweep_command(
    out: Out,
    images: Photographs = None,
    parameter: Annotated[
        list[str] | None,
        typer.Option(help="brightness, contrast, saturation, hue or blur; repeat it for several."),
    ] = None,
    start: Annotated[
        float | None, typer.Option("--from", help="Lowest value; default the trained range.")
    ] = None,
    stop: Annotated[
        float | None, typer.Option("--to", help="Highest value; default the trained range.")
    ] = None,
    steps: Annotated[int, typer.Option(min=2, max=25, help="Values asked for.")] = 7,
    bank_size: Annotated[int, typer.Option(min=2, max=65_536, help="Values that can be found, about.")] = 256,
    decode: Annotated[bool, typer.Option("--decode", help="Add a row of decoded predictions.")] = False,
    dpi: Dpi = 300,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """One parameter from low to high, true views above those retrieved: figures S9 to S11.

    Each prediction is looked up among views along a dense grid of the parameter. Photographs and
    parameters take turns; by default the four parameters of the jitter.
    """
    from iwm.display import track
    from iwm.figures.sweep import check_sweep, sweep
    from iwm.figures.sweep_picture import save_sweeps

    names = parameter or ["brightness", "contrast", "saturation", "hue"]
    for name in names:
        check_sweep(name, start, stop, steps, bank_size)
    photographs = _prepare(out, images)
    world_model = load_model(model, device)
    blocks = max(len(names), len(photographs))
    sweeps = [
        sweep(
            world_model, photographs[block % len(photographs)], names[block % len(names)], start, stop,
            steps=steps, bank_size=bank_size, decode=decode,
        )
        for block in track(range(blocks), "sweeping", total=blocks)
    ]  # fmt: skip
    save_sweeps(sweeps, out, dpi=dpi)
    files = [{"image": str(p)} if isinstance(p, Path) else {} for p in photographs]
    about = [files[block % len(files)] for block in range(blocks)]
    words = [
        "".join(f"{one_line(name)}, " for name in of.values())
        + f"{item.parameter}: off by {item.error:.3g} on average; without acting, {item.blind_error:.3g}."
        for of, item in zip(about, sweeps, strict=True)
    ]
    result = {
        "model": world_model.config.name,
        "sweeps": [of | item.to_dict() for of, item in zip(about, sweeps, strict=True)],
    }
    _tell(out, result, words, as_json)


def similarity_command(
    out: Out,
    images: Photographs = None,
    against: Annotated[
        list[str] | None, typer.Option(help="A model to set beside, as an invariant twin; repeatable.")
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Also show the views undone by the world model.")
    ] = False,
    views: Annotated[int, typer.Option(min=2, max=1024, help="Views of each photograph.")] = 16,
    compare: Annotated[str, typer.Option(help="All tokens in place, or pooled.")] = "tokens",
    seed: Seed = 0,
    dpi: Dpi = 300,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Similarities between views of photographs, invariant and equivariant: figure S3.

    Every photograph is augmented 16 times and every view compared with every other.
    """
    from iwm.figures.similarity import check_compared, draw_augmentations, similarity
    from iwm.figures.similarity_picture import save_similarities

    check_compared(compare)
    photographs = _prepare(out, images)
    models = [load_model(name, device) for name in (model, *(against or ()))]
    params = draw_augmentations(models[0], len(photographs), views, seed=seed)
    panels = [
        similarity(one, photographs, params, compare=cast("Compared", compare), undo=undone)
        for one in models
        for undone in ((False, True) if undo else (False,))
    ]
    save_similarities(
        panels, [models[0].preprocess.one(image).numpy() for image in photographs], out, dpi=dpi
    )
    words = [f"{panel.model}, {panel.what}: {', '.join(panel.summary)}." for panel in panels]
    _tell(out, {"panels": [panel.to_dict() for panel in panels]}, words, as_json)


def invariant_command(
    out: Out,
    images: Photographs = None,
    bank_size: Annotated[
        int, typer.Option(min=1, max=65_536, help="Actions to average over, whose views are searched.")
    ] = 256,
    distribution: Annotated[
        str, typer.Option(help="Of the actions: jitter, as the paper's targets, or full.")
    ] = "jitter",
    shown: Annotated[int, typer.Option(min=1, max=12, help="Views in a row.")] = 7,
    curve: Annotated[bool, typer.Option("--curve", help="Also plot distances over the number.")] = False,
    seed: Seed = 0,
    dpi: Dpi = 300,
    model: ModelName = "iwm-tiny",
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Predictions averaged over many actions, and the views nearest to the mean: figure S4.

    The paper finds the untouched photograph first, then views that were hardly changed. Numbers below
    views are the mean change of a pixel.
    """
    from iwm.display import track
    from iwm.evaluation.mrr import check_distribution
    from iwm.figures.invariant import marginalise
    from iwm.figures.invariant_picture import save_marginals

    check_distribution(distribution)
    photographs = _prepare(out, images)
    world_model = load_model(model, device)
    marginals = [
        marginalise(
            world_model, image, bank_size, distribution=cast("Distribution", distribution), shown=shown,
            seed=seed, index=index,
        )
        for index, image in enumerate(track(photographs, "averaging", total=len(photographs)))
    ]  # fmt: skip
    save_marginals(marginals, out, curve=curve, dpi=dpi)
    words = [f"Rank of the untouched photograph: {item.rank} of {item.bank_size}." for item in marginals]
    result = {"model": world_model.config.name, "photographs": [item.to_dict() for item in marginals]}
    _tell(out, result, words, as_json)


def _prepare(out: Path, images: list[Path] | None, most: int | None = None) -> list[ImageLike]:
    """Photographs that can be read, once it is sure that the picture can be written.

    Args:
        out: the picture.
        images: files and folders; none for the default photographs.
        most: so many are enough.
    """
    from iwm.demo import photographs
    from iwm.figures import check_picture

    check_output(out, find_images(images or []))
    check_picture(out)
    return [*itertools.islice(_readable(images), most)] if images else [*photographs()]


def _readable(images: list[Path]) -> Iterator[Path]:
    """Files that can be read; the others of a folder are skipped with a warning, those named are errors."""
    from iwm.errors import InvalidDataError, InvalidImageError
    from iwm.opening import open_rgb

    paths, any_read = find_images(images), False
    for path in paths:
        try:
            open_rgb(path)
        except InvalidImageError as error:
            if path in images:
                raise
            warn(f"skipped: {error}")
        else:
            any_read = True
            yield path
    if not any_read:
        raise InvalidDataError(f"None of the {len(paths)} images can be read.")


def _tell(out: Path, result: dict[str, Any], words: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"picture": str(out)} | result)
        return
    for line in words:
        console.print(line)
    console.print(f"Picture: {out}")
