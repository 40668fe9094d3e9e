"""Sample effects as text, a table and a histogram; and their statistics: how sure they are."""
import numpy

from verify import aligned


def effects_table(rows: list[dict]) -> str:
    """A line for each dataset."""
    lines = [["data", "n", "effect", "± s.e.", "per token", "cosine", "positive", "halves agree"]]
    for row in rows:
        lines.append([row["data"], f"{row['n']:,}", f"{row['effect']:+.4g}",
                      f"{row['standard_error']:.2g}", f"{row['per_token']:+.3g}",
                      f"{row['cosine']:+.4f}" if "cosine" in row else "-",
                      f"{row['positive']:.0%}",
                      f"{row['agreement']:.2f}" if "agreement" in row else "-"])
    return aligned(lines, left=1)


def gradient_line(about: dict) -> str:
    """What is to be known of G, the gradient of the reward (effect.py), in one line."""
    more = answers_needed(about["split_half_cosine"])
    return (f"G from {about['answers']:,} answers to {about['problems']} problems"
            f" ({about['used']} of them neither all right nor all wrong), reward"
            f" {about['reward']:.3f}; its halves have cosine {about['split_half_cosine']:.3f}:"
            f" for a cosine of 0.9 with the truth it takes about {more:.2g} times the answers")


def histogram(columns: list[tuple[str, list[float]]], bins: int = 24) -> str:
    """A line for each dataset, all on one axis. The outer 1 % are in the first and last bin."""
    everything = numpy.concatenate([values for _, values in columns])
    low, high = numpy.quantile(everything, (0.01, 0.99))
    edges = numpy.linspace(low, high if high > low else low + 1, bins + 1)
    width = max(len(name) for name, _ in columns)
    lines = []
    for name, values in columns:
        counts, _ = numpy.histogram(numpy.clip(values, edges[0], edges[-1]), edges)
        marks = numpy.ceil(counts / counts.max() * 8).astype(int)
        lines.append(f"{name:{width}}  |{''.join(' ▁▂▃▄▅▆▇█'[mark] for mark in marks)}|")
    return "\n".join([*lines, f"{'':{width}}  {edges[0]:<+12.3g}{edges[-1]:>+14.3g}"])


def agreement(a: numpy.ndarray, b: numpy.ndarray) -> float:
    """The correlation of two measurements of the same numbers, 0 where one does not vary."""
    spread = a.std() * b.std()
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread) if spread else 0.0


def standard_error(values: numpy.ndarray, ids: list, seed: int, draws: int = 1000) -> float:
    """Of the mean, by bootstrap over problems: examples of one problem are drawn together."""
    number = {one: i for i, one in enumerate(dict.fromkeys(ids))}
    problem = numpy.array([number[one] for one in ids])
    sums, counts = numpy.bincount(problem, values), numpy.bincount(problem)
    picks = numpy.random.default_rng(seed).integers(0, len(number), (draws, len(number)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    return float(means.std(ddof=1)) if len(number) > 1 else 0.0


def answers_needed(cosine: float, wanted: float = 0.9) -> float:
    """How many times the answers G needs for this cosine with the true gradient.

    With a signal-to-noise ratio S in each half, the cosine of two halves is S / (S + 1). With n
    times as many answers as in both halves, the cosine with the truth is sqrt(2nS / (2nS + 1)).
    """
    if cosine <= 0:
        return float("inf")
    return wanted**2 / (1 - wanted**2) * (1 - cosine) / (2 * min(cosine, 1 - 1e-9))
