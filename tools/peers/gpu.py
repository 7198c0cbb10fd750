"""Times PyTorch at the shapes of a file of our benchmarks, and writes a file of the same form, which `prime bench report` puts beside ours.

    python tools/peers/gpu.py --cases results/2026-11-29-nvidia-h200-bench.json --output results/2026-11-29-nvidia-h200-peers.json
    python tools/peers/gpu.py --device cpu --cases target/bench/results.json --output peers.json --seconds 20   # to see that it works

Products are those of torch.matmul, and of a Triton kernel where Triton is there; attention is scaled_dot_product_attention by each backend that takes
the shape (cuDNN, flash, and on the host the default); a training step is a Qwen2 written out here, as it is and, in a case of its own, under
torch.compile. Each result is compared with float64 at sampled places, the first loss of a training step with that of a model that knows nothing, before
it is timed. All that do a case run in turn, the order turned around from round to round, on buffers that take turns through more than the last cache;
times on a GPU are its own, by events, short calls recorded as a graph. They ran in another process than ours, minutes later on the same device: ratios
between the two say less than those within one process.
"""

import argparse
import contextlib
import datetime
import json
import math
import os
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDS = 10
ROUND_SECONDS = 0.008
GRAPH_SECONDS = 20e-6


class Clock:
    """Seconds of calls on a device, which go through sets of buffers in turn."""

    def __init__(self, device: str):
        self.is_gpu = device == "cuda"

    def seconds(self, calls) -> float:
        if not self.is_gpu:
            start = time.perf_counter()
            calls()
            return time.perf_counter() - start
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        calls()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def prepare(self, call, sets: int, recordable: bool):
        """How many calls make a round, and what makes them."""
        at = [0]

        def calls(count: int) -> None:
            for _ in range(count):
                call(at[0] % sets)
                at[0] += 1

        calls(2)
        count, took = 1, self.seconds(lambda: calls(1))
        while took < 0.2 * ROUND_SECONDS and count < 5000:
            count *= 4
            took = self.seconds(lambda: calls(count))
        each = took / count
        count = max(1, min(5000, int(ROUND_SECONDS / each)))
        if self.is_gpu and recordable and each < GRAPH_SECONDS:
            count = min(count, 200)
            graph = torch.cuda.CUDAGraph()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                calls(count)
            return count, graph.replay
        return count, lambda: calls(count)


def rounds(clock: Clock, prepared: dict) -> dict[str, list[float]]:
    """Seconds of a call of each, round by round after one that warms up."""
    seconds = {name: [] for name in prepared}
    for index in range(ROUNDS + 1):
        order = list(prepared) if index % 2 == 0 else list(reversed(prepared))
        for name in order:
            count, calls = prepared[name]
            took = clock.seconds(calls) / count
            if index > 0:
                seconds[name].append(float(f"{took:.4e}"))
    return seconds


def sum_error(terms: int) -> float:
    """As bench/src/work.rs reckons it: sums of 16 products at once, aligned and rounded."""
    return (36 * math.ceil(terms / 16) + 2) * 2.0**-24


def roundoff(dtype: torch.dtype) -> float:
    return 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24


def uniform(shape, dtype, device, seed: int) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, dtype=torch.float32, device=device).uniform_(-1, 1, generator=generator).to(dtype)


def copies(bytes_of_a_set: float, cache: float) -> int:
    return max(2, min(256, math.ceil(3 * cache / max(bytes_of_a_set, 1))))


