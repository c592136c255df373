"""The README.md that goes with an exported model: what is known of it, and no more.

Format: huggingface.co/docs/hub/model-cards (YAML between dashes, then Markdown).
"""

from collections.abc import Mapping
from typing import Any

from tsuzuri.config import ModelConfig

# What a reader wants to know, by the names that `facts` gives it. Others are written as they are.
_WANTED = {
    "run": "Run",
    "preset": "Preset",
    "parameters": "Parameters",
    "sources": "Training data",
    "data_licence": "Licence of the data",
    "training_tokens": "Tokens in the training data",
    "tokens_seen": "Tokens trained on",
    "steps": "Steps",
    "held_out_loss": "Held-out loss (nats per token)",
    "held_out_bits_per_byte": "Held-out bits per byte",
    "tsuzuri": "Version of tsuzuri",
}
_SHAPE = ("num_layers", "num_heads", "num_kv_heads", "embed_dim", "head_dim", "mlp_dim")
_SHAPE += ("vocab_size", "context_length")

_CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- tsuzuri
---

# {title}

A causal language model (`{architecture}`), {origin}, and what it writes may be false.

## What is known

| | |
|---|---|
{known}

{unknown}

## How to use it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer("", return_tensors="pt")  # a prompt; the tokenizer puts what begins a text first
ids = model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.8, top_k=40)
print(tokenizer.decode(ids[0], skip_special_tokens=True))
```

The model sees {context_length} tokens at most.
"""


def model_card(architecture: str, cfg: ModelConfig, facts: Mapping[str, Any]) -> str:
    """The text of README.md.

    Args:
      architecture: the class of transformers that holds the model.
      cfg: the resolved ModelConfig.
      facts: what is known, by the names of `_WANTED`, and what else there is to say. What is empty
        is as good as absent: the card says that it is not known.
    """
    given = {key: value for key, value in facts.items() if value not in (None, "", [])}
    known = {_WANTED.get(key, key.replace("_", " ")): value for key, value in given.items()}
    known |= {f"model.{key}": getattr(cfg, key) for key in _SHAPE}
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in known.items()]
    absent = [label for key, label in _WANTED.items() if key not in given]
    return _CARD.format(
        title=_cell(facts.get("run") or "A language model"),
        architecture=architecture,
        origin=_origin(given),
        known="\n".join(lines),
        unknown=f"Not known: {', '.join(absent)}." if absent else "",
        context_length=cfg.context_length,
    )


def _origin(given: Mapping[str, Any]) -> str:
    if "init_from" in given:
        return "trained with tsuzuri, from the parameters of another model. It continues texts"
    if given.get("preset") == "imported":
        return "trained elsewhere and written by tsuzuri. It continues texts"
    return (
        "trained from scratch with tsuzuri. It continues texts; it was not taught to follow "
        "instructions"
    )


def _cell(value: Any) -> str:
    """One line that ends no cell of a table."""
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    if isinstance(value, float):
        value = f"{value:.4g}"
    return " ".join(str(value).split()).replace("|", r"\|")
