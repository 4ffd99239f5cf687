"""iwm: the open model zoo for Image World Models [arXiv 2403.00504].

An encoder turns an image into patch latents; a world model applies photometric actions to
them without touching pixels again.

    import iwm

    model = iwm.load()
    latent = model.encode("photo.jpg")
    moved = model.apply_action(latent, iwm.Action(brightness=1.4, hue=0.1))

Names are imported when first used: `import iwm` alone loads no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iwm import errors, evaluation
    from iwm.actions import Action, Photometry
    from iwm.bank import Bank, SearchResult
    from iwm.config import WorldModelConfig
    from iwm.finding import list_models
    from iwm.index.library import Index
    from iwm.latent import Latent
    from iwm.loading import load
    from iwm.tasks import Classification
    from iwm.world_model import WorldModel

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Bank",
    "Classification",
    "Index",
    "Latent",
    "Photometry",
    "SearchResult",
    "WorldModel",
    "WorldModelConfig",
    "__version__",
    "errors",
    "evaluation",
    "list_models",
    "load",
]

_HOMES = {
    "Action": "iwm.actions",
    "Bank": "iwm.bank",
    "Classification": "iwm.tasks",
    "Index": "iwm.index.library",
    "Latent": "iwm.latent",
    "Photometry": "iwm.actions",
    "SearchResult": "iwm.bank",
    "WorldModel": "iwm.world_model",
    "WorldModelConfig": "iwm.config",
    "list_models": "iwm.finding",
    "load": "iwm.loading",
}


_MODULES = ("edits", "errors", "evaluation", "figures", "images", "index", "planning", "undoing")
"""Parts of the package that `import iwm` gives, as it gives names."""

if not TYPE_CHECKING:  # Where it would make every misspelt name a good one.

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(_HOMES[name]), name)
        elif name in _MODULES:
            value = importlib.import_module(f"iwm.{name}")
        else:
            from iwm.errors import nearest

            raise AttributeError(f'module "iwm" has no attribute "{name}".{nearest(name, __all__)}')
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
