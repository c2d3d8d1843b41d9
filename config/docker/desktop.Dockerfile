# The node on a PC: CPU, or an NVIDIA GPU through ONNX Runtime. This file has not been built by us yet.
#
#   docker build -f config/docker/desktop.Dockerfile -t endomust:0.1.0 .
#   docker run --rm --network=host --ipc=host endomust:0.1.0
#
# With an NVIDIA GPU (the NVIDIA Container Toolkit must be installed):
#
#   docker build -f config/docker/desktop.Dockerfile --build-arg ONNXRUNTIME='onnxruntime-gpu[cuda,cudnn]' -t endomust:0.1.0-cuda .
#   docker run --rm --network=host --ipc=host --gpus all endomust:0.1.0-cuda depth_node --ros-args -r image:=/endoscope/image_raw -p 'model.providers:=[cuda]'
#
# --ipc=host shares /dev/shm, over which Fast DDS moves images; Docker's own 64 MB are too few for them. Camera and node
# must run as the same user, or as root, to open each other's shared memory: hence the argument UID.
ARG ROS_DISTRO=jazzy
FROM ros:${ROS_DISTRO}-ros-base

# An ARG before FROM is forgotten after it.
ARG ROS_DISTRO
ARG UID=1000
ARG ONNXRUNTIME=onnxruntime
# ROS's own message packages were built for the NumPy of the distribution, which is 1.26 on Jazzy; OpenCV's wheels from
# 4.12 on ask for NumPy 2.
ARG NUMPY="numpy<2"
ARG OPENCV="opencv-python-headless<4.12"

RUN apt-get update \
 && apt-get install --yes --no-install-recommends \
      python3-pip python3-venv \
      ros-${ROS_DISTRO}-rmw-fastrtps-cpp ros-${ROS_DISTRO}-tf2-ros-py ros-${ROS_DISTRO}-ros2lifecycle \
 && rm -rf /var/lib/apt/lists/*

COPY setup.py setup.cfg pyproject.toml package.xml LICENSE README.md MANIFEST.in /opt/source/
COPY resource /opt/source/resource
COPY launch /opt/source/launch
COPY config /opt/source/config
COPY models /opt/source/models
COPY sros2 /opt/source/sros2
COPY endomust_core /opt/source/endomust_core
COPY endomust_ros /opt/source/endomust_ros

# System site packages, because rclpy lives there. Two ONNX Runtimes would share one folder, so the other one goes first.
RUN python3 -m venv --system-site-packages /opt/endomust \
 && /opt/endomust/bin/pip install --no-cache-dir "${NUMPY}" "${OPENCV}" /opt/source \
 && if [ "${ONNXRUNTIME}" != onnxruntime ]; then \
      /opt/endomust/bin/pip uninstall --yes onnxruntime \
      && /opt/endomust/bin/pip install --no-cache-dir "${NUMPY}" "${ONNXRUNTIME}"; \
    fi \
 && rm -rf /opt/source

COPY config/docker/entrypoint.sh config/docker/healthy.sh /usr/local/bin/

# The base image of Ubuntu 24.04 has a user 1000 already; what matters is the number, not the name.
RUN mkdir -p /home/endomust/.cache && chown -R "${UID}:${UID}" /home/endomust
ENV HOME=/home/endomust PATH=/opt/endomust/bin:${PATH} RMW_IMPLEMENTATION=rmw_fastrtps_cpp
USER ${UID}:${UID}
WORKDIR /home/endomust

HEALTHCHECK --interval=30s --timeout=20s --start-period=120s CMD ["/usr/local/bin/healthy.sh"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
CMD ["depth_node", "--ros-args", "-r", "image:=/endoscope/image_raw"]
