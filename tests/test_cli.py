"""The verbs as a user types them: what they print, and one line for each mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tsuzuri
from tsuzuri.cli import main
from tsuzuri.corpus import CORPORA

FLAGS = ["--tokenizer.kind", "bytes", "--model.num-layers", "1", "--model.num-heads", "2"]
FLAGS += ["--model.embed-dim", "16", "--sequence-length", "32", "--batch-size", "4"]
FLAGS += ["--steps", "4", "--eval-every", "2", "--save-every", "2", "--log-every", "2"]
TEXT = "".join(f"{n}番目の綴りは{n * n}。\n" for n in range(300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A text, a run trained on it, and an own copy of Config's cache: made by the verbs alone."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    assert main(["train", str(folder / "text.txt"), "--run", str(folder / "run"), *FLAGS]) == 0
    return folder


def refused(capsys, *arguments):
    """What a verb says when it refuses: one line, exit code 2."""
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tsuzuri: ")]
    assert code == 2 and len(said) == 1, (code, said)
    return said[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.nun-layers", "3"], "did you mean '--model.num-layers'?"),
        (["--vocab-size", "300"], "did you mean '--tokenizer.vocab-size'?"),
        (["--preset", "lama"], "unknown preset 'lama'; did you mean 'llama'?"),
        (["--size", "smal"], "unknown size 'smal'; did you mean 'small'?"),
        (["--model.num-heads", "3"], "model.embed_dim 128 is not divisible by model.num_heads 3"),
        (["--learning-rate", "-1"], "learning_rate is -1.0; it must be a positive finite number"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--steps", "many"], "steps is 'many'; it must be a whole number"),
        (["--batch-size", "0"], "batch_size is 0; it must be at least 1"),
        (["--model.norm", "batchnorm"], "it must be one of layernorm, rmsnorm"),
        (["--mesh.tensor", "3"], "there are 1"),
        (["--config", "no-such.json"], "no-such.json: no such file"),
        (["--encoding", "klingon"], "--encoding klingon: unknown"),
    ],
)
def test_bad_values(capsys, folder, tmp_path, flags, message):
    said = refused(capsys, "train", folder / "text.txt", "--run", tmp_path / "r", *flags)
    assert message in said
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02" * 100, "NUL"),
        (b"\x80\xff\xa0" * 50, "--encoding"),
        ("短い。".encode(), "--sequence-length"),
    ],
)
def test_bad_texts(capsys, tmp_path, content, message):
    (tmp_path / "bad.txt").write_bytes(content)
    said = refused(capsys, "train", tmp_path / "bad.txt", "--run", tmp_path / "r", *FLAGS)
    assert message in said and ("bad.txt" in said or "training text is" in said)


def test_a_text_that_is_not_there(capsys, tmp_path):
    assert "none.txt" in refused(capsys, "train", tmp_path / "none.txt", "--run", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_another_config_shows_the_differences(capsys, folder):
    said = refused(capsys, "train", "--run", folder / "run", "--model.embed-dim", "32")
    assert "model.embed_dim 16 -> 32" in said


def test_a_config_file_is_below_flags(folder, tmp_path):
    values = {"model": {"embed_dim": 32, "num_heads": 4}, "steps": 2, "preset": "gpt2"}
    (tmp_path / "c.json").write_text(json.dumps(values))
    run = tmp_path / "r"
    command = ["train", str(folder / "text.txt"), "--run", str(run)]
    command += [*FLAGS[:2], "--config", str(tmp_path / "c.json"), "--model.num-heads", "8"]
    assert main([*command, "--sequence-length", "32", "--model.num-layers", "1"]) == 0
    made = json.loads((run / "config.json").read_text())
    assert made["model.embed_dim"] == 32 and made["model.num_heads"] == 8 and made["steps"] == 2
    assert made["preset"] == "gpt2" and made["model.positions"] == "learned"
    # Another run's config.json is such a file too; its init_from is empty.
    again = ["train", str(folder / "text.txt"), "--run", str(tmp_path / "again")]
    assert main([*again, "--config", str(run / "config.json")]) == 0
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == made


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--top-k", "9999"], "vocabulary has 258"),
        (["--top-p", "0"], "top_p is 0.0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--stop", ""], "none of them empty"),
        (["--num-samples", "0"], "--num-samples is 0"),
        (["--temprature", "1"], "did you mean '--temperature'?"),
        (["--stop", "---"], "begins with a dash is given as --stop=-..."),
    ],
)
def test_bad_sampling(capsys, folder, flags, message):
    assert message in refused(capsys, "generate", folder / "run", *flags)


def test_generate(capsys, folder):
    command = ["generate", str(folder / "run"), "--prompt", "一番目", "--max-new-tokens", "20"]
    assert main([*command, "--num-samples", "2"]) == 0
    both = capsys.readouterr().out
    assert both.count("一番目") == 2 and "--- 2" in both
    assert main(command) == 0
    one = capsys.readouterr().out
    assert main([*command, "--stream"]) == 0
    assert capsys.readouterr().out == one  # streamed or not, the same text
    assert one.strip() in both
    assert main(["generate", str(folder / "run"), "--max-new-tokens", "5"]) == 0  # no prompt
    assert main([*command[:2], "--prompt", "長" * 100, "--max-new-tokens", "5"]) == 0
    assert "its last" in capsys.readouterr().err


def test_eval(capsys, folder):
    assert main(["eval", str(folder / "run"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    keys = "loss perplexity bits_per_byte tokens bytes entropy_floor step parameters_sha256"
    assert set(figures) == set(keys.split())
    assert figures["step"] == 4 and figures["entropy_floor"] is None
    # On a text of one's own: all of it is looked at, however short.
    (folder / "mine.txt").write_text("綴", encoding="utf-8")
    assert main(["eval", str(folder / "run"), "--data", str(folder / "mine.txt"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tokens"] == 4 and figures["bytes"] == 3  # three bytes and the end of the text


def test_from_python(folder):
    lm = tsuzuri.load(folder / "run")
    ids = lm.tokenizer.encode("綴り")
    assert lm.tokenizer.decode(ids) == "綴り"
    logits = lm.logits(ids)
    assert logits.shape == (6, 258) and logits.dtype == np.float32
    assert lm.generate("綴り", max_new_tokens=4, temperature=0) == lm.generate(
        "綴り", max_new_tokens=4, temperature=0
    )
    with pytest.raises(tsuzuri.errors.UserError, match="outside the vocabulary"):
        lm.logits([258])
    with pytest.raises(tsuzuri.errors.UserError, match="takes 1 to 32"):
        lm.logits([2] * 33)


def test_not_a_run(capsys, tmp_path):
    assert "not a run folder" in refused(capsys, "generate", tmp_path)
    assert "not a run folder" in refused(capsys, "eval", tmp_path / "none")


def test_each_stage_is_a_verb(capsys, folder, tmp_path):
    """tokenizer, featurize and train one after the other make the run that train makes alone."""
    text, tok, features = str(folder / "text.txt"), str(tmp_path / "t"), str(tmp_path / "f")
    assert main(["tokenizer", "train", text, "--out", tok, "--tokenizer.vocab-size", "300"]) == 0
    command = ["featurize", text, "--tokenizer", tok, "--sequence-length", "32", "--out"]
    assert main([*command, features]) == 0
    assert "is there already" in refused(capsys, *command, features)
    run = tmp_path / "r"
    assert main(["train", features, "--run", str(run), *FLAGS[2:]]) == 0
    assert main(["train", "--run", str(run)]) == 0  # goes on, without naming the features again
    assert main(["eval", str(run)]) == 0
    assert "--sequence-length 32" in refused(
        capsys, "train", features, "--run", tmp_path / "r2", "--sequence-length", "64"
    )


def test_prepare_and_train_on_tales(capsys, tmp_path):
    out = str(tmp_path / "tales")
    assert main(["prepare", "tales", "--count", "60", "--out", out]) == 0
    assert "60 documents" in capsys.readouterr().err
    assert main(["train", out, "--run", str(tmp_path / "r"), *FLAGS]) == 0
    assert "of the text's entropy" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "r"), "--json"]) == 0
    assert 0.1 < json.loads(capsys.readouterr().out)["entropy_floor"] < 1
    assert "takes no --books" in refused(capsys, "prepare", "tales", "--books", "3", "--out", "x")
    assert "did you mean" in refused(capsys, "prepare", "aozra", "--out", "x")


def test_the_corpora_are_listed(capsys):
    assert main(["prepare", "--list"]) == 0
    listed = capsys.readouterr().out
    for name, known in CORPORA.items():
        assert f"{name}  ({known.language}, {known.size})" in listed
    assert "give the name of a corpus and --out" in refused(capsys, "prepare")
    assert "give the name of a corpus and --out" in refused(capsys, "prepare", "tales")
    assert "takes no --source" in refused(capsys, "prepare", "tales", "--source", "x", "--out", "y")


def test_cleaning_is_an_option_wherever_text_is_read(capsys, tmp_path):
    (tmp_path / "text.jsonl").write_text(
        "".join(
            f'{{"text": "{text}"}}\n' for text in ["とりが鳴く", "ＡＢＣ です", "とりが鳴く", "短"]
        )
    )
    source, out = str(tmp_path / "text.jsonl"), tmp_path / "clean"
    flags = ["--deduplicate", "--normalize", "NFKC", "--min-characters", "3", "--language", "ja"]
    named = ["prepare", "hf:a/b", "--source", source, "--out", str(out), *flags]
    assert main(named) == 0
    assert "cleaning kept 1 of 4 documents" in capsys.readouterr().err
    assert main(named) == 0  # the same again: nothing is done
    assert "holds this corpus already" in capsys.readouterr().err
    assert "holds another corpus" in refused(capsys, *named[:-2])
    tok = ["--tokenizer", "bytes", "--sequence-length", "4", "--features.held-out", "0.5"]
    assert main(["featurize", source, *tok, *flags, "--out", str(tmp_path / "f")]) == 0
    assert "cleaning kept 1 of 4 documents" in capsys.readouterr().err
    assert "normalize is 'NFX'; it must be one of none, NFC" in refused(
        capsys, "featurize", source, *tok, "--normalize", "NFX", "--out", "x"
    )


def test_tokenizers_are_compared(capsys, folder, tmp_path):
    text, svg = str(folder / "text.txt"), tmp_path / "picture.svg"
    unigram = ["--tokenizer.kind", "unigram", "--tokenizer.vocab-size", "350"]
    assert main(["tokenizer", "train", text, "--out", str(tmp_path / "u"), *unigram]) == 0
    command = ["tokenizer", "compare", "bytes", str(tmp_path / "u"), "--text", text]
    assert main([*command, "--out", str(svg), "--sentence", "綴りを書く。"]) == 0
    printed = capsys.readouterr().out
    assert "unigram" in printed and "350" in printed
    assert svg.read_text().startswith("<svg")
    assert "needs --text" in refused(capsys, "tokenizer", "compare", "bytes")
    assert "needs --out" in refused(capsys, "tokenizer", "train", text)
    wrong = ["--tokenizer.options", "--character_coverag=0.9"]
    assert "character_coverage" in refused(
        capsys, "tokenizer", "train", text, "--out", tmp_path / "v", *unigram, *wrong
    )


def test_a_run_with_a_tokenizer_from_elsewhere(capsys, folder, tmp_path):
    """SentencePiece, trained within the run, and another model's file."""
    text = str(folder / "text.txt")
    kind = ["--tokenizer.kind", "unigram", "--tokenizer.vocab-size", "350"]
    assert main(["train", text, "--run", str(tmp_path / "a"), *FLAGS[2:], *kind]) == 0
    model = tmp_path / "a" / "tokenizer" / "sentencepiece.model"
    other = ["--tokenizer.path", str(model)]
    assert main(["train", text, "--run", str(tmp_path / "b"), *FLAGS[2:], *other]) == 0
    capsys.readouterr()
    assert main(["generate", str(tmp_path / "b"), "--prompt", "一番目", "--stream"]) == 0
    assert capsys.readouterr().out.startswith("一番目")


