"""The big networks of section 3, trained once for all experiments on MNIST.

Every experiment trains what it needs itself; two of these may run beside each other.

    python examples/paper/teachers_mnist.py --seeds 0 1 2     about 40 minutes each, one core
"""

import digits
from records import arguments

if __name__ == "__main__":
    args = arguments(__doc__, 3)
    data = digits.load(args)
    for seed in args.seeds:
        model = digits.teacher(args, data, seed)
        print(seed, digits.errors(model, data.validation), "errors in validation")
