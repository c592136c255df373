"""Training: the state, the step, and the loop around it."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
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

from tsuzuri import checkpoint, devices, evaluate, hosts, run_folder, tokenizer, track
from tsuzuri.attention import choose
from tsuzuri.cloud import Bucket
from tsuzuri.config import Config, ModelConfig, flatten
from tsuzuri.data import Batch, Batches, Blocks
from tsuzuri.errors import RunError, UserError
from tsuzuri.files import locked, remove
from tsuzuri.generate import Generator
from tsuzuri.losses import Loss, in_parts, objective
from tsuzuri.model import Decoder, Execution, flops_per_token, head_logits
from tsuzuri.optim import make_optimizer
from tsuzuri.sampling import Sampling
from tsuzuri.sharding import (
    BATCH,
    by_rows,
    by_rows_specs,
    check_heads,
    gathered,
    local_rows,
    make_mesh,
    on_cpu,
    own_rows,
    shardings,
    summed,
)
from tsuzuri.tokenizer import Tokenizer
from tsuzuri.track import Console, Log
from tsuzuri.watchdog import watch

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
    cfg: Config,
    run: Path,
    sources: Sequence[str] = (),
    progress: bool = True,
    profile: bool = False,
    bucket: Bucket | None = None,
) -> dict[str, Any]:
    """Trains a model in a run folder, or goes on where that run stopped.

    Where several hosts train one model (hosts.py), all of them call this with the same arguments,
    and see the same run folder; host 0 writes what is written once.

    Args:
      cfg: the run's config.
      run: the run folder; made if need be, and held for this run alone.
      sources: text files, folders or archives, or one features folder; may be empty to go on.
      progress: show what happens on stderr.
      profile: record some steps to run/profile, for TensorBoard or Perfetto.
      bucket: what `run` is a copy of, as cloud.opened gives it: each save is sent there.

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
    hosts.shared(run)
    with contextlib.ExitStack() as held, StopSignals() as stop:
        console = Console(cfg.steps, show=progress and hosts.is_first())

        def hold() -> Callable[[], None]:
            if hosts.is_first():
                return held.enter_context(locked(run, console.say))
            return lambda: None

        still_ours = hosts.each("holding the run folder", hold)
        hosts.same("what they were started with", _comparable(cfg))

        def prepare() -> None:
            track.check(cfg.track)
            for left_behind in list(run.rglob(".*.partial")):  # by a process that was killed
                remove(left_behind)
            run_folder.write_config(run, cfg, console.say)
            run_folder.prepare(sources, cfg, run, console.say, progress)
            if hosts.count() > 1:
                data(run)  # decoded once, not by all at the same time

        def data(run: Path) -> tuple[Tokenizer, dict[str, Any], Blocks, Blocks]:
            tok = tokenizer.load(run / "tokenizer")
            folder, features = run_folder.features_of(run)
            train_blocks = Blocks.open(folder, "train", tok, console.say)
            return tok, features, train_blocks, Blocks.open(folder, "held_out", tok, console.say)

        hosts.first("preparing the text", prepare)
        tok, features, train_blocks, held_out = hosts.each(
            "reading the features", lambda: data(run)
        )
        belongs_to = run_folder.identity(tok, cfg.resolved_model(tok.vocab_size), features)
        hosts.same("what they train on", belongs_to)
        batches = Batches(train_blocks, cfg.batch_size, cfg.seed)

        model_cfg = cfg.resolved_model(tok.vocab_size)
        mesh = make_mesh(cfg.mesh, cfg.batch_size, cfg.compute.accumulate)
        graphdef, init, train_steps = make_training(cfg, model_cfg, mesh)
        how, parts = execution(cfg, model_cfg, mesh), cfg.compute.accumulate
        eval_step = evaluate.make_eval_step(
            graphdef, mesh, how, loss_parts(cfg, model_cfg.outputs, mesh.size, on_cpu(mesh))
        )
        eval_batch = cfg.batch_size // parts
        checkpoints = run / "checkpoints"
        shapes = jax.eval_shape(init, jax.random.key(0))
        target = checkpoint.shapes(shapes, shardings(mesh, shapes))
        restored = checkpoint.restore(checkpoints, target, belongs_to, console.say, set_aside=True)
        state, start = restored or (init(jax.random.key(cfg.seed)), 0)
        if cfg.init_from and not restored:
            other = Path(cfg.init_from)
            params = run_folder.initial_parameters(other, tok, model_cfg, target.params)
            state = state._replace(params=params)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        console.say(
            f"{parameters:,} parameters; {features['splits']['train']['tokens']:,} tokens to train "
            f"on, {features['splits']['held_out']['tokens']:,} held out"
            + (f"; going on from step {start}" if restored else "")
        )
        generator = Generator(model_cfg, state.params, tok) if cfg.sample_every else None
        to_wandb = flatten(cfg) if cfg.track == "wandb" else None
        log = Log(run, start, console, write=hosts.is_first(), wandb=to_wandb)
        meter = Meter(cfg, model_cfg, batches)
        watchdog = held.enter_context(watch(cfg.watchdog_seconds))

        def now(doing: str) -> None:
            log.goodput.now(doing)
            watchdog.alive(doing, patience=4 if doing == "compiling" else 1)

        def save(step: int, state: TrainState) -> None:
            now("saving")
            hosts.first("holding the run folder still", still_ours)
            checkpoint.save(checkpoints, step, state, belongs_to, cfg.keep_checkpoints)
            if bucket:
                now("sending")
                send = partial(bucket.send, console.say, alive=partial(now, "sending"))
                hosts.first("sending the checkpoint", send)

        # The cadences are multiples of a call's steps, and calls begin at multiples of it, so a
        # resumed run makes the very calls that the undisturbed one would have made.
        per_call = math.gcd(
            cfg.steps_per_call, cfg.log_every, cfg.eval_every, cfg.save_every, cfg.sample_every
        )
        step, previous, stopping = start, None, False
        stop.patient = True  # from here on there is something to save
        profiler = Profiler(run / "profile" if profile else None, console.say)
        now("compiling")
        with contextlib.closing(log), contextlib.closing(profiler):
            while step < cfg.steps and not (stop.asked if hosts.count() == 1 else stopping):
                first, step = step, min(step - step % per_call + per_call, cfg.steps)
                profiler.call()
                state, metrics = train_steps(state, stack(batches, first, step, parts, mesh))
                asked = any_host(stop.asked, mesh)
                if previous:  # the device is busy with the steps after these: nothing waits
                    stopping = meter.take(*previous, log)
                    now("training")
                previous = first, metrics, asked
                if not its_time(step, cfg.eval_every, cfg.save_every, cfg.sample_every):
                    continue
                stopping = meter.take(*previous, log)
                previous = None
                if its_time(step, cfg.eval_every) and step < cfg.steps:
                    now("evaluating")
                    loss, _ = evaluate.mean_loss(
                        eval_step,
                        state.params,
                        held_out,
                        eval_batch,
                        mesh,
                        cfg.eval_blocks,
                        partial(now, "evaluating"),
                    )
                    log(step, {"held_out_loss": loss, "held_out_perplexity": math.exp(loss)})
                if its_time(step, cfg.save_every):
                    save(step, state)
                if generator and its_time(step, cfg.sample_every):
                    now("sampling")
                    log.sample(step, cfg.sample.prompt, sample(generator, state.params, cfg))
                meter.stop_clock()
                now("training")
            if previous:
                meter.take(*previous, log)
            save(step, state)
            if step < cfg.steps:
                raise Stopped(
                    f"stopped and saved at step {step}; the same command goes on from there"
                )
            now("evaluating")
            split = features["splits"]["held_out"]
            summary = evaluate.split_figures(
                eval_step,
                state.params,
                held_out,
                split,
                mesh,
                eval_batch,
                partial(now, "evaluating"),
            )
            names = ("loss", "perplexity", "bits_per_byte")
            if step > start or not log.ended:  # run again, it has nothing new to say
                log(step, {f"held_out_{k}": summary[k] for k in names} | log.goodput.figures())
        if hosts.is_first():
            run_folder.draw_loss(run)
        return summary | {"step": step}


