"""Teach the model your own labels: from folders of photographs to a classifier.

Run it: python examples/finetune_on_my_photos.py FOLDER OUT [--steps 300]
FOLDER holds one subfolder a class, such as cats/ and dogs/; a tenth of every class is held out. OUT becomes a
model folder for iwm.load and for examples/classify.py. Started again, a run that was stopped goes on.
"""

import argparse
import sys
from pathlib import Path

import iwm
from iwm.finetuning.folders import read_task
from iwm.finetuning.recipes import find_recipe
from iwm.finetuning.run import Finetuning, finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="one subfolder of photographs a class")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--steps", type=int, default=300, help="of 64 photographs each")
    options = parser.parse_args()

    # The encoder stays as it is; its world model, given no action, is finetuned with a head [section 5.1].
    recipe = find_recipe("predictor-small").replace(steps=options.steps, epochs=0.0)
    data = read_task(f"mine={options.folder}")
    result = finetune(recipe, Finetuning(model="iwm-tiny", tasks=[data], out=options.out))
    if result is None:
        print("Stopped; the same command goes on.")
        return
    for name, value in result.rows():
        print(f"{name:10} {value}")

    model = iwm.load(options.out, task="mine")
    photo = data.val.images[0]  # held out: not trained on
    print(f"{photo}: {model.classify(photo, topk=3)}")


if __name__ == "__main__":
    try:
        main()
    except iwm.errors.IWMError as error:
        sys.exit(f"Error: {error}")
