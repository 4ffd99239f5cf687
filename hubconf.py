"""torch.hub entry points: one per zoo name with dashes as underscores, plus `load`.

Example: `torch.hub.load("FOLDER", "iwm_tiny", source="local")`.
"""

from collections.abc import Callable
from typing import Any

from iwm.loading import load
from iwm.world_model import WorldModel
from iwm.zoo import ZOO

dependencies = ["torch", "timm", "safetensors", "pydantic", "PIL", "numpy"]

__all__ = ["dependencies", "load"]


def _entrypoint(name: str) -> Callable[..., WorldModel]:
    def entrypoint(pretrained: bool = True, **options: Any) -> WorldModel:
        return load(name, pretrained=pretrained, **options)

    entrypoint.__doc__ = f'{ZOO[name].summary}\n\nThe options are those of `iwm.load("{name}")`.'
    return entrypoint


for _name in ZOO:
    globals()[_name.replace("-", "_")] = _entrypoint(_name)
