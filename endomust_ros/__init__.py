"""The ROS 2 side of EndoMUST: images (H, W, 3) uint8 in, depth [m], coloured point cloud [m] and odometry out."""
