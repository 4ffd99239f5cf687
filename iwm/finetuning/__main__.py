"""`python -m iwm.finetuning`: what `iwm finetune` is, for `torchrun` to start in many processes.

torchrun --nproc-per-node 8 -m iwm.finetuning --model org/name --data DIR --out RUN
"""

import sys

from iwm.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["finetune"]
    main()
