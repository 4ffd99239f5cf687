"""Name what is on some photographs, with every task that a model folder can do.

Run it: python examples/classify.py MODEL PHOTO [PHOTO ...]
MODEL is what `iwm finetune` made, or any model that has adapters. Each photograph is encoded once, however
many tasks there are; the three likeliest labels of each task are printed.
"""

import argparse
import sys
from pathlib import Path

import iwm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder, zoo name, or org/name on the Hub")
    parser.add_argument("photos", type=Path, nargs="+")
    options = parser.parse_args()

    model = iwm.load(options.model)
    tasks = [name for name, task in model.config.tasks.items() if task.kind == "classification"]
    if not tasks:
        parser.error(
            f"{options.model} has no classification task; examples/finetune_on_my_photos.py trains one"
        )
    latents = model.encode(options.photos)
    for task in tasks:
        answers = str(model.classify(latents, task=task, topk=3)).splitlines()  # one line a photograph
        for photo, answer in zip(options.photos, answers, strict=True):
            print(f"{photo.name}, {task}: {answer}")


if __name__ == "__main__":
    try:
        main()
    except iwm.errors.IWMError as error:
        sys.exit(f"Error: {error}")
