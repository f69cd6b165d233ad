"""One network for ten, as in section 4: spoken digits of speakers whom no network has heard.

Each of five speakers is the test in turn. Ten networks learn from the other four by labels;
three of the same kind learn in as many steps, and at the same rate, from what the ten say on
average. Their T is chosen for each test speaker on kept recordings of the other four, by seed
100. All are judged on the speaker whom they have not heard, and on other kept recordings of those
whom they have, distorted as in training.

    python examples/paper/ensemble_spoken_digits.py     about three hours on one core
    python examples/paper/ensemble_spoken_digits.py --quick
"""

from ensemble_figures import draw, tables
from records import arguments, write
from voices import Without, speakers

TEMPERATURES = (1.0, 2.0, 4.0)


def judge(args, test):
    """Returns T and the accuracies of all networks that have not heard a speaker."""
    ours, nets = Without(args, test), 2 if args.quick else 10
    tried = {
        t: ours.judge_student(100, nets, t)["validation"]
        for t in TEMPERATURES[: 1 if args.quick else None]
    }
    temperature = max(tried, key=tried.get)
    return {
        "T": temperature,
        "one": [ours.judge_nets(f"net-{seed}", [seed]) for seed in range(nets)],
        "average": [ours.judge_nets("average", range(nets))],
        "taught": [ours.judge_student(seed, nets, temperature) for seed in args.seeds],
    }


def main():
    args = arguments(__doc__, 3)
    names = speakers(args.quick)[: 1 if args.quick else None]
    found = {test: judge(args, test) for test in names}
    figures = {"seeds": args.seeds, "accuracies": found}
    write(args, "ensemble_spoken_digits", figures, tables(found), lambda: draw(found))


if __name__ == "__main__":
    main()
