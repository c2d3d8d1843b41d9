#!/bin/sh
# Trains what the bundles in this folder are exported from, on one GPU with many cores, every seed in a process of its own:
#   sh models/train-on-gpu.sh scenes && sh models/train-on-gpu.sh networks
# Each stage can be stopped and called again: it goes on where it was. Progress is in runs/*/*.log. SEEDS and SMALL_SEEDS name the
# seeds, and what follows the stage goes to `endomust pretrain` (depth.steps=100 to try it out). Without a GPU: DEVICE=cpu, and a day.
set -e
cd "$(dirname "$0")/.."
endomust="${PYTHON:-python3} -m endomust_core.cli"
stage=${1:?scenes or networks}
shift
export OMP_NUM_THREADS=1

train() { # configuration, network, seed, what else
    name=$1 network=$2 seed=$3
    shift 3
    mkdir -p "runs/$name-$seed"
    $endomust pretrain "config/pretrain-${name#endomust-}.yaml" --only "$network" --out "runs/$name-$seed" \
        seed="$seed" device="${DEVICE:-cuda}" "$@" >"runs/$name-$seed/$network.log" 2>&1 &
    started="$started $!"
}

case $stage in
scenes)
    $endomust pretrain config/pretrain-tiny.yaml --only scenes --out runs/endomust-tiny-1 "$@"
    ;;
networks)
    seeds=${SEEDS:-1 2 3}
    for seed in $seeds; do
        train endomust-tiny depth "$seed" "$@"
        train endomust-tiny pose "$seed" "$@"
    done
    for seed in ${SMALL_SEEDS:-$seeds}; do
        train endomust-small depth "$seed" "$@"
    done
    train endomust-tiny optical_flow 1 "$@" # the start of `endomust train`, needed once
    failed=0
    for process in $started; do wait "$process" || failed=1; done
    exit $failed
    ;;
*)
    echo "no stage $stage; choose scenes or networks" >&2
    exit 2
    ;;
esac
