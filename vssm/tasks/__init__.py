"""Tasks: what a network is trained for. Heads, losses and metrics over any timm model; no trainer in here."""
