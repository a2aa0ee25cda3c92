"""SmolLM2-135M-Instruct as an ordinary model folder: what `search-r3 base smol` makes, in a folder of choice.

python results/smol/smol_base.py --output runs/smol/base
"""

import argparse
from pathlib import Path

from search_r3_mteb.encoder.packaged import make_base

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--output", type=Path, required=True)
if __name__ == "__main__":
    print(make_base("smol", parser.parse_args().output))
