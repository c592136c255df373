"""Blocks in which each place has a target of its own, as other models than language models need.

`input_ids` holds n ids a place, [rows, L n], and `targets` what the model shall give there,
[rows, L]: numbers from 0 to outputs - 1, which need not be ids, or IGNORED. Nothing is shifted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tsuzuri import files
from tsuzuri.features.packing import IGNORED, Packing
from tsuzuri.features.parquet import COUNTS, describe, figures, open_parquet, write_blocks
from tsuzuri.tokenizer import Tokenizer


def write_aligned(
    out: Path,
    tokenizer: Tokenizer,
    outputs: int,
    blocks: Mapping[str, tuple[np.ndarray, np.ndarray]],
    bytes_: Mapping[str, int],
    source: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes a features folder, whole or not at all.

    Args:
      outputs: how many things a target tells apart.
      blocks: by split, the ids [N, L, n] and the targets [N, L].
      bytes_: by split, the bytes of the text that the targets stand for.
      source: where they come from, kept in features.json.

    Returns:
      The content of features.json.

    Raises:
      RunError: the disk is full, or `out` cannot be written.
    """
    length, ids_a_place = blocks["train"][0].shape[1:]
    ends = tokenizer.begin_of_text, tokenizer.end_of_text, tokenizer.padding
    packing = Packing("aligned", length, length, 1, *ends)
    splits = {}
    with files.write_beside(out) as beside:
        beside.mkdir()
        for split, (ids, targets) in blocks.items():
            name = f"{split}-00000.parquet"
            columns = {"input_ids": ids.reshape(len(ids), -1), "targets": targets}
            with open_parquet(beside / name, tuple(columns)) as file:
                write_blocks(
                    file, {k: np.ascontiguousarray(c, np.int32) for k, c in columns.items()}
                )
            row = {"name": name, "rows": len(ids), "tokens": int((targets != IGNORED).sum())}
            row["sha256"] = files.sha256(beside / name)
            counts = dict.fromkeys(COUNTS, 0) | {"documents": 1, "bytes": bytes_[split]}
            counts |= {"characters": bytes_[split], "entropy_bits": float("nan")}
            splits[split] = figures(counts, [row])
        tokenizer.save(beside / "tokenizer")
        features = describe(
            packing, tokenizer, 0, 0, source, splits, outputs=outputs, ids_a_place=ids_a_place
        )
        files.write_json(beside / "features.json", features)
    return features
