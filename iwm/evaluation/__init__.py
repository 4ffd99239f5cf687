"""Scores of a world model and its latents; nothing here trains or plots."""

from iwm.evaluation.knn import KNNReport, knn
from iwm.evaluation.mrr import MRRReport, mrr
from iwm.evaluation.ranking import Scores

__all__ = ["KNNReport", "MRRReport", "Scores", "knn", "mrr"]
