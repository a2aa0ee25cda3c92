"""Training, from the source tree only: `python train/sft.py`, `python train/rl.py`, `python -m train.prepare`."""
