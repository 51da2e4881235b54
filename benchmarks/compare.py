"""gradclip beside its peers and the memory limit.

    python benchmarks/compare.py [--threads N] [--rounds N] [row ...]

The rows of the README's table, measured as `gradclip bench` does it (gradclip/cli/bench.py): all contenders of a row run in
turn, round after round, in one process; the fastest call of each counts. Peers that are not installed are left out."""

import argparse

from benchmarks.common import flat, gpt2_small, gradients, resnet50

import gradclip
from gradclip.cli import bench

ROWS = {
    "GPT-2 small, 148 leaves, 124M f32": (gpt2_small(), "float32"),
    "ResNet-50, 161 leaves, 25M f64": (resnet50(), "float64"),
    "124M f16 in 148 leaves": (gpt2_small(), "float16"),
    "124M bf16 in 148 leaves": (gpt2_small(), "bfloat16"),
    "1000 leaves x 1000 f32": (flat(1000, 1000), "float32"),
    "6 leaves x 1000 f32": (flat(1000, 6), "float32"),
    "1 leaf x 10 f32": (flat(10), "float32"),
    "1 leaf x 1000 f32": (flat(1000), "float32"),
    "1 leaf x 10,000 f32": (flat(10_000), "float32"),
    "1 leaf x 100,000 f32": (flat(100_000), "float32"),
    "1 leaf x 1,000,000 f32": (flat(1_000_000), "float32"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=gradclip.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("rows", nargs="*", help="parts of the rows' names")
    options = parser.parse_args()
    gradclip.set_num_threads(options.threads)
    peers = bench.installed_peers()
    print(gradclip.show_config(), end="\n\n")
    for name, (shapes, dtype) in ROWS.items():
        if options.rows and not any(part in name for part in options.rows):
            continue
        leaves = gradients(shapes, dtype)
        for clips in (False, True):
            seconds = bench.fastest(peers, leaves, clips, rounds=options.rounds)
            cells = [f"{contender} {best * 1e6:,.1f} us" for contender, best in seconds.items()]
            ratio = seconds["gradclip"] / seconds["limit"]
            print(
                f"{name}, {'clipping' if clips else 'nothing to clip'}:  = {ratio:.2f} x limit\n    {', '.join(cells)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
