#!/usr/bin/env bash
# How the loss falls with books and parameters: scaling-aozora.sh [ARCHIVE], of Aozora's own files.
#
# To compare: jax-llm trains one model on 100, 1000 and 10246 books, and finds that train and
# held-out loss part on the few and fall together on the many. docs/en/scaling.md has ours, of 334
# works; Kaplan's and Chinchilla's exponents stand beside those found.
# Needs: two CPU cores and 25 minutes. GPU=1 does jax-llm's books with models up to its
# size, 5000 steps each: a GPU with 24 GB or more, about two hours of an A100. Not measured yet.
set -euo pipefail
archive=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."

if [ -n "${GPU:-}" ]; then
  [ -e data/aozora ] || \
    tsuzuri prepare aozora ${archive:+--source "$archive"} --books 10246 --out data/aozora
  tsuzuri scaling data/aozora --out runs/scaling-aozora-gpu --books 100,1000,all \
    --sizes 2x128,4x256,8x384,12x512 --preset nanolm --size base --model.head-dim 8 \
    --model.dtype bfloat16 --tokenizer.kind whitespace --tokenizer.vocab-size 50304 \
    --tokenizer.sample-mb 600 --features.held-out 0.01 --held-out-tokens 500000 \
    --steps 5000 --batch-size 128 --sequence-length 256 --eval-every 100
else
  [ -e data/aozora-raw ] || \
    tsuzuri prepare aozora ${archive:+--source "$archive"} --orthography any --books 334 \
      --out data/aozora-raw
  tsuzuri scaling data/aozora-raw --out runs/scaling-aozora --books 12,37,111,all \
    --sizes 1x32,2x48,3x64,3x96 --tokenizer.vocab-size 2048 --held-out-tokens 50000 \
    --steps 1000 --batch-size 16 --sequence-length 128 --eval-every 50
fi
