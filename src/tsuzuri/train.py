"""Training: the state, the step, and the loop around it."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import psutil
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tsuzuri import checkpoint, devices, evaluate, run_folder
from tsuzuri.config import Config, ModelConfig
from tsuzuri.data import Batch, Batches, Blocks, in_order
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import locked, remove
from tsuzuri.generate import Generator, Sampling
from tsuzuri.losses import objective
from tsuzuri.model import Decoder, flops_per_token
from tsuzuri.optim import make_optimizer
from tsuzuri.sharding import BATCH, make_mesh, shardings
from tsuzuri.track import Console, Log

# A run ends when so many steps in a row have a loss or a gradient that is not finite.
SKIPS_IN_A_ROW = 5


class TrainState(NamedTuple):
    """All that a checkpoint holds."""

    step: jax.Array  # int32 scalar: the steps done, which is the position in the data too
    params: Any
    opt_state: Any


class Stopped(Exception):
    """Someone asked the run to stop, and it is saved. Exit code 42: start it again."""

    exit_code = 42


def train(
    cfg: Config, run: Path, sources: Sequence[str] = (), progress: bool = True
) -> dict[str, Any]:
    """Trains a model in a run folder, or goes on where that run stopped.

    Args:
      cfg: the run's config.
      run: the run folder; made if need be, and held for this process alone.
      sources: text files, folders or archives, or one features folder; may be empty to go on.
      progress: show what happens on stderr.

    Returns:
      The figures over the whole held-out split, as `tsuzuri eval` gives them.

    Raises:
      UserError: what was given cannot be used.
      RunError: the disk is full, or the loss is not finite for several steps.
      Stopped: Ctrl-C or SIGTERM came; the run is saved, and running it again goes on from there.
    """
    for source in sources:
        if not Path(source).exists():
            raise UserError(f"{source}: no such file or folder")
    with locked(run), StopSignals() as stop:
        for left_behind in list(run.rglob(".*.partial")):  # by a process that was killed
            remove(left_behind)
        console = Console(cfg.steps, show=progress)
        run_folder.write_config(run, cfg, console.say)
        tokenizer, folder, features = run_folder.prepare(sources, cfg, run, console.say, progress)
        train_blocks = Blocks.open(folder, "train", tokenizer, console.say)
        held_out = Blocks.open(folder, "held_out", tokenizer, console.say)
        batches = Batches(train_blocks, cfg.batch_size, cfg.seed)

        model_cfg = cfg.resolved_model(tokenizer.vocab_size)
        mesh = make_mesh(cfg.mesh, cfg.batch_size)
        graphdef, init, train_steps = make_training(cfg, model_cfg, mesh)
        eval_step = evaluate.make_eval_step(graphdef)
        checkpoints = run / "checkpoints"
        belongs_to = run_folder.identity(tokenizer, model_cfg, features)
        shapes = jax.eval_shape(init, jax.random.key(0))
        target = checkpoint.shapes(shapes, shardings(mesh, shapes))
        restored = checkpoint.restore(checkpoints, target, belongs_to, console.say, set_aside=True)
        state, start = restored or (init(jax.random.key(cfg.seed)), 0)
        if cfg.init_from and not restored:
            other = Path(cfg.init_from)
            params = run_folder.initial_parameters(other, tokenizer, model_cfg, target.params)
            state = state._replace(params=params)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        console.say(
            f"{parameters:,} parameters; {features['splits']['train']['tokens']:,} tokens to train "
            f"on, {features['splits']['held_out']['tokens']:,} held out"
            + (f"; going on from step {start}" if restored else "")
        )
        generator = Generator(model_cfg, state.params, tokenizer)
        log = Log(run, start, console)
        meter = Meter(cfg, model_cfg, batches)

        # The cadences are multiples of a call's steps, and calls begin at multiples of it, so a
        # resumed run makes the very calls that the undisturbed one would have made.
        per_call = math.gcd(
            cfg.steps_per_call, cfg.log_every, cfg.eval_every, cfg.save_every, cfg.sample_every
        )
        step, previous = start, None
        stop.patient = True  # from here on there is something to save
        with contextlib.closing(log):
            while step < cfg.steps and not stop.asked:
                first, step = step, min(step - step % per_call + per_call, cfg.steps)
                state, metrics = train_steps(state, stack(batches, first, step, mesh))
                if previous:  # the device is busy with the steps after these: nothing waits
                    meter.take(*previous, log)
                previous = first, metrics
                if not its_time(step, cfg.eval_every, cfg.save_every, cfg.sample_every):
                    continue
                meter.take(*previous, log)
                previous = None
                if its_time(step, cfg.eval_every) and step < cfg.steps:
                    part = in_order(held_out, cfg.batch_size, cfg.eval_blocks)
                    loss, _ = evaluate.mean_loss(eval_step, state.params, part, mesh)
                    log(step, {"held_out_loss": loss, "held_out_perplexity": math.exp(loss)})
                if its_time(step, cfg.save_every):
                    checkpoint.save(checkpoints, step, state, belongs_to, cfg.keep_checkpoints)
                if its_time(step, cfg.sample_every):
                    log.sample(step, cfg.sample.prompt, sample(generator, state.params, cfg))
                meter.stop_clock()
            if previous:
                meter.take(*previous, log)
            checkpoint.save(checkpoints, step, state, belongs_to, cfg.keep_checkpoints)
            if step < cfg.steps:
                raise Stopped(
                    f"stopped and saved at step {step}; the same command goes on from there"
                )
            split = features["splits"]["held_out"]
            summary = evaluate.split_figures(
                eval_step, state.params, held_out, split, mesh, cfg.batch_size
            )
            log(
                step, {f"held_out_{k}": summary[k] for k in ("loss", "perplexity", "bits_per_byte")}
            )
        run_folder.draw_loss(run)
        return summary | {"step": step}


def make_training(
    cfg: Config, model_cfg: ModelConfig, mesh: Mesh
) -> tuple[nnx.GraphDef[Decoder], Callable[[jax.Array], TrainState], Callable[..., Any]]:
    """The model's structure, the jitted initialization, and the jitted steps.

    Returns:
      graphdef: `nnx.merge(graphdef, params)` is the Decoder.
      init: key -> TrainState, made on the devices as the mesh splits it; no host holds it whole.
      train_steps: (TrainState, a Batch of N steps, each array [N, B, L]) ->
        (TrainState, {name: [N]}); the given state's memory is reused. "loss" is the cross-entropy,
        whatever is minimized. A step whose loss or gradient is not finite leaves parameters and
        optimizer as they were, and says so by `sound`.
    """
    optimizer, schedule = make_optimizer(cfg)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(model_cfg, rngs=nnx.Rngs(0))))

    def init(key: jax.Array) -> TrainState:
        _, params = nnx.split(Decoder(model_cfg, rngs=nnx.Rngs(key)))
        params = nnx.to_pure_dict(params)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    split = shardings(mesh, jax.eval_shape(init, jax.random.key(0)))
    # While they work, weights are whole over fsdp: else the compiler gathers the logits' gradient
    # of the whole batch instead, which is much larger.
    at_work = jax.tree.map(
        lambda s: NamedSharding(mesh, P(*(None if axis == "fsdp" else axis for axis in s.spec))),
        split.params,
    )

    def train_step(state: TrainState, b: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)

        def wanted_of(params: Any) -> tuple[jax.Array, jax.Array]:
            params = jax.lax.with_sharding_constraint(params, at_work)
            model = nnx.merge(graphdef, params)
            logits_BLV = model(b.tokens_BL, b.segments_BL, b.positions_BL, key)
            extras = cfg.optim.label_smoothing, cfg.optim.z_loss
            return objective(logits_BLV, b.targets_BL, b.weights_BL, *extras)

        (_, loss), gradient = jax.value_and_grad(wanted_of, has_aux=True)(state.params)
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        sound = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = (optax.apply_updates(state.params, updates), opt_state)
        new = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, state[1:])
        metrics = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": schedule(state.step),
            "sound": sound,
        }
        return TrainState(state.step + 1, *new), metrics

    def train_steps(state: TrainState, batches: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.lax.scan(train_step, state, batches)

    jitted = jax.jit(train_steps, donate_argnums=0, out_shardings=(split, None))
    return graphdef, jax.jit(init, out_shardings=split), jitted


def stack(batches: Batches, first: int, last: int, mesh: Mesh) -> Batch:
    """The batches of steps first to last - 1 as one, on devices: each array [N, B, L]."""
    rows = NamedSharding(mesh, P(None, *BATCH))
    steps = [batches.batch(step) for step in range(first, last)]
    return jax.device_put(jax.tree.map(lambda *parts: np.stack(parts), *steps), rows)


def its_time(step: int, *cadences: int) -> bool:
    """Whether a step ends one of the cadences; a cadence of 0 never comes."""
    return any(every and step % every == 0 for every in cadences)


def sample(generator: Generator, params: Any, cfg: Config) -> str:
    """A text by the model as it is now."""
    generator.params = params
    sampling = Sampling(
        temperature=cfg.sample.temperature,
        top_k=cfg.sample.top_k,
        max_new_tokens=cfg.sample.max_new_tokens,
        seed=cfg.seed,
    )
    return generator.generate([cfg.sample.prompt], sampling)[0].text


class Meter:
    """Turns what the steps give into lines of metrics.jsonl, and watches for what is not finite.

    The speed is that of the steps alone: not of compilation, evaluations, saving or samples.
    """

    def __init__(self, cfg: Config, model_cfg: ModelConfig, batches: Batches):
        self._cfg, self._batches = cfg, batches
        self._flops = flops_per_token(model_cfg, cfg.sequence_length)
        peak = devices.peak(jax.devices()[0].device_kind)
        self._peak = peak * jax.device_count() if peak and model_cfg.dtype == "bfloat16" else None
        self._losses: list[float] = []  # since the last line
        self._skips = 0  # in a row
        self._timed_from: tuple[int, float] | None = None  # (step, time); None: the clock stands

    def stop_clock(self) -> None:
        """Something that is no step begins."""
        self._timed_from = None

    def take(self, first: int, metrics: dict[str, jax.Array], log: Log) -> None:
        """Waits for the metrics of one call, whose first step is `first`, and logs what is due.

        Raises:
          RunError: the loss or the gradient was not finite for SKIPS_IN_A_ROW steps.
        """
        values = {name: np.asarray(value) for name, value in metrics.items()}
        now = time.monotonic()
        for step, (loss, sound) in enumerate(
            zip(values["loss"], values["sound"], strict=True), first
        ):
            if sound:
                self._losses.append(float(loss))
                self._skips = 0
            else:
                self._skipped(step, log)
        step = first + len(values["loss"])
        if self._timed_from is None:
            self._timed_from = step, now
        if not its_time(step, self._cfg.log_every) and step < self._cfg.steps:
            return
        tokens = self._cfg.batch_size * self._cfg.sequence_length
        line: dict[str, Any] = {"tokens": step * tokens, "memory_gib": memory_gib()}
        for name in ("learning_rate", "gradient_norm"):
            line[name] = float(values[name][-1])
        if self._losses:
            line = {"loss": math.fsum(self._losses) / len(self._losses)} | line
        if step > self._timed_from[0]:
            speed = (step - self._timed_from[0]) * tokens / (now - self._timed_from[1])
            line["tokens_per_second"] = speed
            if self._peak:
                line["mfu"] = speed * self._flops / self._peak
            self._timed_from = step, now
        self._losses = []
        log(step, line)

    def _skipped(self, step: int, log: Log) -> None:
        self._skips += 1
        blocks = self._batches.indices(step).tolist()
        log(step + 1, {"skipped": True, "blocks": blocks})
        log.say(f"WARNING: step {step + 1} skipped: its loss or gradient is not finite")
        if self._skips == SKIPS_IN_A_ROW:
            raise RunError(
                f"loss or gradient not finite {self._skips} steps in a row, the last at step "
                f"{step + 1} with blocks {blocks[:4]}...; the checkpoints are sound: lower "
                "--learning-rate and train in another --run, or look at those blocks in "
                "metrics.jsonl"
            )


def memory_gib() -> float:
    """The most memory used so far: the first device's, or this process's where that is unknown."""
    stats = jax.local_devices()[0].memory_stats()
    used = stats["peak_bytes_in_use"] if stats else psutil.Process().memory_info().rss
    return round(used / 2**30, 3)


class StopSignals:
    """Ctrl-C and SIGTERM while it is entered; outside the main thread they are left alone.

    Attributes:
      asked: one has come. It stays true where a library swallowed the KeyboardInterrupt.
      patient: the first one is only noted, for who looks at `asked`; else it interrupts at once. A
        second one always does.
    """

    def __init__(self) -> None:
        self.asked = self.patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _come(self, number: int, frame: Any) -> None:
        again, self.asked = self.asked, True
        if again or not self.patient:
            raise KeyboardInterrupt
