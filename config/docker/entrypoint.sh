#!/usr/bin/env bash
# Sources ROS, then becomes the command, so that docker stop reaches the node itself. Images that build ROS from source
# keep it in install/.
set -eo pipefail

for setup in "/opt/ros/${ROS_DISTRO}/setup.bash" "/opt/ros/${ROS_DISTRO}/install/setup.bash"; do
  if [[ -f "${setup}" ]]; then
    # shellcheck disable=SC1090
    source "${setup}"
    break
  fi
done

exec "$@"
