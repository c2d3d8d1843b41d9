"""The training side: networks, losses, checkpoints, export. Only here and in simulation/ is torch imported."""
