"""Find, in a folder of photographs, what one of them would look like after an action.

Run it: python examples/retrieve.py PHOTO FOLDER
It prints, for three actions, the nearest photographs of the folder to the transformed latent.
"""

import argparse
import sys
from pathlib import Path

import iwm
from iwm.images import list_images

ACTIONS = {
    "darker": iwm.Action(brightness=0.6),
    "in grayscale": iwm.Action(grayscale=True),
    "with another hue": iwm.Action(hue=0.15),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", type=Path, help="the photograph to start from")
    parser.add_argument("folder", type=Path, help="photographs to search, subfolders too")
    options = parser.parse_args()

    model = iwm.load()
    latent = model.encode(options.photo)
    bank = iwm.Bank.from_images(model, list_images(options.folder))
    for words, action in ACTIONS.items():
        hits = bank.search(model.apply_action(latent, action), k=3)
        print(f"{options.photo.name} {words}:")
        for path, distance in zip(hits.ids[0], hits.distances[0].tolist(), strict=True):
            print(f"  {distance:7.2f}  {path}")


if __name__ == "__main__":
    try:
        main()
    except iwm.errors.IWMError as error:
        sys.exit(f"Error: {error}")
