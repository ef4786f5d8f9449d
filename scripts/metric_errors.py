"""What the standard errors of metrics are worth, and how metrics depend on n; the tables of docs/evaluation.md.

    python scripts/metric_errors.py [--draws=100] [--size=500]

Real features are N(0, I) in 16 dimensions, generated ones the same or N(0.25, 1.1² I); the classifier is linear. For
each metric, over independent draws: its mean, its standard deviation, and over that the stated standard error, the
bootstrap's (rows of both sets drawn with replacement) and how much the bootstrap's mean is off.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import argparse

import numpy as np

from score_sde.evaluation.features import Features
from score_sde.evaluation.metrics import METRICS, Settings, Train, score, take

DIM, CLASSES = 16, 10
WEIGHTS = np.random.default_rng(0).normal(size=(DIM, CLASSES))
SETTINGS = Settings(kernel_subsets=10, kernel_subset_size=100)
BOOTSTRAPPED, RESAMPLES = 10, 20  # draws, and resamples of each
SIZES = (250, 500, 1000, 2000)
LAWS = {"equal laws": (0.0, 1.0), "shifted and wider": (0.25, 1.1)}


def features(draw: np.random.Generator, n: int, shift: float, scale: float) -> Features:
    """n samples, and what the classifier says of them."""
    rows = shift + scale * draw.normal(size=(n, DIM))
    odds = np.exp(rows @ WEIGHTS)
    return Features(rows.astype(np.float32), odds / odds.sum(axis=1, keepdims=True))


def errors(name: str, law: tuple[float, float], train: Train, size: int, draws: int) -> tuple[float, ...]:
    """Mean, deviation; over the deviation: the stated error, the bootstrap's, and the bootstrap's shift."""
    draw = np.random.default_rng(1)
    values, shifts, spreads = [], [], []
    for number in range(draws):
        own, real = features(draw, size, *law), features(draw, size, 0.0, 1.0)
        values.append(score(name, own, real, SETTINGS, train))
        if number < BOOTSTRAPPED:
            again = lambda each: take(each, draw.integers(size, size=size))
            other = [score(name, again(own), again(real), SETTINGS, train).value for _ in range(RESAMPLES)]
            shifts.append(np.mean(other) - values[-1].value)
            spreads.append(np.var(other, ddof=1))
    deviation = float(np.std([value for value, _ in values], ddof=1))
    stated = [error**2 for _, error in values if error is not None]
    over = [np.mean(stated) ** 0.5 if stated else np.nan, np.mean(spreads) ** 0.5, np.mean(shifts)]
    return float(np.mean([value for value, _ in values])), deviation, *(float(each) / deviation for each in over)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--size", type=int, default=500)
    flags = parser.parse_args(arguments)
    draw = np.random.default_rng(2)
    known = features(draw, 1000, 0.0, 1.0)
    train = Train(known.features, (known.features[:, 0] > 0).astype(int))
    for title, law in LAWS.items():
        print(f"\n{title}, n = {flags.size}\n| metric | mean | deviation | stated | bootstrap | bootstrap's shift |")
        for name in METRICS:
            row = errors(name, law, train, flags.size, flags.draws)
            print(f"| `{name}` | {row[0]:.4g} | {row[1]:.2g} | " + " | ".join(f"{each:.2f}" for each in row[2:]) + " |")
    print(f"\nequal laws, mean of 10 draws\n| metric | {' | '.join(f'n = {n}' for n in SIZES)} |")
    for name in METRICS:
        at = lambda n, name=name: (
            score(name, features(draw, n, 0.0, 1.0), features(draw, n, 0.0, 1.0), SETTINGS, train).value
        )
        print(f"| `{name}` | " + " | ".join(f"{np.mean([at(n) for _ in range(10)]):.3g}" for n in SIZES) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
