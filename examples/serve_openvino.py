"""Export the model for OpenVINO and run it there: same calls, same numbers, less time.

Run it: python examples/serve_openvino.py FOLDER PHOTO
FOLDER gets the export; a folder that has one already is used as it is. It prints how well the two
agree and what an encoding takes. Needs pip install "iwm[openvino]".
"""

import argparse
import sys
import time
from pathlib import Path

import torch.nn.functional as F

import iwm


def milliseconds(model: iwm.WorldModel, photo: Path) -> float:
    pixels = model.preprocess(photo)
    model.encode(pixels)
    started = time.perf_counter()
    for _ in range(10):
        model.encode(pixels)
    return (time.perf_counter() - started) * 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the export")
    parser.add_argument("photo", type=Path)
    options = parser.parse_args()

    model = iwm.load()
    if not (options.folder / "export.json").is_file():
        model.export(options.folder, format="openvino", precision="fp16")
    served = iwm.load(options.folder, backend="openvino")

    action = iwm.Action(brightness=0.6, grayscale=True)
    expected, found = model.predict(options.photo, action), served.predict(options.photo, action)
    cosine = F.cosine_similarity(expected.tokens.flatten(1), found.tokens.flatten(1)).item()
    print(f"PyTorch and OpenVINO agree on {action}: cosine {cosine:.5f}")
    print(f"encoding: PyTorch {milliseconds(model, options.photo):.1f} ms, ", end="")
    print(f"OpenVINO {milliseconds(served, options.photo):.1f} ms")


if __name__ == "__main__":
    try:
        main()
    except iwm.errors.IWMError as error:
        sys.exit(f"Error: {error}")
