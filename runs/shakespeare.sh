#!/usr/bin/env bash
# nanoGPT's first result, on a laptop: 0.8 million parameters on the bytes of tinyshakespeare.
#
# To compare: held-out loss 1.88 nats a character, which is a byte here: 2.71 bits per byte; about
# 3 minutes on a laptop's CPU. Its layer norms have no bias.
# Needs: any computer.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -e data/shakespeare ] || tsuzuri prepare shakespeare --out data/shakespeare
tsuzuri train data/shakespeare --run runs/shakespeare --preset gpt2 --size tiny \
  --model.attention-bias false --model.mlp-bias false --model.activation gelu \
  --tokenizer.kind bytes --features.held-out 0.1 --steps 2000 --batch-size 12 \
  --sequence-length 64 --learning-rate 1e-3 --optim.b2 0.99
tsuzuri generate runs/shakespeare --max-new-tokens 500
