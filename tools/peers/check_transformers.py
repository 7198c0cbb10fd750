"""What transformers computes from a model folder, or whether it computes the same from two.

    pip install torch transformers
    python tools/peers/check_transformers.py FOLDER [OTHER] [--text TEXT ...]

With one folder: JSON Lines with `text`, `token_ids`, `log_probs` (of every token after the first) and `entropy`, as `prime score` writes them. With two: the
largest difference of the logits for each text; exit code 1 where the ids differ or the logits are not the same bits.
"""

import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = ["12 + 7 = 19", "Let x be a real number with x^2 - 5x + 6 = 0. Then x = 2 or x = 3."]


def load(folder: str):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: sorted(value) for key, value in report.items() if value}
    if problems:
        sys.exit(f"{folder}: transformers reports {problems}")
    # By tokenizer.json alone: AutoTokenizer rebuilds those of some families.
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(folder)


@torch.no_grad()
def logits_of(model, tokenizer, text: str):
    ids = tokenizer(text, return_tensors="pt").input_ids
    return ids[0], model(ids).logits[0].float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--text", action="append")
    arguments = parser.parse_args()
    texts = arguments.text or TEXTS
    first = load(arguments.folder)
    if arguments.other is None:
        for text in texts:
            ids, logits = logits_of(*first, text)
            log_probs = torch.log_softmax(logits, -1)
            of_tokens = log_probs[:-1].gather(1, ids[1:, None])[:, 0]
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            row = {"text": text, "token_ids": ids.tolist(), "log_probs": of_tokens.tolist(), "entropy": entropy.tolist()}
            print(json.dumps(row, ensure_ascii=False))
        return
    second = load(arguments.other)
    same = True
    for text in texts:
        (ids, logits), (other_ids, other_logits) = logits_of(*first, text), logits_of(*second, text)
        if ids.tolist() != other_ids.tolist():
            print(f"{text!r}: the ids differ: {ids.tolist()} and {other_ids.tolist()}")
            same = False
            continue
        difference = float((logits - other_logits).abs().max())
        print(f"{text!r}: largest difference of the logits {difference}")
        same &= difference == 0
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
