"""The table and the picture of one network taught by an ensemble, beside the paper's figures."""

import numpy as np
from records import paired, spread, table
from scipy import stats

KINDS = {"one": "one network", "average": "ten averaged", "taught": "taught by the ten"}
PAPER = ["paper, speech", "58.9", "61.1", "60.8", "86 %", ""]


def share(one, average, taught):
    """Returns the share of the gain, and all shares that a t test over speakers leaves."""
    gain, ours = np.subtract(average, one), np.subtract(taught, one)
    tried = np.linspace(-5, 5, 1001)
    if len(gain) == 1:
        return f"{100 * ours[0] / gain[0]:.0f} %"
    left = [s for s in tried if stats.ttest_1samp(ours - s * gain, 0).pvalue > 0.05]
    interval = f" [{100 * left[0]:.0f}, {100 * left[-1]:.0f}]"
    return f"{100 * ours.mean() / gain.mean():.0f} %{interval}"


def tables(found):
    """Returns the table of each kind of test, beside the paper's figures."""
    text = []
    for where in ("unheard", "heard"):
        scores = {
            kind: [[score[where] for score in one[kind]] for one in found.values()]
            for kind in KINDS
        }
        alone, average, taught = (np.mean(scores[kind], 1) for kind in KINDS)
        rows = [
            [
                f"without {test}",
                *(spread(scores[kind][i]) for kind in KINDS),
                "",
                f"{one['T']:g}",
            ]
            for i, (test, one) in enumerate(found.items())
        ]
        means = [f"{np.mean(means):.1f}" for means in (alone, average, taught)]
        rows += [["mean", *means, share(alone, average, taught), ""], PAPER]
        head = [
            f"{where} speakers",
            "one network",
            "ten averaged",
            "taught by the ten",
            "kept",
            "T",
        ]
        text += [table(head, rows), "", f"Ten averaged - one: {paired(average, alone)}; "
                 f"taught - one: {paired(taught, alone)} points.", ""]  # fmt: skip
    return "\n".join(text)


def draw(found):
    """Returns the picture: every network a dot, the average of ten a line."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, where in zip(axes, ("unheard", "heard"), strict=True):
        for kind, colour, aside in (
            ("one", "grey", -0.15),
            ("taught", "tab:blue", 0.15),
        ):
            for i, one in enumerate(found.values()):
                scores = [score[where] for score in one[kind]]
                axis.plot(
                    [i + aside] * len(scores),
                    scores,
                    "o",
                    color=colour,
                    alpha=0.5,
                    label=KINDS[kind] if i == 0 else None,
                )
                axis.plot(i + aside, np.mean(scores), "_", color=colour, ms=18, mew=2.5)
        axis.hlines(
            [one["average"][0][where] for one in found.values()],
            np.arange(len(found)) - 0.35, np.arange(len(found)) + 0.35,
            "tab:orange", label=KINDS["average"],
        )  # fmt: skip
        axis.set_xticks(range(len(found)), [f"without\n{test}" for test in found])
        axis.set_ylabel("accuracy, %")
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_title("The speaker whom nobody has heard")
    axes[1].set_title("New recordings of the four who are heard, distorted")
    marks = axes[0].get_legend_handles_labels()
    figure.legend(*marks, loc="outside lower center", ncols=3)
    return figure
