"""K actions on one latent, beside transforming K times in pixels and encoding again.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/act.py --rounds 5

Same machine, same process, in turn. Beside the ratio of times stands the ratio of floating-point
operations, counted and not estimated: what the predictor costs is not the network's fault alone.
With --predictors the rest is as the model has it, at random weights, and the predictor is each of three in
turn: ours, the paper's layout with our conditioning, and that with its source tokens shared by all actions.
With --cpu-time the processor's time is taken, which other programs on the machine disturb less;
it is the time of one thread if there is one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import iwm
from iwm.actions import stack_actions
from iwm.photometry import transform

PREDICTORS = {
    "inplace, adaln": {"layout": "inplace", "conditioning": "adaln"},
    "append, adaln": {"layout": "append", "conditioning": "adaln"},
    "append, adaln, shared source": {"layout": "append", "conditioning": "adaln", "share_source": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="iwm-tiny")
    parser.add_argument("--actions", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--predictors", action="store_true", help="instead of the model's own, three")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tick = time.process_time if options.cpu_time else time.perf_counter
    print(f"{options.model}, {options.device}, {options.threads} threads, PyTorch {torch.__version__}")
    print(f"{'dtype':10}{'K':>5}{'act ms':>10}{'encode ms':>11}{'time':>7}{'FLOP':>7}{'time/FLOP':>11}")
    for dtype in (torch.float32, torch.bfloat16):
        own = iwm.load(options.model, device=options.device, dtype=dtype)
        for name, predictor in (PREDICTORS if options.predictors else {"": {}}).items():
            model = own
            if predictor:
                print(name, flush=True)
                changed = replace(own.config.predictor, **predictor)  # type: ignore[arg-type]
                model = iwm.WorldModel(own.config.replace(predictor=changed)).to(options.device, dtype)
            for count in options.actions:
                report(model, count, options.rounds, tick, str(dtype)[6:])


def report(model: iwm.WorldModel, count: int, rounds: int, tick: Callable[[], float], dtype: str) -> None:
    """One line: milliseconds of both ways, medians of `rounds`, and their ratio."""
    size = model.preprocess.size
    device = model.encoder.mean.device
    pixels = torch.rand(1, 3, size, size, device=device)
    actions = iwm.Action.sample(count, seed=1)
    params = stack_actions(actions)[:, 1]
    latent = model.encode(pixels)

    def act() -> object:
        return model.apply_action(latent, actions)

    def encode_again() -> object:
        return model.encode(transform(pixels.expand(count, -1, -1, -1), params), batch_size=64)

    def seconds(work: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = tick()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return tick() - started

    flops = []
    for work in (act, encode_again):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()  # Plain attention: not every PyTorch counts the fused kernel of CPUs.
        flops.append(counter.get_total_flops())
        work()  # Warms up.
    pairs = [(seconds(act), seconds(encode_again)) for _ in range(rounds)]
    acting, encoding = (statistics.median(column) * 1e3 for column in zip(*pairs, strict=True))
    ratio, ideal = statistics.median(a / b for a, b in pairs), flops[0] / flops[1]
    print(
        f"{dtype:10}{count:5}{acting:10.1f}{encoding:11.1f}{ratio:7.2f}{ideal:7.2f}{ratio / ideal:11.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
