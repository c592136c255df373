# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 文章から文へ — From text to sentence
#
# テキストが言語モデルになり、モデルが文を書くまでを、一段ずつ自分の目で見ます。
# CPU だけで一分ほどです。
# `docs/from-text-to-sentence.py` は Jupytext のノートブックで、Jupyter でも、ただの Python としても動きます。
#
# *A text becomes a language model, and the model writes: each stage, seen with your own eyes,
# in about a minute on a CPU. `docs/from-text-to-sentence.py` is a Jupytext notebook, which runs
# in Jupyter and as plain Python.*

# %%
import math
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import tsuzuri
from tsuzuri import corpus, features, tokenizer
from tsuzuri.config import FeaturesConfig, TokenizerConfig
from tsuzuri.corpus.prepare import prepare
from tsuzuri.data import Batches, Blocks
from tsuzuri.presets import preset
from tsuzuri.sampling import Sampling
from tsuzuri.track import read_jsonl
from tsuzuri.train import train

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. テキスト — The text
#
# 規則で作られる短いお話のコーパスを使います。一話ごとに、そのお話が生まれる確率が分かっているので、あとで「これより下には行けない」という線を引けます。
#
# *Short tales, made by rule. Since the probability of each tale is known, we can later draw the
# line below which no model can go.*

# %%
tales = list(corpus.named("tales").documents(say=print, count=4000))
print(tales[0].text)
print(f"\n{len(tales)} tales; this one holds {tales[0].entropy_bits:.0f} bits")

# %% [markdown]
# ## 2. トークン — Tokens
#
# モデルは文字ではなく番号を読みます。トークナイザは、よく一緒に現れるバイトの列を一つの番号にまとめます。語彙が大きいほど一つのトークンは長くなり、どんな文章も必ず元に戻ります。
#
# *A model reads numbers. The tokenizer gives one number to bytes that often stand together: the
# larger its vocabulary, the longer a token. Every text comes back as it was.*

# %%
sentence = "むかし、山のふもとに、えまという子がいた。"
for vocab_size in (300, 1024, 2048):
    tok = tokenizer.train(
        (tale.text for tale in tales), TokenizerConfig(vocab_size=vocab_size), print, False
    )
    ids = tok.encode(sentence)
    assert tok.decode(ids) == sentence
    print(f"{vocab_size:5} {len(ids):3} tokens  " + "|".join(tok.decode([i]) for i in ids))
print(ids)

# %% [markdown]
# `�` は、文字の途中で切れたトークンです。日本語の一文字は UTF-8 で三バイトなので、語彙が小さいと一文字がいくつかのトークンに分かれます。
#
# *`�` is a token that ends inside a character: a Japanese one is three bytes in UTF-8, and a
# small vocabulary has to spell it.*

# %% [markdown]
# ## 3. 特徴量 — Features
#
# 文書を端から端へつなぎ、L + 1 個の番号のブロックに切ります。L 個が入力、一つずらした L 個が答えです。一部の文書は学習に使わず、検証に取り分けておきます。
#
# *Documents, end to end, are cut into blocks of L + 1 ids: L of them are the input, and the
# same ones moved by one are the answers. Some documents are held out.*

# %%
L = 128
prepare(tales, folder / "corpus", {"name": "tales", "count": len(tales)}, print)
features.featurize(
    lambda: corpus.read([str(folder / "corpus")], preset("llama").text, print),
    tok, folder / "features", L, FeaturesConfig(), seed=0, source={}, say=print, progress=False,
)  # fmt: skip
blocks = Blocks.open(folder / "features", "train", tok, print)
batch = Batches(blocks, batch_size=8, seed=0).batch(step=0)
print(len(blocks), "blocks; tokens_BL", batch.tokens_BL.shape, "targets_BL", batch.targets_BL.shape)
for token, target in zip(batch.tokens_BL[0, :8], batch.targets_BL[0, :8], strict=True):
    print(f"{tok.decode([token])!r:>12} → {tok.decode([target])!r}")

# %% [markdown]
# バッチは（乱数の種, ステップ）だけで決まります。だから、止まった学習はステップの番号だけで続けられます。
#
# *A batch follows from (seed, step) alone: so a run that was stopped needs nothing but its
# step.*

