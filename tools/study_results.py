#!/usr/bin/env python3
"""Makes the small JSON of docs/results from the result.json of studies.

Numbers are rounded to three digits; examples, values of single prefixes and curves of single steps are left out. Of a configuration, what differs from
prime/configs/default.toml is kept.

  python3 tools/study_results.py --commit COMMIT --output docs/results/mistakes.json arithmetic=runs/mistakes columns=runs/mistakes-columns
"""

import argparse
import json
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DEFAULTS = tomllib.loads((ROOT / "prime/configs/default.toml").read_text())
# What says nothing of a result.
UNSAID = ["threads"]
# A reader of a page asks for these; result.json of a run of one's own has the rest.
LEFT_OUT = ["examples", "values", "calibration"]


def changed(config, defaults):
    """What of a configuration differs from the defaults."""
    out = {}
    for key, value in config.items():
        if key in UNSAID or value == defaults.get(key):
            continue
        nested = isinstance(value, dict) and isinstance(defaults.get(key), dict)
        out[key] = changed(value, defaults[key]) if nested else value
    return {key: value for key, value in out.items() if value != {}}


def small(value):
    """Without what is left out, and with short numbers."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, list):
        if value and all(isinstance(row, dict) and set(row) == {"name", "nats"} for row in value):
            return {row["name"]: small(row["nats"]) for row in value}
        return [small(entry) for entry in value]
    if isinstance(value, dict):
        if set(value) == {"mean", "low", "high"}:
            return [small(value[name]) for name in ("mean", "low", "high")]
        return {key: small(entry) for key, entry in value.items() if key not in LEFT_OUT}
    return value


def means(value):
    """Without the bootstrap's intervals."""
    if isinstance(value, dict):
        if set(value) == {"mean", "low", "high"}:
            return value["mean"]
        return {key: means(entry) for key, entry in value.items()}
    return [means(entry) for entry in value] if isinstance(value, list) else value


def mistakes(found):
    """By kind of mistake, and with bootstrap intervals over problems, at last checkpoints alone; what was taught as the start was is the start's."""
    for seed in found["seeds"]:
        for name, part in seed.items():
            if not isinstance(part, dict):
                continue
            last = len(part["checkpoints"]) - 1
            for place, checkpoint in enumerate(part["checkpoints"]):
                if name != "prm-ce" or place != last:
                    checkpoint.pop("by_mistake", None)
                if place != last:
                    # The policy's own lines are shown at the last one alone.
                    checkpoint.pop("own", None)
                    part["checkpoints"][place] = means(checkpoint)
            if name.startswith("taught-"):
                if part["checkpoints"] == seed["prm-ce"]["checkpoints"]:
                    part["checkpoints"] = "those of prm-ce"
                else:
                    part["checkpoints"] = part["checkpoints"][last:]
    return found


def efficiency(found):
    """The training reward as windows of ten batches, and means of the rest."""
    for seed in found["seeds"]:
        for course in (seed["prime"], seed["outcome_only"]):
            reward = course.pop("reward")
            course["reward of ten batches"] = [
                sum(reward[at : at + 10]) / len(reward[at : at + 10]) for at in range(0, len(reward), 10)
            ]
            for name in ("length", "seconds", "processor"):
                values = course.pop(name, [])
                course[f"mean {name}"] = sum(values) / len(values) if values else None
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", required=True, help="that of the program that ran the studies; NAME=COMMIT where they differ", action="append")
    parser.add_argument("--output", required=True)
    parser.add_argument("studies", nargs="+", metavar="NAME=FOLDER")
    args = parser.parse_args()
    commits = dict(part.partition("=")[::2] if "=" in part else ("", part) for part in args.commit)
    out = {}
    for study in args.studies:
        name, _, folder = study.partition("=")
        result = json.loads((pathlib.Path(folder) / "result.json").read_text())
        found = {"mistakes": mistakes, "efficiency": efficiency}[result["study"]](result["found"])
        for key in ("conditions", "teachings"):
            found.pop(key, None)
        config = changed(tomllib.loads(result["config"]), DEFAULTS)
        commit = commits.get(name, commits.get(""))
        out[name] = {"study": result["study"], "commit": commit, "configuration": config, **small(found)}
    # A line a part of a seed: short, and a change of one is seen as one.
    text = json.dumps(out, separators=(",", ":"))
    for mark in ['"prm-', '"rl-', '"taught-', '{"seed"', '"prime":', '"outcome_only":', '{"name":', '"seeds":', '"configuration":']:
        text = text.replace(mark, "\n" + mark)
    pathlib.Path(args.output).write_text(text + "\n")


if __name__ == "__main__":
    main()
