"""Take back what somebody did to some photographs, without knowing what it was.

Run it: python examples/restore.py REFERENCES OUT PHOTO [PHOTO ...]
REFERENCES is a folder of untouched photographs, the more and the more various the better. They are
read once; every photo is then restored in pixels as far as that is possible, and saved into OUT.
"""

import argparse
import sys
from pathlib import Path

import iwm
from iwm.edits import in_words
from iwm.images import list_images
from iwm.opening import open_rgb
from iwm.restoring import restore
from iwm.undoing import EditReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("references", type=Path, help="folder of untouched photographs")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("photos", type=Path, nargs="+", help="edited photographs")
    options = parser.parse_args()
    if options.out.resolve() in [
        path.resolve().parent for path in (options.references / "x", *options.photos)
    ]:
        parser.error(f"{options.out} holds the photographs themselves; name another folder.")

    model = iwm.load()
    files = list_images(options.references)
    reader = EditReader.fit(model, files[:: -(-len(files) // 256)])
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.photos:
        photo = open_rgb(path)
        _, report = model.undo(photo, reader)
        restored = restore(photo, report.photometry)
        restored.image.save(options.out / path.name)
        evidence = f"evidence {report.evidence:.1f} (of an edit: above {report.cutoff:.1f})"
        print(f"{path.name}: {in_words(report.photometry)}, {evidence}")
        for line in restored.lost:
            print(f"  not undone: {line}")


if __name__ == "__main__":
    try:
        main()
    except iwm.errors.IWMError as error:
        sys.exit(f"Error: {error}")
