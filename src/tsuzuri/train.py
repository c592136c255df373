"""Training: the loop around the step, and what stops it."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tsuzuri import checkpoint, evaluate, hosts, run_folder, tokenizer, track
from tsuzuri.cloud import Bucket
from tsuzuri.config import Config, flatten
from tsuzuri.data import Batches, Blocks
from tsuzuri.errors import interrupt, interrupted
from tsuzuri.files import locked, remove
from tsuzuri.generate import Generator
from tsuzuri.meter import Meter, Profiler, its_time
from tsuzuri.sampling import Sampling
from tsuzuri.sharding import make_mesh, on_cpu, shardings
from tsuzuri.step import TrainState, execution, loss_parts, make_training, stack
from tsuzuri.tokenizer import Tokenizer
from tsuzuri.track import Console, Log
from tsuzuri.watchdog import watch


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
    run_folder.check_sources(sources, run)
    hosts.shared(run)
    with contextlib.ExitStack() as held, StopSignals() as stop:
        console = Console(cfg.steps, show=progress and hosts.is_first())

        def hold() -> Callable[[], None]:
            if hosts.is_first():
                return held.enter_context(locked(run, console.say))
            return lambda: None

        still_ours = hosts.each("holding the run folder", hold)
        hosts.same("what they were started with", _comparable(cfg))
        # What these refuse they refuse now: not after hours of features, and before it is recorded.
        mesh = make_mesh(cfg.mesh, cfg.batch_size, cfg.compute.accumulate)
        execution(cfg, cfg.resolved_model(vocab_size=0), mesh)

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
        # From here on a signal is only noted: soon there is something to save, and an interrupt
        # inside of XLA's compiler, which `init` needs, would make the process crash at its end.
        stop.patient = True
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
                    log(
                        step,
                        {"held_out_loss": loss, "held_out_perplexity": evaluate.perplexity(loss)},
                    )
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


def sample(generator: Generator, params: Any, cfg: Config) -> str:
    """A text by the model as it is now."""
    generator.params = params
    sampling = Sampling(
        temperature=cfg.sample.temperature,
        top_k=min(cfg.sample.top_k, generator.tokenizer.vocab_size),
        max_new_tokens=cfg.sample.max_new_tokens,
        seed=cfg.seed,
    )
    return generator.generate([cfg.sample.prompt], sampling)[0].text


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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if interrupted(error) and self._last == signal.SIGTERM:
            raise Stopped("stopped by SIGTERM; the same command goes on from what is saved")

    def _come(self, number: int, frame: Any) -> None:
        again, self.asked, self._last = self.asked, True, number
        if again or not self.patient:
            interrupt(number, frame)
