"""A checkpoint on another mesh and on another number of hosts; two trainers in one run folder."""

import signal

from trainer import TINY, two

SHORT = TINY | {"steps": 16}


def test_parameters_are_the_same_on_every_mesh(start, text, tmp_path, tell):
    """Training a run that is whole restores it, does no step, and prints the SHA-256."""
    run = tmp_path / "run"

    def on(data, fsdp, tensor):
        return SHORT | {"mesh.data": data, "mesh.fsdp": fsdp, "mesh.tensor": tensor}

    def sha256(config, devices):
        trainer = start(run, config, text, env={"JAX_NUM_CPU_DEVICES": str(devices)})
        assert trainer.end() == 0, trainer.err
        return trainer.start, trainer.sha256

    begun, trained = sha256(on(8, 1, 1), 8)
    assert begun == 0 and trained
    assert sha256(on(2, 2, 2), 8) == (16, trained)
    assert sha256(on(1, 1, 1), 1) == (16, trained)
    pair = two(start, run, on(2, 2, 2), text, devices=4)
    assert [trainer.end() for trainer in pair] == [0, 0], pair[0].err + pair[1].err
    assert (pair[0].start, pair[0].sha256) == (16, trained)
    # The control: the same, but that there are steps to do.
    begun, further = sha256(on(2, 2, 2) | {"steps": 24}, 8)
    assert begun == 16 and further != trained
    tell(
        "saved on 8x1x1, restored on 2x2x2, 1x1x1 and 2 hosts x 4 devices",
        f"equal to the bit ({trained[:16]}...)",
    )
    tell("control: and 8 steps more", "other parameters")


def test_a_second_trainer_is_refused(start, text, tmp_path, tell):
    cfg = TINY | {"steps": 100_000}
    first = start(tmp_path / "run", cfg, text)
    first.until(lambda: first.done >= 8)
    second = start(tmp_path / "run", cfg, text)
    assert second.end() == 2
    assert len(second.complaints) == 1 and f"in use by process {first.pid}" in second.err
    before = first.step
    first.until(lambda: first.step > before)  # and the first one is not disturbed
    first.send(signal.SIGKILL)
    first.end()
    third = start(tmp_path / "run", cfg, text)  # the control: now it may
    third.until(lambda: third.done >= 2)
    tell("a second trainer in the folder", f"exit code 2: {second.complaints[0][-60:]}")
    tell("control: after kill -9 of the first", f"taken over, from step {third.start}")
