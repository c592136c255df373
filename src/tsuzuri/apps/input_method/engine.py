"""An input method: made from a text, kept in a run folder, used by whoever types.

    RUN/ime/config.json    what it sees, and the weights of its mixture
    RUN/ime/tokenizer/     its codes and words
    RUN/ime/text.npz       the text as words, for its evaluation
    RUN/ime/ngrams.npz     the n-grams of all but the test part
    RUN/ime/features/      what the Transformer is trained on; RUN itself is its run folder

The test part is the text's last tenth, of which nothing is made; the development part before it is
what the mixture's weights are fitted to.
"""

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from tsuzuri import corpus, files, tokenizer
from tsuzuri.apps.input_method.cache import Cache
from tsuzuri.apps.input_method.histories import HiddenHistories, convert
from tsuzuri.apps.input_method.neural import (
    Reading,
    Sees,
    Transformer,
    Typing,
    outputs,
    places,
    write_features,
)
from tsuzuri.apps.input_method.ngram import KneserNey
from tsuzuri.apps.input_method.predictors import Mixture, Predictor, fit_weights, ranks
from tsuzuri.config import Config, replace
from tsuzuri.errors import UserError
from tsuzuri.features import read_features
from tsuzuri.language_model import LanguageModel
from tsuzuri.tokenizer.first_two import CODES, FirstTwoTokenizer, code_of, split_keys, words_of

Say = Callable[[str], None]

ORDER = 4  # of the n-grams
TIMES = 9  # that the Transformer sees each place, if no steps are given; dropout makes it pay
_BEAM = 8  # sequences that `convert` follows, where each asks the Transformer
_DEVELOPMENT, _TEST = 0.85, 0.9  # where these parts of the text begin
_LEAST_WORDS = 200


class Text(NamedTuple):
    """The words of a text as their numbers, and their codes: int64 [T] each."""

    codes: np.ndarray
    words: np.ndarray

    def part(self, start: int, stop: int) -> "Text":
        return Text(self.codes[start:stop], self.words[start:stop])


class Parts(NamedTuple):
    """A text's vocabulary, which is of all but the test part, and its parts."""

    tokenizer: FirstTwoTokenizer
    train: Text
    development: Text
    test: Text
    test_words: Sequence[str]  # as they are, in the vocabulary or not

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """The parts of a text."""
        development, test = int(_DEVELOPMENT * len(words)), int(_TEST * len(words))
        tok = FirstTwoTokenizer.of(words[:test])
        text = Text(
            np.array([code_of(word) for word in words], np.int64),
            np.array([tok.index(word) for word in words], np.int64),
        )
        return cls(
            tok,
            text.part(0, development),
            text.part(development, test),
            text.part(test, len(words)),
            words[test:],
        )

    def ngrams(self, tested: bool) -> KneserNey:
        """The n-grams of the training part; `tested`: of the development part too."""
        words = self.train.words
        if tested:
            words = np.concatenate([words, self.development.words])
        return KneserNey.fit(words, ORDER, len(self.tokenizer.words) + 1)


