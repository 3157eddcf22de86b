"""Caption pictures: python tools/auto_label.py --input data/style_train --output data/style_train/metadata.csv."""

import sys

from lora_scripts.cli import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