def samples(bound: int, count: int) -> list[int]:
    count = min(bound, count)
    return [0] if count < 2 else [i * (bound - 1) // (count - 1) for i in range(count)]


def matmul(case: dict, device: str, cache: float):
    shape, dtype = case["about"]["shape"], DTYPES[case["dtype"]]
    m, n, k, layout = shape["m"], shape["n"], shape["k"], shape["layout"]
    out_dtype = torch.float32 if layout == "TN" else dtype
    sets = copies(((m * k + n * k) * dtype.itemsize + m * n * out_dtype.itemsize), cache)
    a = [uniform((k, m) if layout == "TN" else (m, k), dtype, device, 1) for _ in range(sets)]
    b = [uniform((n, k) if layout == "NT" else (k, n), dtype, device, 2) for _ in range(sets)]
    left = [x.t() if layout == "TN" else x for x in a]
    right = [x.t() if layout == "NT" else x for x in b]
    out = [torch.zeros(m, n, dtype=out_dtype, device=device) for _ in range(sets)]
    contestants = {}
    if out_dtype == dtype:
        contestants["torch.matmul"] = lambda i: torch.mm(left[i], right[i], out=out[i])
    else:
        # A product that is added to float32 gradients: PyTorch multiplies in the inputs' dtype and adds after that.
        contestants["torch.matmul"] = lambda i: out[i].add_(torch.mm(left[i], right[i]))
    if device == "cuda" and out_dtype == dtype == torch.bfloat16:
        with contextlib.suppress(ImportError):
            from triton_matmul import product

            contestants["Triton"] = lambda i: product(left[i], right[i], out[i])

    def check(name: str) -> dict:
        out[0].zero_()
        contestants[name](0)
        worst, compared = 0.0, 0
        # Added to float32 after a product of the inputs' dtype, which is rounded itself.
        stored = roundoff(dtype) if out_dtype != dtype else roundoff(out_dtype)
        for i in samples(m, 6):
            row = left[0][i].double()
            for j in samples(n, 6):
                column = right[0][:, j].double()
                exact, size = float(row @ column), float(row.abs() @ column.abs())
                error = sum_error(k) * size
                allowed = error + 1.01 * stored * (abs(exact) + error)
                worst = max(worst, abs(float(out[0][i, j]) - exact) / allowed)
                compared += 1
        return {"compared": compared, "worst": worst}

    return contestants, check, sets, True


def attention(case: dict, device: str, cache: float, backward: bool):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    shape, dtype = case["about"]["shape"], DTYPES[case["dtype"]]
    lengths, heads, kv_heads, head_dim = shape["lengths"], shape["heads"], shape["kv_heads"], shape["head_dim"]
    if len(set(lengths)) != 1:
        return None  # packed sequences of several lengths have no counterpart there
    batch, length = len(lengths), lengths[0]
    q_shape, k_shape = (batch, heads, length, head_dim), (batch, kv_heads, length, head_dim)
    bytes_of_a_set = 2 * dtype.itemsize * (math.prod(q_shape) + math.prod(k_shape)) * (2 if backward else 1)
    sets = copies(bytes_of_a_set, cache)
    q = [uniform(q_shape, dtype, device, 1).requires_grad_(backward) for _ in range(sets)]
    k = [uniform(k_shape, dtype, device, 2).requires_grad_(backward) for _ in range(sets)]
    v = [uniform(k_shape, dtype, device, 3).requires_grad_(backward) for _ in range(sets)]
    d_out = uniform(q_shape, dtype, device, 4)
    backends = {"SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION, "SDPA, flash": SDPBackend.FLASH_ATTENTION}
    if device == "cpu":
        backends = {"SDPA": None}
    options = {"is_causal": shape["causal"], "enable_gqa": heads != kv_heads}
    contestants, outputs = {}, {}

    def of(backend):
        return sdpa_kernel(backend) if backend is not None else contextlib.nullcontext()

    for name, backend in backends.items():
        try:
            with of(backend):
                outputs[name] = [F.scaled_dot_product_attention(q[i], k[i], v[i], **options) for i in range(sets if backward else 1)]
        except RuntimeError:
            continue  # this backend does not take the shape
        if backward:

            def call(i, of_name=name):
                torch.autograd.grad(outputs[of_name][i], (q[i], k[i], v[i]), d_out, retain_graph=True)
        else:

            def call(i, backend=backend):
                with of(backend), torch.no_grad():
                    F.scaled_dot_product_attention(q[i], k[i], v[i], **options)

        contestants[name] = call

    def check(name: str) -> dict:
        # A few rows of the forward pass; gradients follow from the same scores.
        out, worst, compared = outputs[name][0].detach(), 0.0, 0
        for t in samples(length, 4):
            for head in samples(heads, 2):
                of_key = head // (heads // kv_heads)
                end = t + 1 if shape["causal"] else length
                keys, values = k[0][0, of_key, :end].detach().double(), v[0][0, of_key, :end].detach().double()
                query = q[0][0, head, t].detach().double()
                scores = keys @ query / math.sqrt(head_dim)
                sizes = float((keys.abs() @ query.abs()).max()) / math.sqrt(head_dim)
                weights = torch.softmax(scores, 0)
                exact, size = weights @ values, weights @ values.abs()
                relative = 2 * (sum_error(head_dim) + 8 * 2.0**-24) * sizes + (end + 100) * 2.0**-24 + sum_error(end)
                relative += roundoff(dtype) if dtype == torch.bfloat16 else 0
                allowed = 1.01 * relative * size + 1.01 * roundoff(dtype) * exact.abs() + 1e-37
                worst = max(worst, float(((out[0, head, t].double() - exact).abs() / allowed).max()))
                compared += head_dim
        return {"compared": compared, "worst": worst}

    return contestants, check, sets, not backward


class Layer(torch.nn.Module):
    """A layer of Qwen2."""

    def __init__(self, s: dict):
        super().__init__()
        self.s = s
        qkv = (s["heads"] + 2 * s["kv_heads"]) * s["head_dim"]
        self.norm1, self.norm2 = torch.nn.RMSNorm(s["hidden"], 1e-6), torch.nn.RMSNorm(s["hidden"], 1e-6)
        self.qkv = torch.nn.Linear(s["hidden"], qkv)
        self.out = torch.nn.Linear(s["heads"] * s["head_dim"], s["hidden"], bias=False)
        self.gate_up = torch.nn.Linear(s["hidden"], 2 * s["intermediate"], bias=False)
        self.down = torch.nn.Linear(s["intermediate"], s["hidden"], bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads, kv_heads, head_dim = self.s["heads"], self.s["kv_heads"], self.s["head_dim"]
        batch, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).view(batch, length, heads + 2 * kv_heads, head_dim).transpose(1, 2)
        q, k, v = parts.split([heads, kv_heads, kv_heads], 1)

        def turn(y: torch.Tensor) -> torch.Tensor:
            first, second = y.float().chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(v.dtype)

        attended = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Decoder(torch.nn.Module):
    """A Qwen2 with a tied embedding."""

    def __init__(self, s: dict):
        super().__init__()
        self.embedding = torch.nn.Embedding(s["vocabulary"], s["hidden"])
        self.layers = torch.nn.ModuleList(Layer(s) for _ in range(s["layers"]))
        self.norm = torch.nn.RMSNorm(s["hidden"], 1e-6)
        half = s["head_dim"] // 2
        angles = torch.outer(torch.arange(s["length"]).float(), 10_000.0 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def train_step(case: dict, device: str, compiled: bool):
    s, dtype = case["about"]["shape"], DTYPES[case["dtype"]]
    torch.manual_seed(1)
    model = Decoder(s).to(device)
    tokens = torch.randint(s["vocabulary"], (s["sequences"], s["length"]), device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    forward = torch.compile(model) if compiled else model

    def step(_set: int) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16) if dtype == torch.bfloat16 else contextlib.nullcontext():
            loss = forward(tokens)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    expected = math.log(s["vocabulary"])

    def check(_name: str) -> dict:
        loss = float(step(0).detach())
        return {"compared": 1, "worst": abs(loss - expected) / 0.5}

    return {"torch.compile" if compiled else "PyTorch": step}, check, 1, False


# Who does an operation, in the order in which they are measured: what torch.compile may spend long on, behind what is quick and is then in the file.
MAKERS = [
    ("attention forward", lambda case, device, cache: attention(case, device, cache, backward=False)),
    ("attention backward", lambda case, device, cache: attention(case, device, cache, backward=True)),
    ("train step", lambda case, device, _: train_step(case, device, compiled=False)),
    ("train step", lambda case, device, _: train_step(case, device, compiled=True)),
    ("matmul", matmul),
]
OPERATIONS = list(dict.fromkeys(operation for operation, _ in MAKERS))


FAILED = "it failed: "


def reason(error: Exception) -> str:
    """What whoever did not take part is named with."""
    if isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()
        return "it needs more memory than there is"
    return f"{FAILED}{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def measure(make, case: dict, device: str, cache: float, clock: Clock, absent: list) -> dict | None:
    """What the contestants of a case did; whoever fails is added to `absent`, whatever PyTorch, its compiler or Triton raises, and the others are measured."""
    made = make(case, device, cache)
    if not made or not made[0]:
        return None
    contestants, check, sets, recordable = made
    checks, prepared = {}, {}
    for name, call in contestants.items():
        try:
            checked = check(name)
            if checked["worst"] <= 1:
                prepared[name] = clock.prepare(call, sets, recordable)
            checks[name] = checked
        except Exception as error:
            absent.append((name, reason(error)))
    seconds = rounds(clock, prepared)
    entries = [{"name": name, "ours": False, "seconds": seconds.get(name, []), "check": checked} for name, checked in checks.items()]
    return {"sets": sets, "contestants": entries}


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="a file that our benchmarks have written: its cases are measured")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=70, help="when so many have passed, what is left is left out")
    parser.add_argument("--operation", action="append", choices=OPERATIONS, help="these alone; may be given more than once")
    arguments = parser.parse_args()
    own = json.loads(arguments.cases.read_text())
    wanted = [c for c in own["cases"] if c["device"].split(":")[0] == arguments.device and c["operation"] in (arguments.operation or OPERATIONS)]
    wanted = [c for c in wanted if "shape" in c.get("about", {})]
    machine = next((m for m in own["machines"] if m["device"].split(":")[0] == arguments.device), None)
    if machine is None:
        sys.exit(f"{arguments.cases} has no figures of {arguments.device}")
    cache = machine["about"].get("last cache, bytes", 64 << 20)
    clock, started, begin = Clock(arguments.device), now(), time.monotonic()
    cases, skipped = [], []
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    if arguments.device == "cuda":
        versions |= {"CUDA of torch": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}

    def save() -> None:
        """Writes what is known by now, so that whatever ends this process leaves it behind."""
        results = {
            "format": 1,
            "started": started,
            "finished": now(),
            "command": shlex.join(["python", "tools/peers/gpu.py", *sys.argv[1:]]),
            "commit": own["commit"],
            "method": " ".join(__doc__.split("\n\n")[2].split()),
            "machines": [{"device": machine["device"], "name": machine["name"], "about": versions, "ceilings": machine["ceilings"]}],
            "cases": cases,
            "skipped": skipped,
        }
        beside = arguments.output.with_name(arguments.output.name + ".new")
        beside.write_text(json.dumps(results, indent=1) + "\n")
        beside.replace(arguments.output)

    failed = 0
    for make, case in ((make, case) for operation, make in MAKERS for case in wanted if case["operation"] == operation):
        title = f"{case['name']}, {case['dtype']}"

        def skip(why: str) -> None:
            skipped.append({"device": case["device"], "operation": case["operation"], "name": title, "why": why})

        left = arguments.seconds - (time.monotonic() - begin)
        ours = [c["seconds"] for c in case["contestants"] if c["seconds"]]
        slow = ours and statistics.median(ours[0]) * ROUNDS * 4 > max(left / 4, 1)
        if left < 0 or slow:
            skip("the time was used up" if left < 0 else "it would take too long here")
            continue
        absent = []
        try:
            measured = measure(make, case, arguments.device, cache, clock, absent)
        except Exception as error:  # the other cases are measured
            measured = None
            absent.append(("the case", reason(error)))
        for name, why in absent:
            skip(f"{name}: {why}")
            if why.startswith(FAILED):
                failed += 1
                print(f"FAILED: {case['operation']}, {title}, {name}: {why}", file=sys.stderr, flush=True)
        if measured and measured["contestants"]:
            about = {key: case.get(key, 0) for key in ("device", "operation", "name", "dtype", "unit", "amount", "flops", "bytes")}
            cases.append(about | measured)
            shown = {c["name"]: f"{statistics.median(c['seconds']) * 1e3:.4g} ms" for c in measured["contestants"] if c["seconds"]}
            print(f"{case['operation']}, {title}: {shown}", flush=True)
        save()
    save()
    if failed:
        sys.exit(f"{failed} failed: see the file")
    if any(c["check"]["worst"] > 1 for case in cases for c in case["contestants"]):
        sys.exit("a result was wrong: see the file")


if __name__ == "__main__":
    main()
