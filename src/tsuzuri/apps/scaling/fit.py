"""The laws L(N, D) of Kaplan and of Chinchilla, found in the losses of a grid.

N are parameters without embeddings, D tokens of text that the model has seen, L nats a token.

- Kaplan et al. 2020 (arXiv:2001.08361, equation 1.5), of losses at the best moment of each run:
  L = [(Nc / N)^(alpha_N / alpha_D) + Dc / D]^alpha_D. It goes to 0 where both grow.
- Hoffmann et al. 2022 (arXiv:2203.15556, equation 2): L = E + A / N^alpha + B / D^beta, with the
  text's own entropy E. The model that spends C FLOPs best has N ~ C^(beta / (alpha + beta)).

Both are fitted as Hoffmann et al. do, to log L with Huber's loss, from a grid of starts. Theirs
turns from squares to absolute values at 0.001, for hundreds of runs; with a dozen cells that would
let a few of them decide everything, so here it is 0.01, one per cent of the loss.

The 95 % intervals are by a bootstrap of residuals (Efron 1979; Davison and Hinkley 1997, chapter
6): losses are drawn again as fit + residual, and fitted again. Cells themselves are not drawn
again: without some row of the grid a law is not determined. They say how exact the law is if it
holds, and nothing of whether it does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tsuzuri.errors import UserError

HUBER = 0.01  # of log L: from here on a residual counts as it is, not squared
HOLDS = 0.02  # residuals, as a share of the loss, up to which a law says something of the cells
_SAMPLES = 400
_EXPONENTS = (0.03, 0.1, 0.3, 0.8)  # where the search begins


class Law(NamedTuple):
    """A formula for L(N, D).

    Attributes:
      names: of its numbers; "log Nc" is told as Nc.
      log_loss: (the numbers, log N, log D) -> log L.
      start: (two exponents, N, D, L) -> numbers to begin from, the others by linear regression.
      levels: how many different N, and D, it needs to be determined.
    """

    names: tuple[str, ...]
    log_loss: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    start: Callable[..., np.ndarray]
    levels: int


def _kaplan(numbers: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    alpha_n, alpha_d, log_nc, log_dc = numbers
    return alpha_d * np.logaddexp(alpha_n / alpha_d * (log_nc - log_n), log_dc - log_d)


def _kaplan_start(
    alpha_n: float, alpha_d: float, n: np.ndarray, d: np.ndarray, loss: np.ndarray
) -> np.ndarray:
    of_n, of_d = _positive([n ** (-alpha_n / alpha_d), 1 / d], loss ** (1 / alpha_d))
    return np.array([alpha_n, alpha_d, np.log(of_n) * alpha_d / alpha_n, np.log(of_d)])


def _chinchilla(numbers: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    alpha, beta, log_e, log_a, log_b = numbers
    return np.logaddexp(np.logaddexp(log_a - alpha * log_n, log_b - beta * log_d), log_e)


def _chinchilla_start(
    alpha: float, beta: float, n: np.ndarray, d: np.ndarray, loss: np.ndarray
) -> np.ndarray:
    coefficients = _positive([np.ones_like(n), n**-alpha, d**-beta], loss)
    return np.array([alpha, beta, *np.log(coefficients)])


def _positive(columns: list[np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """Coefficients above 0 with which the columns make up what is wanted, in relative squares."""
    from scipy.optimize import nnls

    matrix = np.stack(columns, axis=1) / wanted[:, None]
    scale = matrix.max(0)
    found, _ = nnls(matrix / scale, np.ones(len(wanted)))
    return np.maximum(found, 1e-3) / scale


LAWS = {
    "kaplan": Law(("alpha_N", "alpha_D", "log Nc", "log Dc"), _kaplan, _kaplan_start, 2),
    "chinchilla": Law(
        ("alpha", "beta", "log E", "log A", "log B"), _chinchilla, _chinchilla_start, 3
    ),
}
_LOW = np.array([1e-3, 1e-3, -100, -100, -100])
_HIGH = np.array([3, 3, 100, 100, 100])


@dataclass(frozen=True)
class Fit:
    """A law with its numbers, and what is known of them."""

    law: str
    numbers: tuple[float, ...]  # as Law.log_loss takes them
    values: dict[str, float]  # as they are told
    intervals: dict[str, tuple[float, float]]  # of 95 %
    deviation: float  # root of the mean square of log L's residuals
    cells: int

    @property
    def holds(self) -> bool:
        return self.deviation <= HOLDS

    def loss(self, n: Any, d: Any) -> np.ndarray:
        """L(N, D) in nats a token."""
        log_n, log_d = np.log(np.asarray(n, float)), np.log(np.asarray(d, float))
        return np.exp(LAWS[self.law].log_loss(np.array(self.numbers), log_n, log_d))


def fit(
    name: str,
    n: Sequence[float],
    d: Sequence[float],
    loss: Sequence[float],
    samples: int = _SAMPLES,
) -> Fit:
    """Fits a law to a grid.

    Args:
      name: kaplan or chinchilla.
      n: parameters of each cell, without embeddings.
      d: tokens that it has seen.
      loss: its held-out loss, in nats a token.
      samples: of the bootstrap.

    Raises:
      UserError: too few cells, or too few different sizes or corpora.
    """
    law = LAWS[name]
    columns = (np.asarray(column, float) for column in (n, d, loss))
    N, D, L = columns
    needed = len(law.names) + 1
    if len(N) < needed:
        raise UserError(
            f"{name}'s law has {len(law.names)} numbers and needs {needed} cells; here: {len(N)}"
        )
    for told, levels in (("sizes", len(set(N))), ("corpora", len(set(D)))):
        if levels < law.levels:
            raise UserError(f"{name}'s law needs {law.levels} different {told}; here: {levels}")
    log_n, log_d, log_loss = np.log(N), np.log(D), np.log(L)

    def solve(start: np.ndarray, wanted: np.ndarray) -> tuple[float, np.ndarray]:
        from scipy.optimize import least_squares

        low, high = _LOW[: len(start)], _HIGH[: len(start)]
        found = least_squares(
            lambda numbers: law.log_loss(numbers, log_n, log_d) - wanted,
            np.clip(start, low + 1e-6, high - 1e-6),
            bounds=(low, high),
            x_scale="jac",
            loss="huber",
            f_scale=HUBER,
            max_nfev=1000,
        )
        return float(found.cost), found.x

    starts = (law.start(a, b, N, D, L) for a in _EXPONENTS for b in _EXPONENTS)
    _, best = min((solve(start, log_loss) for start in starts), key=lambda found: found[0])
    fitted = law.log_loss(best, log_n, log_d)
    residuals = log_loss - fitted
    # A fit comes nearer to its own cells than to others, by so much.
    drawn_from = (residuals - residuals.mean()) * np.sqrt(len(N) / (len(N) - len(best)))
    draw = np.random.default_rng(0)
    drawn = [
        _told(name, solve(best, fitted + draw.choice(drawn_from, len(N)))[1])
        for _ in range(samples)
    ]
    values = _told(name, best)
    intervals = {}
    for key in values:
        low, high = np.quantile([sample[key] for sample in drawn], [0.025, 0.975])
        intervals[key] = float(low), float(high)
    deviation = float(np.sqrt(np.mean(residuals**2)))
    return Fit(name, tuple(map(float, best)), values, intervals, deviation, len(N))


def _told(name: str, numbers: np.ndarray) -> dict[str, float]:
    """The numbers of a law as a paper prints them."""
    found = {}
    for key, number in zip(LAWS[name].names, numbers, strict=True):
        plain = key.removeprefix("log ")
        found[plain] = float(number if plain == key else np.exp(number))
    if name == "chinchilla":
        found["a"] = found["beta"] / (found["alpha"] + found["beta"])
    return found


def doubled(fits: Sequence[Fit], n: float, d: float) -> str:
    """What laws that hold say of twice the parameters and of twice the text, for a person."""
    lines = [f"From N = {n:,.0f} and D = {d:,.0f}, the lowest held-out loss would change by"]
    for found in fits:
        now, larger, longer = found.loss([n, 2 * n, n], [d, d, 2 * d])
        lines.append(
            f"  {found.law.capitalize():11}{larger - now:+.3f} nats for twice the parameters,"
            f" {longer - now:+.3f} for twice the text"
        )
    return "\n".join(lines)


# What the papers found, to stand beside: Kaplan et al., table 2 (D is in tokens of a BPE of 50,257,
# WebText2); Hoffmann et al., section D.3 and, for a, table 2 (MassiveText).
PAPERS = {
    "kaplan": {"alpha_N": 0.076, "alpha_D": 0.103, "Nc": 6.4e13, "Dc": 1.8e13},
    "chinchilla": {"alpha": 0.34, "beta": 0.28, "E": 1.69, "A": 406.4, "B": 410.7, "a": 0.46},
}


def table(fits: Sequence[Fit]) -> str:
    """Fits beside what the papers found, for a person."""
    lines = []
    for found in fits:
        formula = {
            "kaplan": "L = [(Nc/N)^(alpha_N/alpha_D) + Dc/D]^alpha_D",
            "chinchilla": "L = E + A/N^alpha + B/D^beta; best N for C: C^a, a = beta/(alpha+beta)",
        }[found.law]
        lines += [
            f"{found.law.capitalize()}'s law, {found.cells} cells: {formula}",
            f"  {'':8}{'here':>10}{'95 % interval':>24}{'paper':>12}",
        ]
        for key, value in found.values.items():
            low, high = found.intervals[key]
            interval = f"{low:.3g} to {high:.3g}"
            lines.append(f"  {key:8}{value:10.3g}{interval:>24}{PAPERS[found.law][key]:12.3g}")
        missed = "" if found.holds else ": it does not hold here, the table says more"
        lines += [f"  residuals {found.deviation:.2%} of the loss{missed}", ""]
    return "\n".join(lines).rstrip()
