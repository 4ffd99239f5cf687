"""Run a finetuning configuration from labelled folders to a folder that `iwm.load(..., task=...)` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from iwm.adapter import Adapter
from iwm.checkpoint import save_adapter, save_model
from iwm.config import AdapterConfig, PredictorConfig, TaskConfig, WorldModelConfig
from iwm.device import machine
from iwm.encoder import set_drop_path
from iwm.errors import InvalidConfigError
from iwm.fields import Json, to_json
from iwm.files import remove_unfinished, write_text
from iwm.finetuning.accounting import cost
from iwm.finetuning.cache import LatentDataset, cached_latents
from iwm.finetuning.config import FinetuneConfig
from iwm.finetuning.datasets import TaskSource, check_shares, training_set
from iwm.finetuning.folders import TaskData, check_outside, listing
from iwm.finetuning.measure import measure, validator
from iwm.finetuning.result import RESULT_FILE, FinetuneResult, TaskResult
from iwm.finetuning.task import FinetuneTask
from iwm.loading import load
from iwm.model_folder import read_config, write_config
from iwm.training.distributed import World, joined
from iwm.training.execution import prefer_plain_attention, prepare_blocks
from iwm.training.loop import train
from iwm.training.run_folder import RunFolder, has_state
from iwm.world_model import WorldModel
from iwm.zoo import ZOO


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """All that says what a run does, beside its configuration.

    Attributes:
        model: what is finetuned: zoo name, folder or repository.
        tasks: labels and images; see `iwm.finetuning.folders.read_task`.
        out: the run folder, which is a model folder as well from the first checkpoint on; not in a
            folder of images.
        cache: folder of kept latents, not among images either; None is in the run folder.
        command: what the user typed, for the records.
        license: of what comes out.
    """

    model: str
    tasks: Sequence[TaskData]
    out: Path
    cache: Path | None = None
    command: str = ""
    license: str = "unspecified"

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InvalidConfigError(f'Two tasks are called "{twice[0]}"; name them: --data name=folder.')
        check_outside(self.out, "--out", self.tasks)
        if self.cache is not None:
            check_outside(self.cache, "--cache", self.tasks)

    @property
    def names(self) -> list[str]:
        """Of the tasks."""
        return [task.name for task in self.tasks]

    @property
    def adapter(self) -> str:
        """Name of the adapter: the task's, or those of all."""
        joint = "-".join(self.names)
        return joint if len(joint) <= 64 else "multitask"


def finetune(config: FinetuneConfig, plan: Finetuning, *, resume: bool = False) -> FinetuneResult | None:
    """Finetune, and measure what came out.

    Args:
        config: see `FinetuneConfig`.
        plan: the model, the data and where to write.
        resume: continue the run in `plan.out`, from here on also with other steps or another learning rate.

    Returns:
        Scores and costs, on the main process; None after an interruption, with a checkpoint left,
        and on other processes.

    Raises:
        InvalidConfigError: settings that do not go together, or other ones than the run in
            `plan.out` has.
        InvalidDataError: the data cannot be used.
    """
    config = config.resolved(sum(len(task.train) for task in plan.tasks))
    with joined(config.device) as world:
        return _finetune(config, plan, resume, world)


