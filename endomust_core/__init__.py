"""EndoMUST without ROS: endoscope image -> depth [m], camera motion [m, rad], point cloud; numpy in, numpy out."""

__version__ = "0.1.0"
