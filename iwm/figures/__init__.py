"""The paper's pictures of a world model, for any model and any photographs [arXiv 2403.00504].

`retrieval` is figures 1 and S5 to S8, `sweep` S9 to S11, `similarity` S3, `invariant` S4. For each,
a file computes numbers, typed and without a plot, and a second, `..._picture`, draws them.
matplotlib is imported when something is drawn or checked, and not before.
"""

from iwm.figures.picture import check_picture
from iwm.figures.retrieval_picture import save_retrievals

__all__ = ["check_picture", "save_retrievals"]
