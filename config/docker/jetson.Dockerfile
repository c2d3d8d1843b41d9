# The node on a Jetson with JetPack 6, through ONNX Runtime's CUDA provider. Neither built nor run by us yet.
#
#   docker build -f config/docker/jetson.Dockerfile --build-arg ORT_INDEX=URL -t endomust:0.1.0-jetson .
#   docker run --rm --runtime nvidia --network=host --ipc=host -v endomust-cache:/home/endomust/.cache endomust:0.1.0-jetson
#
# ORT_INDEX is the address of a package index with onnxruntime-gpu for aarch64 and this JetPack's CUDA, such as that of
# the Jetson AI Lab (its folder jp6/cu126): the public index has no such package. ORT_WHEEL may name a wheel instead.
# BASE must carry the CUDA of the JetPack that runs on the board: r36.4 is JetPack 6.1 and 6.2. Its TensorRT 10.3 gives
# wrong depth for vision transformers, so the provider here is cuda; docs/deploy.md says more.
ARG BASE=dustynv/ros:humble-desktop-l4t-r36.4.0
FROM ${BASE}

ARG ROS_DISTRO=humble
ARG UID=1000
ARG ORT_INDEX=""
ARG ORT_WHEEL="onnxruntime-gpu"
# The message packages of this image were built for NumPy 1.
ARG NUMPY="numpy<2"
ARG OPENCV="opencv-python-headless<4.12"

RUN test -n "${ORT_INDEX}" || test "${ORT_WHEEL}" != onnxruntime-gpu \
 || { echo "give --build-arg ORT_INDEX=URL or ORT_WHEEL=URL, see the head of config/docker/jetson.Dockerfile"; exit 1; }

RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*

COPY setup.py setup.cfg pyproject.toml package.xml LICENSE README.md MANIFEST.in /opt/source/
COPY resource /opt/source/resource
COPY launch /opt/source/launch
COPY config /opt/source/config
COPY models /opt/source/models
COPY sros2 /opt/source/sros2
COPY endomust_core /opt/source/endomust_core
COPY endomust_ros /opt/source/endomust_ros

# --no-deps: the project asks for onnxruntime, which would share its folder with onnxruntime-gpu. The extra index comes
# last, and for that one package only: indexes for boards also carry other packages, in other versions.
RUN python3 -m venv --system-site-packages /opt/endomust \
 && /opt/endomust/bin/pip install --no-cache-dir --upgrade pip "setuptools>=70.1" wheel \
 && /opt/endomust/bin/pip install --no-cache-dir "${NUMPY}" "${OPENCV}" "PyYAML>=5.4" "rosbags>=0.11" \
 && /opt/endomust/bin/pip install --no-cache-dir --no-deps --no-build-isolation /opt/source \
 && /opt/endomust/bin/pip install --no-cache-dir coloredlogs flatbuffers packaging protobuf sympy \
 && if [ -n "${ORT_INDEX}" ]; then INDEX="--index-url=${ORT_INDEX}"; else INDEX="--no-index"; fi \
 && /opt/endomust/bin/pip install --no-cache-dir --no-deps "${INDEX}" "${ORT_WHEEL}" \
 && rm -rf /opt/source

COPY config/docker/entrypoint.sh config/docker/healthy.sh /usr/local/bin/

RUN mkdir -p /home/endomust/.cache && chown -R "${UID}:${UID}" /home/endomust
ENV HOME=/home/endomust PATH=/opt/endomust/bin:${PATH} ROS_DISTRO=${ROS_DISTRO} RMW_IMPLEMENTATION=rmw_fastrtps_cpp
# On a Jetson the devices of the GPU belong to the group video.
USER ${UID}:video
WORKDIR /home/endomust

HEALTHCHECK --interval=30s --timeout=20s --start-period=180s CMD ["/usr/local/bin/healthy.sh"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
CMD ["depth_node", "--ros-args", "-r", "image:=/endoscope/image_raw", "-p", "model.providers:=[cuda]"]
