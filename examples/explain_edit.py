"""Read the photometric edit between two photographs, and check the answer in pixels.

Run it: python examples/explain_edit.py BEFORE AFTER
It prints the edit in words, how sure it is, what else it might be, and how far the edit, applied
to the first photograph, is from the second one.
"""

import argparse
import sys
from pathlib import Path

import iwm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("before", type=Path, help="the photograph as it was")
    parser.add_argument("after", type=Path, help="the edited one")
    options = parser.parse_args()

    model = iwm.load()
    action, report = model.infer_action(options.before, options.after)
    print(report)

    # Blur is a sigma in pixels of the model's input, so that is where the edit is repeated.
    before, after = model.preprocess([options.before, options.after])
    left = (action.apply(before) - after).abs().mean()
    print(f"pixels differ by {(before - after).abs().mean():.3f}, after the edit by {left:.3f}")


if __name__ == "__main__":
    try:
        main()
    except iwm.errors.IWMError as error:
        sys.exit(f"Error: {error}")
