"""Training side of the project: networks, losses, checkpoints, export. The only folder, with simulation/, that may import torch."""
