#!/usr/bin/env bash
# Healthy is a node whose lifecycle state is active; ENDOMUST_NODE names it where it runs in a namespace.
set -eo pipefail

/usr/local/bin/entrypoint.sh ros2 lifecycle get "${ENDOMUST_NODE:-/endomust}" --no-daemon | grep --quiet '^active'
