"""One thread that writes all texts, those of many clients side by side, and tells who waits.

Between two calls of the device texts enter the batch, in the order in which they came, and texts
that nobody waits for any longer leave it: continuous batching (Orca, Yu et al. 2022).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tsuzuri.generate import Batch, Score, Text, scores
from tsuzuri.language_model import LanguageModel

# Tokens of each text in a call of the device, and seconds that it may take. A text enters after the
# call, and a row that was left stands empty for it; but each call costs as much as half a token.
_TOKENS, _CALL = 8, 0.1
_PATIENCE = 20  # calls
_WORDS = 100  # a second, about all texts together: each costs as much as a token


@dataclass(frozen=True)
class News:
    """What has been written of one text since the last word of it."""

    index: int  # which of the texts that were submitted together
    piece: str  # whole characters
    ids: list[int]
    scores: list[Score]  # of these ids, where the text is scored
    finish: str | None  # Text.finish; "failed" where writing has failed


Tell = Callable[[list[News]], None]


class Busy(Exception):
    """There is no room for more texts now.

    Attributes:
      seconds: when there may be.
    """

    def __init__(self, seconds: int):
        super().__init__(f"too many requests are waiting; try again in {seconds} s")
        self.seconds = seconds


@dataclass(eq=False)
class _Job:
    """A text, who is told of it, and what they know."""

    text: Text
    index: int
    tell: Tell
    known: int = 0  # ids
    told: int = 0  # ids
    told_at: float = 0.0
    began: float = 0.0


class Engine:
    """Writes texts with a model.

    Args:
      rows: how many are written at the same time.
      queue: how many may wait beside those.
      context: the most tokens of a prompt and its continuation together.
    """

    def __init__(self, model: LanguageModel, rows: int, queue: int, context: int):
        self._model, self._queue, self.context = model, queue, context
        self._rows = rows
        # Few texts are written several times as fast in a batch of few rows: all move to another
        # when they have become too many for theirs, or have long been few.
        sizes = [4**n for n in range(rows.bit_length()) if 4**n < rows] + [rows]
        self._batches = [self._batch(size) for size in sizes]
        self._at = 0  # which of them is in use
        self._roomy = 0  # for so many calls it has been larger than need be
        self._waiting: deque[_Job] = deque()
        self._inside: dict[Text, _Job] = {}
        self._changed = threading.Condition()  # holds what the thread and the others share
        self._scoring = threading.Lock()  # a pass over a whole context at a time: each takes room
        self._closing = self._failed = False
        self._step_seconds = _CALL  # one token of every text, lately
        self._text_seconds = 1.0  # a text in the batch, lately
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def compile(self) -> None:
        """Compiles all programs."""
        for batch in self._batches:
            batch.warm_up()
        self.scores([0, 0])

    def start(self) -> None:
        self._thread.start()

    def close(self, at_once: bool = False) -> None:
        """Ends the thread when all texts are written; or `at_once`, as soon as a call has ended."""
        with self._changed:
            self._closing = True
            if at_once:
                self.cancel([*self._inside, *(job.text for job in self._waiting)])
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """How many texts are being written, and how many wait."""
        return len(self._inside), len(self._waiting)

    def submit(self, texts: Sequence[Text], tell: Tell) -> None:
        """Has texts written; `tell` is called from the engine's thread as they grow.

        Raises:
          Busy: they would wait behind more than `queue` others; none of them is taken.
        """
        with self._changed:
            busy = len(self._inside) + len(self._waiting) + len(texts)
            if busy > self._rows + self._queue:
                turns = len(self._waiting) / self._rows
                raise Busy(min(1 + round(turns * self._text_seconds), 60))
            self._waiting += [_Job(text, n, tell) for n, text in enumerate(texts)]
            if self._failed:
                self._fail()
            self._changed.notify()

    def cancel(self, texts: Sequence[Text]) -> None:
        """Nobody waits for these any longer; those that have ended already are no matter."""
        with self._changed:
            self._waiting = deque(job for job in self._waiting if job.text not in texts)
            for text in texts:
                text.end("length")  # its row is free after the call that is under way

    def scores(self, ids: Sequence[int]) -> list[Score]:
        """What the model holds of each token but the first."""
        with self._scoring:
            return scores(self._model.model_config, self._model.params, ids, self.context)

    def _batch(self, rows: int) -> Batch:
        of_model = self._model.model_config, self._model.params, self._model.tokenizer
        return Batch(*of_model, rows, slots=self.context)

    def _run(self) -> None:
        try:
            self._write()
        except Exception:  # not even an empty batch can be made: whoever looks after it is to act
            logging.getLogger("tsuzuri").exception("no more texts can be written")
            with self._changed:
                self._failed = True
                self._fail()

    def _fail(self) -> None:
        """Tells all who wait that nothing will come."""
        for job in [*self._inside.values(), *self._waiting]:
            job.tell([News(job.index, "", [], [], "failed")])
        self._inside.clear()
        self._waiting.clear()

    def _write(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._inside):
                    if self._closing:
                        return
                    self._changed.wait()
                for text in [text for text in self._inside if text.finish]:  # cancelled
                    self._batches[self._at].leave(text)
                    del self._inside[text]
                self._choose_batch()
                batch = self._batches[self._at]
                while self._waiting and None in batch.texts:
                    job = self._waiting.popleft()
                    job.began = time.monotonic()
                    batch.enter(job.text)
                    self._inside[job.text] = job
            if self._inside:
                self._step()

    def _choose_batch(self) -> None:
        wanted = min(len(self._inside) + len(self._waiting), self._rows)
        fits = next(n for n, batch in enumerate(self._batches) if len(batch.texts) >= wanted)
        self._roomy = self._roomy + 1 if fits < self._at else 0
        if fits > self._at or self._roomy > _PATIENCE:
            for text in self._inside:
                self._batches[self._at].leave(text)
                self._batches[fits].enter(text)
            self._at, self._roomy = fits, 0

    def _step(self) -> None:
        """A call of the device, and the news of it."""
        batch, jobs = self._batches[self._at], list(self._inside.values())
        began = time.monotonic()
        try:
            batch.step(max(1, min(_TOKENS, int(_CALL / self._step_seconds))))
        except Exception:  # the device is out of memory, ...: the next ones may fit
            logging.getLogger("tsuzuri").exception("a call of the device has failed")
            batch = self._batches[self._at] = self._batch(len(batch.texts))
            for job in jobs:
                job.text.end("failed")
        now = time.monotonic()
        news: dict[Tell, list[News]] = {}
        drawn = 1
        with self._changed:
            often = len(self._inside) / _WORDS
            for job in jobs:
                if job.text not in batch.texts:
                    del self._inside[job.text]
        for job in jobs:
            text = job.text
            drawn = max(drawn, len(text.ids) - job.known)
            job.known = len(text.ids)
            if text.finish:
                self._text_seconds += (now - job.began - self._text_seconds) / 16
            elif now - job.told_at < often:
                continue
            ids, known = text.ids[job.told :], text.scores[job.told :]
            word = News(job.index, text.news(), ids, known, text.finish)
            news.setdefault(job.tell, []).append(word)
            job.told = len(text.ids)
            if word.piece:  # until the first character is whole, every call is a word
                job.told_at = now
        self._step_seconds += ((now - began) / drawn - self._step_seconds) / 4
        for tell, words in news.items():
            tell(words)
