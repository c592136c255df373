"""A trained model as one object: tokenizer, parameters, generation, logits."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tsuzuri import checkpoint, cloud, corpus, evaluate, features, run_folder, tokenizer
from tsuzuri.config import ComputeConfig, Config, FeaturesConfig, TextConfig
from tsuzuri.data import Blocks
from tsuzuri.errors import UserError
from tsuzuri.generate import Completion, Generator, graphdef
from tsuzuri.model import Decoder
from tsuzuri.sampling import Sampling
from tsuzuri.sharding import on_cpu, one_device, shardings
from tsuzuri.step import loss_parts
from tsuzuri.tokenizer import Tokenizer
from tsuzuri.track import read_jsonl

_EVAL_TOKENS = 1 << 14  # looked at in one call of the device


class LanguageModel:
    """What `tsuzuri.load` returns.

    Attributes:
      config: the run's Config.
      tokenizer: `encode(text)`, `decode(ids)`.
      params: the parameters, a nested dict of float32 arrays.
      step: how long they were trained.
    """

    def __init__(
        self,
        run: Path,
        config: Config,
        tokenizer: Tokenizer,
        params: Any,
        step: int,
        say: Callable[[str], None],
    ):
        self.run, self.config, self.tokenizer = run, config, tokenizer
        self.params, self.step, self._say = params, step, say
        self.model_config = config.resolved_model(tokenizer.vocab_size)
        self._graphdef = graphdef(self.model_config)
        self._generator = Generator(self.model_config, params, tokenizer)

    @classmethod
    def load(cls, run: str | Path, say: Callable[[str], None] | None = None) -> "LanguageModel":
        """The newest sound checkpoint of a run folder; see `tsuzuri.load`."""
        say = say or (lambda message: print(message, file=sys.stderr))
        run = cloud.fetched(run, say)
        config = run_folder.read_config(run)
        tok = tokenizer.load(run / "tokenizer")
        model_config = config.resolved_model(tok.vocab_size)

        def init() -> Any:
            return nnx.to_pure_dict(nnx.split(Decoder(model_config, rngs=nnx.Rngs(0)))[1])

        mesh = one_device()
        shapes = {"params": jax.eval_shape(init)}
        target = checkpoint.shapes(shapes, shardings(mesh, shapes))
        belongs_to = run_folder.identity(tok, model_config)
        restored = checkpoint.restore(run / "checkpoints", target, belongs_to, say)
        if restored is None:
            raise UserError(f"{run} holds no checkpoint yet: train it first")
        return cls(run, config, tok, restored[0]["params"], restored[1], say)

    def generate(self, prompt: str = "", **sampling: Any) -> str:
        """The continuation of a prompt, which may be empty: a beginning.

        Args:
          prompt: the text to go on with.
          **sampling: fields of `sampling.Sampling`: temperature, top_k, max_new_tokens, seed ...
        """
        return self.generate_many([prompt], Sampling(**sampling))[0].text

    def generate_many(
        self,
        prompts: Sequence[str],
        sampling: Sampling,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """Continuations of many prompts at once; see `Generator.generate`."""
        return self._generator.generate(prompts, sampling, on_text, self._say)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The scores of the token after each of `ids`, float32 [T, V].

        Raises:
          UserError: no ids, more than the context holds, or one outside the vocabulary.
        """
        cfg = self.model_config
        if not 0 < len(ids) <= cfg.context_length:
            raise UserError(f"{len(ids)} ids given; the model takes 1 to {cfg.context_length}")
        if not all(0 <= i < cfg.vocab_size for i in ids):
            raise UserError(f"an id is outside the vocabulary of {cfg.vocab_size}")
        return np.asarray(_logits(self._graphdef, self.params, jnp.asarray([list(ids)])))[0]

    def facts(self) -> dict[str, Any]:
        """What is known of the model, for who comes after: the model card says it."""
        cfg = self.config
        known: dict[str, Any] = {
            "run": self.run.name,
            "preset": cfg.preset,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.params)),
            "steps": self.step,
            "tokens_seen": self.step * cfg.batch_size * cfg.sequence_length,
            "optimizer": cfg.optim.optimizer,
            "learning_rate": cfg.learning_rate,
            "init_from": Path(cfg.init_from).name,
            "tsuzuri": version("tsuzuri"),
        }
        if (self.run / "features.json").exists():
            found = features.read_features(self.run)
            known["sources"] = [Path(name).name for name in found["source"].get("sources", [])]
            known["training_tokens"] = found["splits"]["train"]["tokens"]
        for line in read_jsonl(self.run / "metrics.jsonl"):
            known |= {key: line[key] for key in line if key.startswith("held_out_")}
        return known

    def export(
        self,
        to: Literal["hf", "gguf"],
        out: Path,
        kind: Literal["f32", "f16", "q8_0"] = "f16",
    ) -> None:
        """Writes the model for other programs: Hugging Face transformers, or llama.cpp.

        Args:
          to: hf makes a folder, gguf a file.
          out: its path; nothing may be there.
          kind: of the numbers in a gguf: f32, f16 or q8_0.

        Raises:
          UserError: `out` is taken; the format cannot hold this model or tokenizer exactly.
          RunError: it cannot be written.
        """
        if out.exists():
            raise UserError(f"{out} is there already; choose another --out")
        what = self.model_config, self.params, self.tokenizer, out
        if to == "hf":
            from tsuzuri.interop import hf

            hf.export(*what, self.facts(), self._say)
        else:
            from tsuzuri.interop import gguf

            gguf.export(*what, kind, self.facts(), self._say)

    def evaluate(self, sources: Sequence[str], text: TextConfig, folder: Path) -> dict[str, Any]:
        """The figures of `tsuzuri eval`: over the held-out split, or over a text of one's own.

        Args:
          sources: the text; empty for the run's own held-out split.
          text: how to read it.
          folder: where the features of that text may be written.
        """
        if sources:
            split = "train"  # with nothing held out, that is all of it
            packing = FeaturesConfig(held_out=0.0)
            if (self.run / "features.json").exists():  # blocks as the model knows them
                trained_on = features.read_features(self.run)
                packing = dataclasses.replace(packing, packing=trained_on["packing"])
                if packing.packing == "document":
                    packing = dataclasses.replace(packing, stride=trained_on["stride"])
            features.featurize(
                lambda: corpus.read(sources, text, self._say),
                self.tokenizer,
                folder,
                self.config.sequence_length,
                packing,
                self.config.seed,
                {"sources": list(sources)},
                self._say,
                progress=False,
            )
            found = features.read_features(folder)
        else:
            split = "held_out"
            folder, found = run_folder.features_of(self.run)
        mesh, length = one_device(), self.config.sequence_length
        # One device, where many may have trained: fewer blocks at a time, and logits in parts.
        batch = min(self.config.batch_size, max(1, _EVAL_TOKENS // length))
        alone = dataclasses.replace(self.config, batch_size=batch, compute=ComputeConfig())
        parts = loss_parts(alone, self.model_config.outputs, 1, on_cpu(mesh))
        figures = evaluate.split_figures(
            evaluate.make_eval_step(self._graphdef, mesh, parts=parts),
            self.params,
            Blocks.open(folder, split, self.tokenizer, self._say),
            found["splits"][split],
            mesh,
            batch,
        )
        return figures | {"step": self.step}


@jax.jit(static_argnums=0)
def _logits(graphdef: nnx.GraphDef[Decoder], params: Any, tokens_BT: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, params)(tokens_BT)