def make_training(
    cfg: Config, model_cfg: ModelConfig, mesh: Mesh
) -> tuple[nnx.GraphDef[Decoder], Callable[[jax.Array], TrainState], Callable[..., Any]]:
    """The model's structure, the jitted initialization, and the jitted steps.

    Returns:
      graphdef: `nnx.merge(graphdef, params)` is the Decoder.
      init: key -> TrainState, made on the devices as the mesh splits it; no host holds it whole.
      train_steps: (TrainState, a Batch of N steps, each array [N, A, B/A, L]) ->
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
    how = execution(cfg, model_cfg, mesh)
    loss_of = loss_function(cfg, model_cfg, mesh)

    def gradient_of_rows(params: Any, b: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
        """The summed loss and its gradient; b is this device's rows, the sums are of all rows."""

        def gradient_of(part: Batch, key: jax.Array) -> tuple[jax.Array, Any]:
            def wanted_of(params: Any) -> tuple[jax.Array, jax.Array]:
                model = nnx.merge(graphdef, params)
                x_BLD, _ = model.hidden(
                    part.tokens_BL, part.positions_BL, None, key, part.segments_BL, how
                )
                return loss_of(model.head_weights(how), x_BLD, part.targets_BL, part.weights_BL)

            (_, loss), gradient = jax.value_and_grad(wanted_of, has_aux=True)(params)
            return loss, gradient

        def add(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, gradient_of(*part)), None

        parts = cfg.compute.accumulate
        if parts == 1:
            sums = gradient_of(jax.tree.map(lambda a: a[0], b), key)
        else:
            zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
            sums, _ = jax.lax.scan(add, zeros, (b, jax.random.split(key, parts)))
        return summed(mesh, sums, (P(), by_rows_specs(params)))

    def train_step(state: TrainState, b: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(cfg.seed), state.step)
        specs = by_rows_specs(state.params)
        rows = jax.tree.map(lambda _: P(None, *BATCH), b)
        of_rows = by_rows(mesh, gradient_of_rows, (specs, rows, P()), (P(), specs))
        sums = of_rows(state.params, b, key)
        loss, gradient = jax.tree.map(lambda sum: sum / jnp.sum(b.weights_BL), sums)

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

    everywhere = NamedSharding(mesh, P())  # each host reads the metrics
    jitted = jax.jit(train_steps, donate_argnums=0, out_shardings=(split, everywhere))
    return graphdef, jax.jit(init, out_shardings=split), jitted