def train(
    cfg: Config,
    run: Path,
    sources: Sequence[str],
    sees: Sees | None,
    transformer: bool,
    say: Say,
    steps_given: bool = True,
) -> None:
    """Makes an input method of a text, or goes on making it.

    Args:
      cfg: of the Transformer, its output_size left open.
      sources: text files, folders or archives; nothing, to go on.
      sees: what the Transformer reads; by default committed words too, or as the run began.
      transformer: train one; else n-grams and a cache are all there is.
      steps_given: take cfg.steps; else as many as show it each place TIMES times.

    Raises:
      UserError: too little text; the run is of another text, or sees something else.
      RunError, Stopped: as of `tsuzuri.train.train`.
    """
    from tsuzuri.train import train as train_model

    folder = run / "ime"
    if sources:
        words = [
            w for document in corpus.read(sources, cfg.text, say) for w in words_of(document.text)
        ]
        if len(words) < _LEAST_WORDS:
            raise UserError(
                f"{', '.join(sources)}: {len(words)} words of the letters a to z; an input method "
                f"needs at least {_LEAST_WORDS}"
            )
        sees = sees or "committed"
        parts = _prepare(folder, words, sees, cfg.sequence_length)
    else:
        parts = read_parts(run)
        began: Sees = read_features(folder / "features")["source"]["sees"]
        if sees not in (None, began):
            raise UserError(f"{run} sees {began}; leave out --sees {sees}, or give another --run")
        sees = began
    tok = parts.tokenizer
    predictors: list[Predictor] = [HiddenHistories(parts.ngrams(tested=False), tok)]
    if transformer:
        changes = {"model.output_size": int(outputs(tok)[-1]) + 1}
        if not steps_given:
            seen_a_step = cfg.batch_size * cfg.sequence_length
            changes["steps"] = -(-TIMES * len(parts.train.words) // seen_a_step)
        cfg = replace(cfg, changes)
        train_model(cfg, run, [str(folder / "features")])
        predictors.append(Reading(_transformer(run, tok, sees, say), *parts.development))
    say("weighing the models on the development part")
    given = [ranks(p, tok, *parts.development, sees == "committed")[1] for p in predictors]
    path = folder / "ngrams.npz"
    _write_arrays(path, parts.ngrams(tested=True).arrays())
    made = {"sees": sees, "transformer": transformer, "weights": fit_weights(given).tolist()}
    files.write_json(folder / "config.json", made | {"ngrams": files.sha256(path)})


def _prepare(folder: Path, words: list[str], sees: Sees, length: int) -> Parts:
    """The vocabulary, the words and the features, unless they are there."""
    parts = Parts.of(words)
    inputs = hashlib.sha256(f"{sees}\n{length}\n{' '.join(words)}".encode()).hexdigest()
    if (folder / "features" / "features.json").exists():
        if read_features(folder / "features")["source"].get("inputs") == inputs:
            return parts
        raise UserError(
            f"{folder.parent} is an input method of another text, or sees something else; give "
            "what it was made with, or another --run"
        )
    folder.mkdir(parents=True, exist_ok=True)
    parts.tokenizer.save(folder / "tokenizer")
    _write_arrays(folder / "text.npz", {"words": np.array(" ".join(words))})
    splits = {"train": parts.train, "held_out": parts.development}
    write_features(
        folder / "features", parts.tokenizer, splits, sees, length, {"inputs": inputs, "sees": sees}
    )
    return parts


def read_parts(run: Path) -> Parts:
    """The text of an input method, as it was when it was made.

    Raises:
      UserError: `run` holds none; its words are not those that the vocabulary was made of.
    """
    path = run / "ime" / "text.npz"
    if not path.exists():
        raise UserError(f"{run} is no input method; `tsuzuri ime train TEXT --run RUN` makes one")
    parts = Parts.of(str(_read_arrays(path)["words"]).split())
    if tokenizer.load(run / "ime" / "tokenizer").fingerprint != parts.tokenizer.fingerprint:
        raise UserError(f"{path}: not the text that {run} was made of; make it again")
    return parts


class Candidate(NamedTuple):
    word: str
    probability: float  # p(word | what came before, code)


class Session:
    """One text that is typed: it knows what was committed, and learns from it."""

    def __init__(self, method: "InputMethod"):
        self._tokenizer, self._predictor = method.tokenizer, method.predictor()

    def candidates(self, keys: str, k: int = 5) -> list[Candidate]:
        """The k likeliest words of a code, the likeliest first; fewer where there are fewer.

        Args:
          keys: the first two letters of a word, or its one letter and a space.

        Raises:
          UserError: keys are no code.
        """
        code = self._code(keys)
        learned = [Candidate(word, p) for word, p in self._predictor.extra(code)]
        left = 1 - sum(candidate.probability for candidate in learned)
        given = self._predictor.probabilities(code)
        first = self._tokenizer.candidates(code).start
        best = np.argsort(-given, kind="stable")[:k]
        words = [Candidate(self._tokenizer.words[first + w], float(given[w]) * left) for w in best]
        return sorted(words + learned, key=lambda candidate: -candidate.probability)[:k]

    def commit(self, word: str) -> None:
        """The next word of the text; one that was not known is from now on.

        Raises:
          UserError: it is no word of the letters a to z.
        """
        if words_of(word) != [word]:
            raise UserError(f"{word!r} is no word of the letters a to z")
        self._predictor.advance(code_of(word), self._predictor.number(word))

    def _code(self, keys: str) -> int:
        codes = split_keys(keys)
        if len(codes) != 1:
            raise UserError(f"{keys!r} are the keys of {len(codes)} words; give those of one")
        return codes[0]


class InputMethod:
    """What `train` made. Its sessions share nothing that changes."""

    def __init__(
        self,
        tokenizer: FirstTwoTokenizer,
        ngrams: KneserNey,
        transformer: Transformer | None,
        weights: Sequence[float],
        sees: Sees,
    ):
        self.tokenizer, self.ngrams = tokenizer, ngrams
        self.transformer, self.weights, self.sees = transformer, weights, sees

    @classmethod
    def load(cls, run: str | Path, say: Say = lambda message: None) -> Self:
        """Reads an input method.

        Raises:
          UserError: `run` holds none, or it is not finished, or damaged.
        """
        folder = Path(run) / "ime"
        if not (folder / "config.json").exists():
            unfinished = (folder / "text.npz").exists()
            raise UserError(
                f"{run} is not finished: `tsuzuri ime train --run {run}` goes on with it"
                if unfinished
                else f"{run} is no input method; `tsuzuri ime train TEXT --run RUN` makes one"
            )
        made, path = files.read_json(folder / "config.json"), folder / "ngrams.npz"
        if not path.exists() or files.sha256(path) != made["ngrams"]:
            raise UserError(f"{path}: damaged or changed; `tsuzuri ime train --run {run}` makes it")
        tok = tokenizer.load(folder / "tokenizer")
        assert isinstance(tok, FirstTwoTokenizer)
        transformer = (
            _transformer(Path(run), tok, made["sees"], say) if made["transformer"] else None
        )
        return cls(tok, KneserNey(_read_arrays(path)), transformer, made["weights"], made["sees"])

    def predictor(self, text: Text | None = None) -> Cache:
        """All the models as one, at the beginning of a text.

        Args:
          text: what will be typed, where it is known before: the same, but many places at once.
        """
        histories = HiddenHistories(self.ngrams, self.tokenizer)
        parts: list[Predictor] = [histories]
        if self.transformer:
            typing = Typing(self.transformer, self.tokenizer)
            parts.append(Reading(self.transformer, *text) if text else typing)
        return Cache(self.tokenizer, Mixture(self.weights, parts), histories)

    def session(self) -> Session:
        """A new text."""
        return Session(self)

    def convert(self, keys: str, k: int = 5) -> list[str]:
        """The k likeliest texts for the keys of several words, the likeliest first.

        A code that no word has stays as it is.

        Raises:
          UserError: keys that are no codes; none at all; k below 1.
        """
        codes = split_keys(keys)
        if not codes or k < 1:
            raise UserError("give keys to convert, fitwchinme, and k of at least 1")
        model = _Joint(self) if self.transformer else self.ngrams
        found = convert(model, self.tokenizer, codes, k, *([_BEAM] if self.transformer else []))
        words = self.tokenizer.words
        return [
            " ".join(
                words[word] if word < len(words) else CODES[code].strip()
                for word, code in zip(sequence, codes, strict=True)
            )
            for sequence, _ in found
        ]


class _Joint:
    """p(word, code | history) of n-grams and Transformer, for a search over whole sequences.

    The Transformer gives p(word | history, code) only; how likely the code is the n-grams say.
    """

    def __init__(self, method: InputMethod):
        assert method.transformer
        self._ngrams, self._transformer = method.ngrams, method.transformer
        self._tokenizer, self._weights = method.tokenizer, np.array(method.weights)
        self.order = method.transformer.length

    def probabilities(self, histories: np.ndarray, candidates: range) -> np.ndarray:
        """float64 [histories, candidates]; see `KneserNey.probabilities`."""
        ngrams = self._ngrams.probabilities(histories[:, 1 - self._ngrams.order :], candidates)
        code = self._code(candidates.start)
        texts = []
        for history in histories:
            words = history[history >= 0]
            codes = np.array([*map(self._code, words), code])
            texts.append(places(self._tokenizer, codes, words, self._transformer.sees))
        given = np.array(self._transformer.last(texts, [code] * len(texts)))
        mass = ngrams.sum(1, keepdims=True)
        return self._weights[0] * ngrams + self._weights[1] * given * mass

    def _code(self, word: int) -> int:
        """The code of a word; of one that is not in the vocabulary it is not known."""
        if word == len(self._tokenizer.words):
            return self._tokenizer.unknown
        return int(np.searchsorted(self._tokenizer.first, word, side="right")) - 1


def _transformer(run: Path, tok: FirstTwoTokenizer, sees: Sees, say: Say) -> Transformer:
    model = LanguageModel.load(run, say)
    return Transformer(model.model_config, model.params, tok, sees)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with files.write_beside(path) as beside, beside.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **arrays)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); make the input method again") from error
