"""`python -m iwm.pretraining`: what `iwm pretrain` is, for `torchrun` to start in many processes.

torchrun --nproc-per-node 8 -m iwm.pretraining --recipe iwm-equi-18-384 --data DIR --out RUN
"""

import sys

from iwm.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["pretrain"]
    main()