def execution(cfg: Config, model_cfg: ModelConfig, mesh: Mesh) -> Execution:
    """How the Decoder is computed on this mesh.

    Raises:
      UserError: the attention asked for is not to be had here; the mesh does not divide the heads.
    """
    check_heads(mesh.shape["tensor"], model_cfg.num_kv_heads)
    how = Execution(
        attention=choose(cfg.compute, model_cfg, cfg.sequence_length, mesh),
        remat=cfg.compute.remat,
        scan_layers=cfg.compute.scan_layers,
    )
    gather = partial(gathered, mesh) if mesh.shape["fsdp"] > 1 else None
    return how._replace(gather=gather, rows=partial(own_rows, mesh))


def loss_function(cfg: Config, model_cfg: ModelConfig, mesh: Mesh) -> Loss:
    """The objective from the residual stream on, in as many parts as `compute.logits_mb` asks."""
    extras = cfg.optim.label_smoothing, cfg.optim.z_loss

    def loss(head: Any, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array) -> Any:
        return objective(head_logits(model_cfg, head, x_BTD), targets_BT, weights_BT, *extras)

    return in_parts(loss, loss_parts(cfg, model_cfg.outputs, mesh.size, on_cpu(mesh)))


def loss_parts(cfg: Config, outputs: int, devices: int, on_cpu: bool) -> int:
    """The fewest parts of a sequence whose logits are at most `compute.logits_mb` a device."""
    tokens = cfg.batch_size // cfg.compute.accumulate * cfg.sequence_length
    size = 4 * tokens * outputs / devices
    enough = size / ((cfg.compute.logits_mb or (16 if on_cpu else 1024)) * 1e6)
    divisors = (n for n in range(1, cfg.sequence_length + 1) if cfg.sequence_length % n == 0)
    return next((n for n in divisors if n >= enough), cfg.sequence_length)


