"""Networks, one a file, forward only: depth (ViT + DPT), pose (with intrinsics), and the encoders they stand on."""