def test_weights_go_out_and_come_in(capsys, folder, tmp_path):
    """A run to Hugging Face's format, back to a run, trained further; and to a gguf."""
    run, out, again = str(folder / "run"), str(tmp_path / "hf"), str(tmp_path / "again")
    assert main(["export", run, "--to", "hf", "--out", out]) == 0
    assert main(["import", out, "--run", again]) == 0
    greedy = ["--prompt", "綴り", "--temperature", "0", "--max-new-tokens", "12"]
    capsys.readouterr()
    assert main(["generate", run, *greedy]) == 0
    ours = capsys.readouterr().out
    assert main(["generate", again, *greedy]) == 0
    assert capsys.readouterr().out == ours
    text, new = str(folder / "text.txt"), str(tmp_path / "new")
    short = [flag for flag in FLAGS[-8:] if flag]
    assert main(["train", text, "--run", new, "--init-from", again, *short]) == 0
    assert main(["eval", again, "--data", text, "--json"]) == 0
    assert "is there already" in refused(capsys, "export", run, "--to", "hf", "--out", out)
    assert "is there already" in refused(capsys, "import", out, "--run", again)
    assert "leave out --preset" in refused(
        capsys, "train", text, "--run", "x", "--init-from", again, "--preset", "gpt2"
    )
    assert "give a text of yours by --data" in refused(capsys, "eval", again)
    assert "--init-from" in refused(capsys, "train", text, "--run", again)
    assert "goes with --to hf" in refused(
        capsys, "export", run, "--to", "gguf", "--out", "x", "--push-to-hub", "a/b"
    )
    assert "--type goes with --to gguf" in refused(
        capsys, "export", run, "--to", "hf", "--out", "x", "--type", "f16"
    )
    assert "and no OWNER/NAME" in refused(capsys, "import", f"{out}/no/such", "--run", "x")
    assert "give the folder" in refused(capsys, "import", f"{out}/config.json", "--run", "x")
    file = str(tmp_path / "m.gguf")
    assert main(["export", run, "--to", "gguf", "--type", "f32", "--out", file]) == 0
    assert "ollama create" in capsys.readouterr().out
    assert Path(file).read_bytes().startswith(b"GGUF")


