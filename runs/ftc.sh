#!/usr/bin/env bash
# The First Two Character Input Method: ftc.sh [TEXT] makes its tables and its plot from a text.
#
# To compare: in the slides a 2-gram has 0.522 of Shakespeare's words and 0.455 of WikiText-2's, and
# the best Transformer 0.518 and 0.462. docs/en/input-method.md has ours.
# Needs: two CPU cores and half an hour for each Transformer of a text of 5 MB; BLOCKS=1 trains one
# for each of the slides' block sizes, for which a GPU is better.
set -euo pipefail
cd "$(dirname "$0")/.."

text=${1:-data/shakespeare}
[ -e "$text" ] || tsuzuri prepare shakespeare --out "$text"
tsuzuri ime train "$text" --run runs/ftc
tsuzuri ime train "$text" --run runs/ftc-prefixes --sees prefixes
drawn=(runs/ftc-prefixes)
if [ -n "${BLOCKS:-}" ]; then
  drawn=()
  for block in 4 8 16 32 64; do
    tsuzuri ime train "$text" --run "runs/ftc-$block" --sees prefixes \
      --sequence-length "$block" --batch-size "$((4096 / block))"
    drawn+=("runs/ftc-$block")
  done
fi
tsuzuri ime eval runs/ftc --protocol seed
tsuzuri ime eval runs/ftc "${drawn[@]}" --plot runs/ftc.png
