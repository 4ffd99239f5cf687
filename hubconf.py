"""torch.hub entry points: one per zoo name with dashes as underscores, plus `load`.

Example: `torch.hub.load("FOLDER", "iwm_tiny", source="local")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iwm.loading import load
from iwm.zoo import ZOO as _ZOO

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from iwm.world_model import WorldModel

dependencies = ["torch", "timm", "safetensors", "pydantic", "PIL", "numpy", "huggingface_hub", "rich"]

__all__ = ["dependencies", "load"]


def _entrypoint(name: str) -> Callable[..., WorldModel]:
    def entrypoint(pretrained: bool = True, **options: Any) -> WorldModel:
        return load(name, pretrained=pretrained, **options)

    entrypoint.__doc__ = f'{_ZOO[name].summary}\n\nThe options are those of `iwm.load("{name}")`.'
    return entrypoint


for _name in _ZOO:
    globals()[_name.replace("-", "_")] = _entrypoint(_name)
