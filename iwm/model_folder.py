"""What a model folder holds: the names of its files, and its config. It needs no torch.

`iwm.checkpoint` reads and writes the tensors.
"""

from __future__ import annotations

from pathlib import Path

from iwm.config import WorldModelConfig
from iwm.counting import count_statistics
from iwm.errors import InvalidConfigError, WeightsUnavailableError
from iwm.files import write_text
from iwm.model_card import CARD_FILE, may_replace, write_card

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
STUDENT_FILE = "student.safetensors"
DECODER_FILE = "decoder.safetensors"
TASK_FILES = "task-*.safetensors"
EXPORT_FILE = "export.json"
"""Of a model for another runtime."""
MAX_CONFIG_BYTES = 1 << 22
"""Labels take most of it: 20,000 of a taxonomy, a line each, are about 1 MB."""


def task_file(adapter: str) -> str:
    """Name of an adapter's file."""
    return f"task-{adapter}.safetensors"


def read_config(folder: Path) -> WorldModelConfig:
    """The config of a model folder.

    Raises:
        WeightsUnavailableError: the folder has no config.
        InvalidConfigError: it has one that cannot be used.
    """
    path = folder / CONFIG_FILE
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InvalidConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes: not a model config.")
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise WeightsUnavailableError(
            f"{folder} is not a model folder: it has no {CONFIG_FILE}. Expected what "
            "model.save_pretrained(folder) or `iwm pretrain --out` writes."
        ) from error
    except OSError as error:
        raise WeightsUnavailableError(f"Cannot read {path}: {error}") from error
    try:
        return WorldModelConfig.from_json(text)
    except InvalidConfigError as error:
        raise InvalidConfigError(f"{path}: {error}") from error


def write_config(folder: Path, config: WorldModelConfig, *, new_card: bool = True) -> None:
    """Write the model card, then the config: a folder that has a config is whole.

    Args:
        folder: of the model.
        config: what both say.
        new_card: write one where there is none; a card that somebody has changed is kept.
    """
    card = folder / CARD_FILE
    if may_replace(card) and (new_card or card.exists()):
        write_text(card, write_card(config))
    write_text(folder / CONFIG_FILE, config.to_json())


def max_weight_bytes(config: WorldModelConfig, file: str = WEIGHTS_FILE) -> int:
    """The largest file of weights that can belong to a config: float64, and a header."""
    values = config.decoder_parameters if file == DECODER_FILE else config.parameters
    for name, adapter in config.adapters.items():
        if file == task_file(name):
            values = config.adapter_parameters(name) + count_statistics(adapter, config)
    return 8 * values + (1 << 20)
