"""Best-of-N by offline implicit PRMs of several losses, against a sample, the majority and an oracle: the implicit PRM paper's Table 1 in small.

For each seed: SFT on arithmetic, graded rollouts of its training problems, a PRM of each loss trained on the same rollouts, and one evaluation
that ranks the same samples of held-out problems by all of them. Prints a Markdown table and writes every figure, with seeds, settings and
commit, as JSON. Needs Python alone and a release build of `prime`; what is there already from an earlier call is not made again.

    cargo build --release
    python3 tools/best_of.py --out runs/best-of --output docs/results/best-of.json
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--prime", type=pathlib.Path, default=ROOT / "target" / "release" / "prime")
    add("--out", type=pathlib.Path, default=pathlib.Path("runs/best-of"), help="where runs go")
    add("--output", type=pathlib.Path, help="a file for every figure, as JSON")
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--losses", nargs="+", default=["ce", "dpo-pairs", "kto", "nca"])
    add("--sft-steps", type=int, default=1000)
    add("--prompts", type=int, default=2000, help="training prompts that are sampled")
    add("--samples", type=int, default=8, help="rollouts of each")
    add("--epochs", type=int, default=2)
    add("--batch-size", type=int, default=8, help="prompts of a PRM's update, each with all its rollouts")
    add("--problems", type=int, default=300, help="held-out problems")
    add("--best-of", type=int, default=16)
    add("--beta", type=float, default=0.05)
    add("--learning-rate", type=float, default=3e-4)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of SFT, such as a smaller model")
    add("--threads", type=int, default=0)
    return parser.parse_args()


def prime(args, *words):
    command = [str(args.prime), "--threads", str(args.threads), *map(str, words)]
    print("$", " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"the command above ended with {done.returncode}")
    return done.stdout


def evaluate(args, seed):
    """The evaluation of one seed, as `prime eval --json` prints it."""
    folder = args.out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    warm, rollouts = folder / "sft", folder / "rollouts.jsonl"
    policy = warm / "sft" / "policy"
    resume = lambda run: (run / "config.toml").exists()
    if not policy.exists() and resume(warm):
        prime(args, "sft", "--resume", "--out", warm)
    elif not policy.exists():
        settings = [f"sft.steps={args.sft_steps}", f"eval.problems={args.problems}", *args.set]
        words = [word for setting in settings for word in ("--set", setting)]
        prime(args, "sft", "--out", warm, "--seed", seed, *words)
    if not rollouts.exists():
        prime(
            args, "eval", "--config", warm / "config.toml", "--model", policy, "--split", "train",
            "--problems", args.prompts, "--samples", args.samples, "--seed", seed, "--output", rollouts,
        )
    words = []
    for loss in args.losses:
        run = folder / loss
        if not (run / "prm").exists() and resume(run):
            prime(args, "prm", "--resume", "--out", run)
        elif not (run / "prm").exists():
            prime(
                args, "prm", "--model", policy, "--data", rollouts, "--out", run, "--seed", seed,
                "--set", f"prm.loss={loss}", "--set", f"prm.beta={args.beta}",
                "--set", f"prm.learning_rate={args.learning_rate}", "--set", f"offline.epochs={args.epochs}",
                "--set", f"offline.batch_size={args.batch_size}",
            )
        words += ["--prm", run]
    printed = prime(
        args, "eval", "--config", warm / "config.toml", "--model", policy, "--problems", args.problems,
        "--best-of", args.best_of, "--ref", policy, "--beta", args.beta, "--separator", ";", "--seed", seed, "--json", *words,
    )
    return json.loads(printed)


def summary(values):
    """Percent: the mean over seeds, with a 95 % interval by Student's t where there are several."""
    values = [100 * value for value in values]
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.1f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = STUDENT.get(len(values) - 1, 1.96) * deviation / math.sqrt(len(values))
    return f"{mean:.1f} ± {half:.1f}"


def table(args, evaluations):
    n = args.best_of
    rankings = [evaluation["best_of"] for evaluation in evaluations]
    baseline = lambda name: summary([of_seed[0]["baselines"][name]["mean"] for of_seed in rankings])
    lines = [
        f"| pass@1 | maj@{n} | pass@{n} |",
        "|---|---|---|",
        f"| {baseline('pass_at_1')} | {baseline('majority')} | {baseline('oracle')} |",
        "",
        f"| loss | score | reference | best-of-{n} | weighted maj@{n} |",
        "|---|---|---|---|---|",
    ]
    for i, loss in enumerate(args.losses):
        for k, row in enumerate(rankings[0][i]["rows"]):
            rows = [of_seed[i]["rows"][k] for of_seed in rankings]
            of = lambda name: summary([row[name]["mean"] for row in rows])
            reference = "with" if row["reference"] else "without"
            lines.append(f"| {loss} | {row['aggregate']} | {reference} | {of('best')} | {of('weighted_majority')} |")
    seeds = len(evaluations)
    lines += ["", f"Percent of {args.problems} held-out problems; mean over {seeds} seeds, with 95 % intervals over seeds where there are several."]
    return "\n".join(lines)


def main():
    args = arguments()
    if not args.prime.exists():
        sys.exit(f"there is no {args.prime}: build it with cargo build --release, or name it with --prime")
    started = time.time()
    evaluations = [evaluate(args, seed) for seed in args.seeds]
    seconds = time.time() - started
    print(table(args, evaluations))
    if args.output:
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        settings = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in vars(args).items()}
        record = {
            "command": sys.argv, "commit": git.stdout.strip(), "settings": settings, "seconds": round(seconds, 1),
            "evaluations": dict(zip(map(str, args.seeds), evaluations)),
        }
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