def test_a_plan_says_what_fits(capsys):
    command = ["plan", "--preset", "japanese-1.0b", "--devices", "8", "--device", "a100-80gb"]
    assert main([*command, "--mesh.fsdp", "8"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("1,029,215,536", "fits", "Chinchilla", "activations"))
    assert "did you mean 'a100-80gb'" in refused(capsys, "plan", "--device", "a100-80g")
    assert main(["plan", "--tokenizer.kind", "bytes"]) == 0
    assert "  embedding, head   33,024\n" in capsys.readouterr().out  # 258 x 128
    pod = ["plan", "--topology", "v5e:2x2", "--devices", "4"]
    assert "leave out --device" in refused(capsys, *pod)
    assert "but there are 3" in refused(capsys, "plan", "--devices", "3", "--mesh.tensor", "2")


def test_flags_of_beam_are_for_beam(capsys, folder):
    text = str(folder / "text.txt")
    featurize = ["featurize", text, "--tokenizer", "bytes", "--out", "x"]
    assert "give --runner beam as well" in refused(capsys, *featurize, "--", "--streaming")
    assert "takes nothing after `--`" in refused(capsys, "train", text, "--run", "x", "--", "--a")


def test_plot(capsys, folder):
    picture = folder / "run" / "plots" / "loss.png"
    picture.unlink()
    assert main(["plot", str(folder / "run")]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_help_needs_no_jax():
    """--help of every verb is quick because nothing heavy is imported for it."""
    code = (
        "import sys; from tsuzuri.cli import main\n"
        "for verb in ['', 'demo', 'prepare', 'tokenizer', 'featurize', 'train', 'eval',"
        " 'generate', 'export', 'import', 'plan', 'plot']:\n"
        "    try: main([verb, '--help'] if verb else ['--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'numpy', 'pyarrow', 'matplotlib', 'tiktoken'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_mistyped_verb(capsys):
    assert "did you mean 'train'?" in refused(capsys, "trian", "text.txt")


@pytest.mark.parametrize("arguments", [["prepare", "--list"], ["--version"]])
def test_output_that_cannot_be_written(arguments):
    """Python would write at its end only, and fail there in its own words."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "tsuzuri.cli", *arguments]
    read, write = os.pipe()
    os.close(read)  # as `head` does
    full = os.open("/dev/full", os.O_WRONLY)
    for output, said in (write, ""), (full, "tsuzuri: a file: No space left on device\n"):
        with os.fdopen(output, "w") as stdout:
            done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=env)
        assert (done.returncode, done.stderr.decode()) == (1, said)


def test_a_fault_of_the_program_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr("tsuzuri.presets.preset", lambda *names: 1 / 0)
    assert main(["train", "x", "--run", "y"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_interrupted_while_preparing(folder, tmp_path):
    """Ctrl-C before training begins ends with 130 and no traceback."""
    big = tmp_path / "big.txt"
    big.write_text(TEXT * 200, encoding="utf-8")
    command = [sys.executable, "-m", "tsuzuri.cli", "train", str(big), "--run"]
    command += [str(tmp_path / "r"), "--tokenizer.vocab-size", "20000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "r" / "config.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode in (130, 42) and "Traceback" not in said
    assert not Path(tmp_path / "r" / "features" / "features.json").exists() or said


def test_prepare_aozora_from_the_sites_files(capsys, tmp_path):
    bar = "-" * 55
    for number in range(25):
        work = f"峠の鳥{number}\r\n綴り花子\r\n\r\n{bar}\r\n【テキスト中に現れる記号について】\r\n"
        work += f"{bar}\r\n\r\n　山の上に鳥《とり》がいた。\r\n「歌おう」と言った。\r\n" * 3
        work += "\r\n\r\n底本：「峠」綴り書房\r\n入力：甲\r\n"
        (tmp_path / "site" / f"{number}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "site" / f"{number}.txt").write_bytes(work.encode("cp932"))
    command = ["prepare", "aozora", "--source", str(tmp_path / "site"), "--books", "22"]
    assert main([*command, "--orthography", "any", "--out", str(tmp_path / "a")]) == 0
    assert "22 documents" in capsys.readouterr().err
    tokenizer = ["--tokenizer.vocab-size", "300", "--out", str(tmp_path / "t")]
    assert main(["tokenizer", "train", str(tmp_path / "a"), *tokenizer]) == 0


def test_out_of_memory_says_what_needs_it_and_what_to_lower(tmp_path):
    """12 billion parameters, in a process that may have 8 GB."""
    text = tmp_path / "text.txt"
    text.write_text("縁側で本を読む。" * 200, encoding="utf-8")
    flags = "--tokenizer.kind bytes --model.num-layers 1 --model.num-heads 1 --model.embed-dim 64"
    flags += " --model.mlp-dim 64000000 --sequence-length 32"
    command = [sys.executable, "-m", "tsuzuri.cli", "train", str(text), "--run"]
    limited = ["bash", "-c", f'ulimit -v {8 << 20}; exec "$@"', "bash"]
    done = subprocess.run(
        [*limited, *command, str(tmp_path / "run"), *flags.split()], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.match(
        r"tsuzuri: out of memory: a device needs about \d+\.\d+ GiB \(weights 45.78 GiB, .*"
        r"; lower --batch-size, or raise --compute.accumulate or --mesh.fsdp",
        done.stderr.splitlines()[-1],
    )


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.2])
def test_ctrl_c_while_a_model_is_compiled(folder, tmp_path, seconds):
    """It used to end in a segmentation fault: XLA compiles in threads of its own."""
    script = "import sys; from tsuzuri import cli, generate; sys.stderr.write('.'); "
    script += "sys.exit(cli.main())"
    command = [sys.executable, "-c", script, "generate", str(folder / "run")]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env)
    assert process.stderr and process.stderr.read(1) == b"."  # what takes long is imported
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert (process.returncode, said) in [(130, b"interrupted\n"), (0, b"")]


def in_a_process(script):
    """Exit code and stderr of what it does as `doctor`."""
    script = "import gc, signal, sys, time\nfrom tsuzuri import cli, verbs\n" + script
    script += "\nverbs.doctor = doctor\nsys.exit(cli.main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.returncode, done.stderr


def test_what_fails_in_the_clean_up_after_ctrl_c_is_no_fault():
    """As in tqdm, which releases a lock that it does not have yet."""
    script = """
def doctor(args):
    "Fails."
    try:
        raise KeyboardInterrupt
    finally:
        del args.lock
"""
    assert in_a_process(script) == (130, "interrupted\n")


def test_ctrl_c_is_not_lost_while_garbage_is_collected():
    """JAX has the collector call it; what is raised in there is printed and forgotten by Python."""
    script = """
def _xla_gc_callback(phase, _):
    if phase == "stop":
        signal.raise_signal(signal.SIGINT)
def doctor(args):
    "Collects."
    gc.callbacks.append(_xla_gc_callback)
    gc.collect()
    gc.callbacks.pop()
    time.sleep(30)
"""
    assert in_a_process(script) == (130, "interrupted\n")
