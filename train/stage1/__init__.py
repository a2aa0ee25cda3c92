"""Stage 1: supervised contrastive learning."""
