"""One network for ten, as in section 4: spoken digits of speakers whom no network has heard.

Each of five speakers is the test in turn. Ten networks learn from the other four by labels;
networks of the same kind learn in as many steps from what the ten say on average. The setting of
these is chosen for each test speaker on the two neighbours in the list: networks that have heard
neither of the two are judged on the neighbour. The same networks are also judged on kept
recordings of speakers whom they have heard, distorted as in training.

    python examples/paper/ensemble_spoken_digits.py --data-dir ~/tensorflow_datasets
    python examples/paper/ensemble_spoken_digits.py --quick

Another size (`--filters 16 32 48 --epochs 2`) needs another `--work`.
"""

import numpy as np
from ensemble_figures import draw, tables
from records import arguments, write
from voices import Without, check_work, speakers

SETTINGS = {  # mixtures, temperature, alpha
    "views, T = 1": (False, 1.0, 0.0),
    "views, T = 3": (False, 3.0, 0.0),
    "views, T = 3, alpha = 0.3": (False, 3.0, 0.3),
    "mixtures, T = 1": (True, 1.0, 0.0),
    "mixtures, T = 3": (True, 3.0, 0.0),
}


def choose(args, test, neighbours):
    """Returns what each setting reached on the neighbours of a test speaker, best first."""
    found = {}
    for setting, how in list(SETTINGS.items())[-1 if args.quick else 0 :]:
        scores = []
        for judged in neighbours:
            pair = Without(args, *sorted([test, judged]))
            for seed in range(1 if args.quick else 2):
                found_here = pair.judge_student(setting, seed, args.inner, *how)
                scores.append(found_here[judged])
        found[setting] = float(np.mean(scores))
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def judge(args, test, setting):
    """Returns the accuracies of all networks that have not heard a test speaker."""
    ours = Without(args, test)
    how = (args.nets, *SETTINGS[setting])
    found = {
        "one": [ours.judge_nets(f"net-{seed}", [seed]) for seed in range(args.nets)],
        "average": [ours.judge_nets("average", range(args.nets))],
        "taught": [ours.judge_student(setting, seed, *how) for seed in args.seeds],
    }
    return {
        kind: [{"unheard": one[test], "heard": one["heard"]} for one in scores]
        for kind, scores in found.items()
    }


def main():
    args = arguments(
        __doc__,
        5,
        filters={"type": int, "nargs": 3, "default": [8, 12, 16]},
        epochs={"type": int, "default": 1, "help": "of 24 views of each recording"},
    )
    args.filters = [4, 4, 4] if args.quick else args.filters
    args.nets, args.inner = (2, 1) if args.quick else (10, 6)
    check_work(args)
    names, chosen, found = speakers(args.quick), {}, {}
    for i, test in enumerate(names[:1] if args.quick else names):
        neighbours = [names[i - 1], names[(i + 1) % len(names)]]
        chosen[test] = choose(args, test, neighbours[:1] if args.quick else neighbours)
        found[test] = judge(args, test, next(iter(chosen[test])))
    figures = {
        "filters": args.filters,
        "epochs": args.epochs,
        "settings on neighbours": chosen,
        "accuracies": found,
    }
    write(args, "ensemble_spoken_digits", figures, tables(found), lambda: draw(found))


if __name__ == "__main__":
    main()
