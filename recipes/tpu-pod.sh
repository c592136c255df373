#!/usr/bin/env bash
# A Cloud TPU pod, or one VM of it, without Kubernetes: recipes/tpu-pod.sh create|train|delete
#
# gcloud runs the same command on every host; JAX finds the others by the TPU's own metadata. The
# run folder and the features lie in a bucket with hierarchical namespace, which Cloud Storage FUSE
# makes a folder that all hosts share.
set -euo pipefail
NAME=${NAME:-tsuzuri} ZONE=${ZONE:-us-west4-a} BUCKET=${BUCKET:?the name of your bucket}
TYPE=${TYPE:-v5litepod-16} # 16 chips on 4 hosts

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker all --command "$1"
}

case ${1:-} in
  create)
    gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" --accelerator-type "$TYPE" \
      --version v2-alpha-tpuv5-lite --spot
    gcloud compute tpus tpu-vm scp --recurse --zone "$ZONE" --worker all . "$NAME":tsuzuri
    on_all_hosts "sudo apt-get update && sudo apt-get install -y gcsfuse python3-venv &&
      python3 -m venv venv && venv/bin/pip install './tsuzuri[tpu]' &&
      mkdir -p bucket && gcsfuse --implicit-dirs $BUCKET bucket"
    ;;
  train)
    # Each host starts again by itself when another one ends it; all wait for all.
    on_all_hosts "PATH=\$PWD/venv/bin:\$PATH tsuzuri/recipes/again.sh tsuzuri train \
      bucket/features --run bucket/runs/pod --preset japanese-0.1b --model.dtype bfloat16 \
      --batch-size 1024 --mesh.fsdp 16 --compute.scan-layers true --steps 100000"
    ;;
  delete)
    gcloud compute tpus tpu-vm delete "$NAME" --zone "$ZONE" --quiet
    ;;
  *)
    echo "recipes/tpu-pod.sh create|train|delete" >&2
    exit 2
    ;;
esac
