"""The Image World Model: an encoder, and a predictor that acts on its latents."""

from torch import nn

from iwm.config import WorldModelConfig
from iwm.encoder import Encoder
from iwm.images import Preprocess
from iwm.predictor import Predictor


class WorldModel(nn.Module):
    """Encoder, predictor and heads."""

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.preprocess)
        self.predictor = Predictor(config)
        self.heads = nn.ModuleDict()
        self.preprocess = Preprocess(config.preprocess)
        self.eval()
