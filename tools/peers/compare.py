"""Runs this project and PyTorch in turn on the same work and prints how much faster which is.

    pip install torch transformers
    python tools/peers/compare.py train-small train-medium decode matmul
    python tools/peers/compare.py decode --rounds 11 --seconds 2 --output bench/results/decode.json

Every contestant is a process that stays prepared and runs only when told to. A round runs each of them once, for at least `--seconds`, and the order turns around
from round to round, so that what else the machine does weighs on all alike. Speeds are medians over the rounds; a ratio is the median of
the rounds' own ratios. `best` compares the faster dtype of each side.

train-small, train-medium: forward, backward and AdamW of Qwen2 shapes (rounds.py), float32 and bf16 (PyTorch: autocast; here: bf16 weights with float32 masters).
decode: greedy, from prompts of 16 tokens to 128 new ones, prefill included, batch 1 and 32 (PyTorch: transformers' generate).
matmul: [m, k] by a weight [n, k]; `packed` is the weight in the order that generation keeps it in.
"""

import argparse
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DTYPES = ["f32", "bf16"]
PRODUCTS = [(512, 512, 512), (4096, 192, 1024), (2048, 512, 2816), (2048, 2048, 2048), (1, 512, 2816), (8, 512, 2048), (32, 512, 2048)]


def build() -> Path:
    """Builds bench/examples/step.rs and says where it is."""
    command = ["cargo", "build", "--release", "-p", "prime-bench", "--example", "step", "--message-format", "json-render-diagnostics"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    messages = [json.loads(line) for line in lines]
    return Path(next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "step"))


class Contestant:
    """A prepared process, told to run through its standard input."""

    def __init__(self, side: str, label: str, command: list[str]):
        self.side, self.label, self.command = side, label, command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self.answer()
        self.speeds: list[float] = []

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"`{shlex.join(self.command)}` ended with status {self.process.wait()}")
        return json.loads(line)

    def round(self, seconds: float) -> None:
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.speeds.append(answer["work"] / answer["seconds"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def comparisons(names: list[str]):
    """Each comparison: its name, its unit with what to divide by, and its contestants as (side, label, arguments)."""
    for name in names:
        if name.startswith("train-"):
            shape = name.removeprefix("train-")
            contestants = [("ours", dtype, ["train", shape, dtype]) for dtype in DTYPES]
            contestants += [("peer", dtype, ["train_step.py", shape, dtype]) for dtype in DTYPES]
            yield name, "tokens/s", 1, contestants
        elif name == "decode":
            for batch in ["1", "32"]:
                sizes = [batch, "16", "128"]
                contestants = [("ours", dtype, ["decode", "medium", dtype, *sizes]) for dtype in DTYPES]
                contestants += [("peer", dtype, ["decode.py", "medium", dtype, *sizes]) for dtype in DTYPES]
                yield f"decode-{batch}", "tokens/s", 1, contestants
        else:
            for product in PRODUCTS:
                sizes = [str(size) for size in product]
                contestants = [("ours", dtype, ["matmul", *sizes, dtype]) for dtype in DTYPES]
                contestants += [("ours", f"{dtype} packed", ["matmul", *sizes, dtype, "packed"]) for dtype in DTYPES]
                contestants += [("peer", dtype, ["matmul.py", *sizes, dtype]) for dtype in DTYPES]
                yield "matmul-" + "x".join(sizes), "GFLOP/s", 1e9, contestants


def run(executable: Path, unit: str, divisor: float, entries: list, rounds: int, seconds: float) -> dict:
    contestants = []
    for side, label, arguments in entries:
        start = [str(executable)] if side == "ours" else [sys.executable, str(HERE / arguments[0])]
        contestants.append(Contestant(side, label, start + arguments[side == "peer" :]))
    try:
        for index in range(rounds):
            for contestant in contestants if index % 2 == 0 else reversed(contestants):
                contestant.round(seconds)
    finally:
        for contestant in contestants:
            contestant.close()

    def best(side: str) -> list[float]:
        """The speeds of a side's faster dtype."""
        return max((c.speeds for c in contestants if c.side == side), key=statistics.median)

    def ratio(ours: list[float], peer: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(ours, peer))

    of_peer = {c.label: c.speeds for c in contestants if c.side == "peer"}
    ratios = {c.label: ratio(c.speeds, of_peer[c.label.split()[0]]) for c in contestants if c.side == "ours"}
    ratios["best"] = ratio(best("ours"), best("peer"))
    result = {"unit": unit, "ours": {}, "peer": {}, "ratios": {label: round(value, 3) for label, value in ratios.items()}, "about": {}}
    for c in contestants:
        speeds = [round(speed / divisor, 3) for speed in c.speeds]
        result[c.side][c.label] = {"median": statistics.median(speeds), "rounds": speeds}
        result["about"][c.side] = c.about
    return result


def show(name: str, result: dict) -> None:
    print(f"{name} ({result['unit']})")
    for label, ours in result["ours"].items():
        peer = result["peer"][label.split()[0]]
        print(f"  {label:<12} ours {ours['median']:>12,.1f}   PyTorch {peer['median']:>12,.1f}   ratio {result['ratios'][label]:.2f}")
    print(f"  {'best':<12} {'':>48} ratio {result['ratios']['best']:.2f}", flush=True)


def processor() -> str:
    """The processor's name and which of the instructions that matter here it has."""
    fields = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in fields["flags"].split()]
    return f"{fields['model name']}, family {fields['cpu family']}, model {fields['model']}, {os.cpu_count()} cores, {' '.join(flags)}"


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["train-small", "train-medium", "decode", "matmul"]
    parser.add_argument("comparison", nargs="+", choices=names)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="the least a contestant runs in a round")
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or not arguments.seconds > 0:
        parser.error(f"--rounds is {arguments.rounds} and --seconds {arguments.seconds}, expected at least 1 and more than 0")
    if arguments.output and not arguments.output.parent.is_dir():
        parser.error(f"--output names a file in {arguments.output.parent}, which is no folder")
    executable = build()
    report = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "tools/peers/compare.py", *sys.argv[1:]]),
        "commit": output_of("git", "rev-parse", "HEAD"),
        "uncommitted_changes": output_of("git", "status", "--porcelain", "--untracked-files=no") != "",
        "processor": processor(),
        "rustc": output_of("rustc", "--version"),
        "python": sys.version.split()[0],
        "load_before": os.getloadavg()[0],
        "comparisons": {},
    }
    for name, unit, divisor, entries in comparisons(arguments.comparison):
        result = run(executable, unit, divisor, entries, arguments.rounds, arguments.seconds)
        report["comparisons"][name] = result
        show(name, result)
    report["load_after"] = os.getloadavg()[0]
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
