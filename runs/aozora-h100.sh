#!/usr/bin/env bash
# jax-llm's result in minutes on one H100, then the same quality in one: NanoLM, then llama and Muon.
#
# To compare: NanoLM's 5000 steps took about 20 minutes on one A100 and came to a held-out loss near
# 5.9 nats a token. Asked here: 170 s, and with the second recipe no more loss in 60 s. The seconds
# of the steps alone are "training" in the last line of metrics.jsonl. Neither is measured yet.
# Needs: a GPU with 80 GB and bfloat16; the package `datasets`, or a copy of the site by --source.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -e data/aozora ] || tsuzuri prepare aozora --books 10246 --out data/aozora
# As in aozora.sh, but computed in bfloat16.
tsuzuri train data/aozora --run runs/aozora-h100 --preset nanolm --model.dtype bfloat16 \
  --model.num-layers 12 --model.embed-dim 512 --model.num-heads 8 --model.head-dim 8 \
  --model.dropout 0.1 --learning-rate 0.001 --steps 5000 --batch-size 128 --sequence-length 256 \
  --tokenizer.kind whitespace --tokenizer.vocab-size 50304 --tokenizer.sample-mb 600 \
  --features.held-out 0.01 --eval-every 500 --save-every 5000 --sample-every 0
# A fifth of the tokens, in the same words, so that the two losses compare.
tsuzuri train data/aozora --run runs/aozora-h100-llama --preset llama --size small \
  --model.dtype bfloat16 --model.num-layers 12 --model.embed-dim 512 --model.num-heads 8 \
  --steps 1000 --batch-size 128 --sequence-length 256 \
  --tokenizer.path runs/aozora-h100/tokenizer \
  --features.held-out 0.01 --eval-every 500 --save-every 1000 --sample-every 0
tsuzuri generate runs/aozora-h100-llama --prompt "国境の 長いトンネルを抜けると雪国であった。" \
  --max-new-tokens 200 --temperature 1 --top-k 25