def finetune_alone(
    config: FinetuneConfig, plan: Finetuning, joint: FinetuneResult, *, resume: bool = False
) -> FinetuneResult | None:
    """The single-task baseline of a multitask run [table 7]: each task alone, in a folder of its own.

    As many steps, and as many images of the task a step, as in the joint run.

    Returns:
        The joint result with every task's `single`; None after an interruption.
    """
    results = []
    for task, together in zip(plan.tasks, joint.tasks, strict=True):
        alone = replace(plan, tasks=[task], out=plan.out / "alone" / task.name)
        share = config.replace(batch_size=config.batch_size // len(plan.tasks), steps=joint.steps, epochs=0.0)
        # The joint run may have been stopped before any task was trained alone.
        result = finetune(share, alone, resume=resume and has_state(alone.out))
        if result is None:
            return None
        results.append(replace(together, single=result.tasks[0].score))
    whole = replace(joint, tasks=tuple(results))
    write_text(plan.out / RESULT_FILE, json.dumps(whole.to_dict(), indent=2) + "\n")
    return whole


def _finetune(config: FinetuneConfig, plan: Finetuning, resume: bool, world: World) -> FinetuneResult | None:
    if config.task == "segmentation" and len(plan.tasks) > 1:
        raise InvalidConfigError("Segmentation takes one --data at a time.")
    check_shares(config, len(plan.tasks), world.size)
    model = load(plan.model, device=world.device, branch=config.branch)
    if model.config.tuned and config.tune != "none":
        raise InvalidConfigError(
            f"{plan.model} was finetuned as a whole already; finetune the model it was made from, or train a "
            "head alone with --tune none."
        )
    run = RunFolder(plan.out, config, resume=resume)
    world.wait()  # All have looked at the folder before one of them changes it.
    torch.manual_seed(config.seed)
    adapter = make_adapter(config, model, plan.tasks).to(world.device)
    if world.size > 1 and world.device.type == "cuda":  # Elsewhere there is no such norm.
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(adapter)  # type: ignore[no-untyped-call]
    images = f"{listing(plan.tasks)}, of {', '.join(plan.names)} on the encoder {model.space}"
    source = _source(config, plan, model, images, world, run)
    task = FinetuneTask(
        config, model, adapter,
        classes=[c for t in plan.tasks for c in t.train.classes],
        lengths=[len(t.train) for t in plan.tasks],
        validate=validator(model, adapter, plan.tasks, keep=config.cache_views > 0, precision=config.precision),
    ).to(world.device)  # fmt: skip
    _prepare(config, task, world.device)
    base = model.config
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    written: list[Path] = []

    def describe(done: int, seconds: float) -> WorldModelConfig:
        """The config of the model as it is."""
        provenance = {
            "model": plan.model,
            "data": [{"task": t.name} | t.train.describe() for t in plan.tasks],
            "steps": done,
            "best_step": task.best["step"],
            "seconds": round(seconds, 1),
            "machine": machine(world.device),
            **run.told_sittings(),
        }
        described = replace(
            adapter.config, space=model.space, license=plan.license, provenance=provenance,
            recipe=json.loads(to_json(config)) | {"command": plan.command},
        )  # fmt: skip
        tuned = config.tune if config.tune in ("encoder", "all") else base.tuned
        return base.replace(
            adapters={plan.adapter: described}, decoder=None, tuned=tuned, metrics=_kept_metrics(config, base)
        )

    def export(done: int, seconds: float) -> None:
        """Write the model folder, with the weights of the best validation so far."""
        with task.at_best():
            described = describe(done, seconds)
            if written and not config.tunes_encoder:
                save_adapter(plan.out, described, plan.adapter, adapter)
            else:
                save_model(plan.out, described, model, adapters={plan.adapter: adapter})
        written.append(plan.out)

    if not train(task, source, config, run, export, world) or not world.is_main:
        return None
    return _report(config, plan, trained, world.device)


def _kept_metrics(config: FinetuneConfig, base: WorldModelConfig) -> Json:
    """Scores of the base model that what comes out has too: none of another encoder, none of a decoder."""
    if config.tunes_encoder or config.branch == "student":
        return {}
    return {
        name: metric
        for name, metric in base.metrics.items()
        if not (isinstance(metric, dict) and "predicted" in metric)
    }


def make_adapter(config: FinetuneConfig, model: WorldModel, tasks: Sequence[TaskData]) -> Adapter:
    """Heads and, where it is the adapter's, the predictor, as training starts with them."""
    own: PredictorConfig | None = None
    sizes = {
        name: value
        for name, value in (("width", config.predictor_width), ("depth", config.predictor_depth))
        if value
    }
    if config.tune == "predictor":
        own = replace(model.config.predictor, **sizes)  # type: ignore[arg-type]
    elif sizes:
        raise InvalidConfigError(f"Sizes of a predictor go with --tune predictor, not {config.tune}.")
    described = AdapterConfig(
        tasks={
            t.name: TaskConfig(
                kind=config.task,
                labels=t.labels,
                head=config.head,
                batch_norm=config.batch_norm,
                channels=config.channels,
            )
            for t in tasks
        },
        space=model.space,
        reads="predictor" if config.uses_predictor else "encoder",
        predictor=own,
        output=config.output,
    )
    adapter = Adapter(described, model.config)
    if adapter.predictor is not None and config.init == "pretrained":
        adapter.predictor.load_state_dict(model.predictor.state_dict())
    elif config.tune == "all" and config.init == "random":
        fresh = WorldModel(model.config.replace(adapters={}, decoder=None))
        model.predictor.load_state_dict(fresh.predictor.state_dict())
    return adapter


def _source(
    config: FinetuneConfig, plan: Finetuning, model: WorldModel, images: str, world: World, run: RunFolder
) -> TaskSource:
    lengths = [len(task.train) for task in plan.tasks]
    if not config.cache_views:
        return TaskSource(training_set(plan.tasks, model.config.preprocess, config), lengths, config, images)
    paths = [path for task in plan.tasks for path in task.train.images]
    folder = plan.cache or plan.out / "cache"
    if world.is_main:
        with run.alone():
            if plan.cache is None:  # Into another folder, somebody else may be writing now.
                remove_unfinished(folder)
            cached_latents(model, paths, config, folder)
    world.wait()
    kept = LatentDataset(cached_latents(model, paths, config, folder), len(paths))
    # Reading is faster than handing from process to process.
    in_process = config.replace(data=replace(config.data, workers=0))
    return TaskSource(kept, lengths, in_process, images)


def _prepare(config: FinetuneConfig, task: FinetuneTask, device: torch.device) -> None:
    """Drop path, attention kernel, compilation and recomputation of what is trained."""
    reads = task.adapter.predictor or task.predictor
    if reads is not None:
        set_drop_path(reads.blocks, config.drop_path)
    elif task.encoder is not None:
        set_drop_path(task.encoder.blocks, config.drop_path)
    if device.type == "cpu":
        prefer_plain_attention(task)
    prepare_blocks(
        task, compiled=config.compile, recomputed=config.activation_checkpointing, random=config.drop_path > 0
    )


def _report(config: FinetuneConfig, plan: Finetuning, trained: int, device: torch.device) -> FinetuneResult:
    """Measure the folder as it was written, and record it there."""
    described = read_config(plan.out)
    own = described.adapters[plan.adapter]
    # A folder may be called like a model of the zoo.
    folder = os.path.join(".", plan.out) if str(plan.out) in ZOO else str(plan.out)
    results = []
    for data in plan.tasks:
        scores = measure(folder, data.name, data.val, str(device))
        results.append(TaskResult(task=data.name, kind=config.task, scores=scores))
    metrics = {result.task: result.scores for result in results}
    adapters = {plan.adapter: replace(own, metrics=metrics)}
    write_config(plan.out, described.replace(adapters=adapters))
    result = FinetuneResult(
        tasks=tuple(results),
        cost=cost(described, plan.adapter, trained),
        tune=config.tune, head=config.head, batch_norm=config.batch_norm,
        channels=config.channels, init=config.init,
        output=config.output, action=config.action, branch=config.branch, steps=own.provenance["steps"],
        best_step=own.provenance["best_step"],
        train_images=sum(len(t.train) for t in plan.tasks), seconds=own.provenance["seconds"],
        seed=config.seed, command=plan.command,
    )  # fmt: skip
    write_text(plan.out / RESULT_FILE, json.dumps(result.to_dict(), indent=2) + "\n")
    return result
