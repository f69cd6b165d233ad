"""The nets of sections 4 and 5, trained once for all experiments on CIFAR-100.

Every experiment trains what it needs itself; two of these may run beside each other.

    python examples/paper/teachers_cifar100.py --seeds 0 1 2     about 17 minutes each, one core
"""

import images
from records import arguments

if __name__ == "__main__":
    args = arguments(__doc__, 10)
    data = images.load(args)
    for seed in args.seeds:
        model = images.teacher(args, data, seed)
        print(seed, images.accuracy(model, data.validation), "% of validation images")