def stack(batches: Batches, first: int, last: int, parts: int, mesh: Mesh) -> Batch:
    """The batches of steps first to last - 1 as one, on devices: each array [N, A, B/A, L, ...].

    Each host reads its own rows only. A is `compute.accumulate`.
    """
    rows_b = local_rows(mesh, batches.batch_size // parts)
    rows = np.concatenate([rows_b + part * (batches.batch_size // parts) for part in range(parts)])
    steps = [batches.batch(step, rows) for step in range(first, last)]
    split = NamedSharding(mesh, P(None, None, *BATCH))

    def one(*arrays: np.ndarray) -> jax.Array:
        rest = arrays[0].shape[1:]
        local = np.stack(arrays).reshape(len(steps), parts, len(rows_b), *rest)
        shape = len(steps), parts, batches.batch_size // parts, *rest
        return jax.make_array_from_process_local_data(split, local, shape)

    return jax.tree.map(one, *steps)


def any_host(asked: bool, mesh: Mesh) -> jax.Array | bool:
    """Whether `asked` holds on any host; an array that is ready when the devices are."""
    if hosts.count() == 1:
        return asked
    local = np.full(jax.local_device_count(), asked)
    split = NamedSharding(mesh, P(mesh.axis_names))
    return _any(jax.make_array_from_process_local_data(split, local, (mesh.size,)), mesh)


@partial(jax.jit, static_argnums=1)
def _any(flags: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(jnp.any(flags), NamedSharding(mesh, P()))


def _comparable(cfg: Config) -> dict[str, Any]:
    """What must be the same on all hosts."""
    versions = {name: version(name) for name in ("tsuzuri", "jax")}
    return flatten(cfg) | versions | {"devices a host": jax.local_device_count()}


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

    def take(
        self, first: int, metrics: dict[str, jax.Array], asked: jax.Array | bool, log: Log
    ) -> bool:
        """Waits for the metrics of one call, whose first step is `first`, and logs what is due.

        Returns:
          Whether some host had been asked to stop before that call: the same on all hosts.

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
            return bool(asked)
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
        log(step, line | log.goodput.figures())
        return bool(asked)

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


class Profiler:
    """Records what the device does in a few calls, after those that compile.

    `tensorboard --logdir RUN/profile` (with tensorboard-plugin-profile) shows it, and
    https://ui.perfetto.dev opens the perfetto_trace.json.gz in it.
    """

    _FIRST, _CALLS = 3, 3

    def __init__(self, folder: Path | None, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._seen, self._recording = 0, False

    def call(self) -> None:
        """A call of the device begins."""
        self._seen += 1
        if self._seen == self._FIRST + self._CALLS:
            self.close()
        elif self._folder and self._seen == self._FIRST:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._recording = True

    def close(self) -> None:
        """Writes what was recorded."""
        if self._recording:
            jax.profiler.stop_trace()
            self._recording = False
            self._say(f"profile: {self._folder}; tensorboard --logdir, or ui.perfetto.dev")


class StopSignals:
    """Ctrl-C and SIGTERM while it is entered; outside the main thread they are left alone.

    Attributes:
      asked: one has come. It stays true where a library swallowed the KeyboardInterrupt.
      patient: the first one is only noted, for who looks at `asked`; else it interrupts at once. A
        second one always does. Out of the block it leaves as Stopped if it was SIGTERM's: who sent
        that starts the run again.
    """

    def __init__(self) -> None:
        self.asked = self.patient = False
        self._last = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._come)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is KeyboardInterrupt and self._last == signal.SIGTERM:
            raise Stopped("stopped by SIGTERM; the same command goes on from what is saved")

    def _come(self, number: int, frame: Any) -> None:
        again, self.asked, self._last = self.asked, True, number
        if again or not self.patient:
            raise KeyboardInterrupt
