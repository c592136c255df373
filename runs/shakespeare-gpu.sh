#!/usr/bin/env bash
# nanoGPT's result on one GPU: 11 million parameters on the bytes of tinyshakespeare.
#
# To compare: held-out loss 1.4697 nats a character, its best, which is 2.12 bits per byte; about
# 3 minutes on an A100. It keeps the best checkpoint; here the last counts, and it may overfit.
# Needs: a GPU.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -e data/shakespeare ] || tsuzuri prepare shakespeare --out data/shakespeare
tsuzuri train data/shakespeare --run runs/shakespeare-gpu --preset gpt2 --size small \
  --model.attention-bias false --model.mlp-bias false --model.activation gelu \
  --model.dropout 0.2 --tokenizer.kind bytes --features.held-out 0.1 --steps 5000 \
  --batch-size 64 --sequence-length 256 --learning-rate 1e-3 --optim.b2 0.99 --eval-every 250
tsuzuri generate runs/shakespeare-gpu --max-new-tokens 500
