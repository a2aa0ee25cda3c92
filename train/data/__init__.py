"""Training rows: sources, mixing, decontamination, hard negatives."""