# %% [markdown]
# ## 4. 学習 — Training
#
# 二層の小さなモデルです。始めの損失は、どのトークンも同じ確率だと思っているときの ln(語彙) に近いはずです。
#
# *A small model of two layers. Its first loss is near ln(vocabulary): all tokens are alike to
# it.*

# %%
cfg = preset(
    "llama", "tiny", steps=200, batch_size=8, sequence_length=L, eval_every=50, eval_blocks=32,
    save_every=200, sample_every=0, **{"model.num_layers": 2, "model.num_heads": 2},
)  # fmt: skip
figures = train(cfg, folder / "run", [str(folder / "features")], progress=False)
print(f"ln({tok.vocab_size}) = {math.log(tok.vocab_size):.2f}; held out {figures['loss']:.2f}")

# %%
# %matplotlib inline
metrics = read_jsonl(folder / "run" / "metrics.jsonl")
held_out = features.read_features(folder / "features")["splits"]["held_out"]
floor = held_out["entropy_bits"] * math.log(2) / held_out["tokens"]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for key, style in {"loss": "-", "held_out_loss": "o-"}.items():
    points = [(line["step"], line[key]) for line in metrics if key in line]
    axes.plot(*zip(*points, strict=True), style, label=key.replace("_", " "))
axes.axhline(floor, linestyle="--", color="gray", label="entropy of the text")
axes.set(xlabel="step", ylabel="loss (nats a token)")
legend = axes.legend()

# %% [markdown]
# 点線がテキスト自身のエントロピーです。学習を続ければ曲線はそこへ近づきますが、越えることはありません。学習（loss）と検証（held out）の差が開いたら、モデルは覚え込み始めています。
#
# *The dashed line is the entropy of the text itself: with more training the curve comes nearer,
# and never passes it. When train and held out part, the model has begun to learn by heart.*

# %% [markdown]
# ## 5. 次の一語 — The next token
#
# モデルがすることは一つだけ、次のトークンの確率を言うことです。
#
# *All that the model does is this: it says how probable each next token is.*

# %%
lm = tsuzuri.load(folder / "run")
prompt = "夏のよく晴れた"
logits_V = lm.logits(lm.tokenizer.encode(prompt))[-1]


def next_tokens(temperature: float) -> None:
    """The likeliest tokens after the prompt, with bars as long as they are probable."""
    p_V = np.asarray(jax.nn.softmax(logits_V / temperature))
    print(f"{prompt}…  temperature {temperature}")
    for i in np.argsort(-p_V)[:6]:
        print(f"  {p_V[i]:6.1%} {'█' * round(40 * p_V[i]):40} {lm.tokenizer.decode([i])!r}")


next_tokens(1.0)
next_tokens(0.5)

# %% [markdown]
# 温度は確率を出す前に logits を割ります。1 より小さければ、ありそうなものがさらにありそうになります。
#
# *The temperature divides the logits first: below 1, what is likely becomes likelier.*

# %% [markdown]
# ## 6. 文 — A sentence
#
# 一つ選んで後ろにつけ、また次を聞く。それを繰り返すと文章になります。まだ一分も学んでいないモデルの作文です。
#
# *Draw one, append it, ask again: that is writing. This model has studied for less than a
# minute.*

# %%
for temperature in (0.0, 0.8, 1.5):
    print(f"--- temperature {temperature}")
    print(prompt + lm.generate(prompt, temperature=temperature, max_new_tokens=60, seed=1))

# %% [markdown]
# いくつもの続きを一度に頼むこともできます。確率の低いトークンを捨てる `top_k` や `top_p` も試してください。
#
# *Many at once; and try `top_k` and `top_p`, which leave out unlikely tokens.*

# %%
for done in lm.generate_many(["猫の", "港の", "雪の"], Sampling(top_p=0.9, max_new_tokens=30)):
    print(done.prompt + done.text, f"({done.finish_reason})")

# %% [markdown]
# ## 次に — Next
#
# `steps` を 2000 に、`model.num_layers` を 4 に、テキストを自分のものに変えて、もう一度。何が起きるかを先に予想してから動かすと、いちばん身につきます。
#
# *Change `steps` to 2000, `model.num_layers` to 4, the text to your own, and run it again.
# Guess first what will happen: that teaches most.*
