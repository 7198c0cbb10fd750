"""Writes tests/fixtures/models: three tiny models as transformers saves them, with what transformers computes from them.

    pip install torch transformers
    python tools/peers/make_fixtures.py
    python tools/peers/make_fixtures.py FOLDER    # prints `expected.json` for a tokenizer and chat template of any folder

The folders are committed, so the tests need no Python. Names in `expected.safetensors`, for text N of TEXTS: `N.input_ids`, `N.logits_last` (logits at
the last position), `N.token_log_probs` (of every token after the first), `N.entropy` (per position, nats), `N.loss` (mean negative
log-probability), `N.grad.NAME` (gradient of the loss), `N.greedy_ids` (24 greedy continuation tokens, no stop token). Computed in float32
with eager attention. `expected.json` holds texts with their ids and conversations as the chat template renders them.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

OUTPUT = Path(__file__).resolve().parents[2] / "tests" / "fixtures" / "models"
TEXTS = ["3 + 4 = 7", "Ada has 12 pens and gives 5 away. She keeps 12 - 5 = 7 pens.", "x^2 = 9, so x = 3 or x = -3."]
STRANGE = ["", " ", "  two  spaces\n\nand lines\t", "caf\u00e9 na\u00efve \u4f60\u597d \U0001f600", "<|end|>12<|start|>", "e\u0301\u00a0\ufeff\u0000"]
CONVERSATIONS = [
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi \n"}],
    [
        {"role": "user", "content": "A \"quoted\" <b>word</b> & more"},
        {"role": "assistant", "content": "<think>\nlong\n</think>\n\nshort"},
        {"role": "user", "content": "caf\u00e9?"},
    ],
]

# Three ways to write a template, with the constructs of published ones.
TEMPLATE_TEXT = (
    "{%- if messages[0]['role'] == 'system' %}\n    {{- '<|start|>system\\n' + messages[0]['content'] + '<|end|>\\n' }}\n"
    "{%- else %}\n    {{- '<|start|>system\\nYou are helpful.<|end|>\\n' }}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) "
    "or (message.role == 'assistant' and not message.tool_calls) %}\n"
    "        {{- '<|start|>' + message.role + '\\n' + message.content + '<|end|>' + '\\n' }}\n    {%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n    {{- '<|start|>assistant\\n' }}\n{%- endif %}\n"
)
TEMPLATE_FILE = """{#- thoughts of earlier turns are left out -#}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last < 0 and message.role == 'user' %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{% for message in messages %}
    {% if message['role'] not in ['system', 'user', 'assistant'] %}
        {{ raise_exception('unknown role ' ~ message.role) }}
    {% endif %}
    {%- set content = message.content.split('</think>')[-1].lstrip('\\n') if loop.index0 < ns.last else message.content | trim %}
<|start|>{{ message.role.upper() if message.role.startswith('s') else message.role }}
{% if message.role == 'assistant' %}
{% generation %}
{{ content }}<|end|>
{% endgeneration %}
{% else %}
{{ content }}<|end|>
{% endif %}
{% endfor %}
{{ messages[0] | tojson }}
{{ {'list': [1, 2.5, true, none, []], 'nested': {'a': 'x'}} | tojson(indent=2) }}
{%- if tools is iterable and tools | length > 0 %}tools{% endif %}
{% if add_generation_prompt %}
<|start|>assistant
{% endif %}
"""
TEMPLATE_NAMED = (
    "{{- bos_token }}{%- for m in messages %}{{- '[' ~ m.role | capitalize ~ '] ' ~ m.content.strip() }}"
    "{%- if m.role == 'assistant' %}{{- eos_token }}{%- endif %}{{- '\\n' }}{%- if loop.index > 9 %}{% break %}{% endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '[Assistant]' }}{%- endif %}"
)


def tokenizer(with_begin: bool) -> PreTrainedTokenizerFast:
    special = ["<|pad|>", "<|start|>", "<|end|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=288, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    inner.train_from_iterator(TEXTS * 4, trainer)
    if with_begin:
        inner.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    names = dict(eos_token="<|end|>", pad_token="<|pad|>")
    if with_begin:
        names["bos_token"] = "<|start|>"
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    # AutoTokenizer of transformers 5 rebuilds the tokenizer of a qwen2 folder with its own word pattern; tokenizer.json is what counts here.
    return PreTrainedTokenizerFast.from_pretrained(folder)


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 2:
                scale = 0.5 if "embed" in name else parameter.shape[1] ** -0.5
                parameter.copy_(noise * scale)
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.2)
            else:
                parameter.copy_(1 + noise * 0.2)


def expected(folder: Path) -> dict[str, torch.Tensor] | None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = load_tokenizer(folder)
    values = {}
    for index, text in enumerate(TEXTS):
        ids = tokens(text, return_tensors="pt").input_ids
        model.zero_grad()
        logits = model(ids).logits[0]
        log_probs = torch.log_softmax(logits, -1)
        of_tokens = log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        loss = -of_tokens.mean()
        loss.backward()
        values[f"{index}.input_ids"] = ids[0]
        values[f"{index}.logits_last"] = logits[-1].detach()
        values[f"{index}.token_log_probs"] = of_tokens.detach()
        values[f"{index}.entropy"] = -(log_probs.exp() * log_probs).sum(-1).detach()
        values[f"{index}.loss"] = loss.detach()
        if index == 0:
            for name, parameter in model.named_parameters():
                values[f"{index}.grad.{name}"] = parameter.grad.clone()
        margin = float("inf")
        continuation = ids
        with torch.no_grad():
            for _ in range(24):
                top = model(continuation).logits[0, -1].topk(2)
                margin = min(margin, float(top.values[0] - top.values[1]))
                continuation = torch.cat([continuation, top.indices[None, :1]], 1)
        if margin < 1e-2:  # a choice between equals would depend on rounding
            return None
        values[f"{index}.greedy_ids"] = continuation[0, ids.shape[1] :]
    return {name: value.contiguous() for name, value in values.items()}


def texts_and_chats(folder: Path) -> dict:
    tokens = load_tokenizer(folder)
    return {
        "texts": [
            {
                "text": text,
                "ids": tokens(text).input_ids,
                "ids_without_special": tokens(text, add_special_tokens=False).input_ids,
            }
            for text in TEXTS + STRANGE
        ],
        "chats": [
            {
                "messages": messages,
                "add_generation_prompt": prompt,
                "text": tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt),
            }
            for messages in CONVERSATIONS
            for prompt in (False, True)
        ],
    }


def lines(value: dict) -> str:
    """JSON with one entry a line."""
    lists = [f' "{key}": [\n  ' + ",\n  ".join(json.dumps(x, ensure_ascii=False) for x in value[key]) + "\n ]" for key in value]
    return "{\n" + ",\n".join(lists) + "\n}\n"


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def older_dialect(config: dict) -> None:
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    common = dict(vocab_size=288, hidden_size=16, intermediate_size=24, num_hidden_layers=2, max_position_embeddings=128)
    rope = dict(rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    cases = {
        "qwen2-tied": (
            Qwen2ForCausalLM,
            Qwen2Config(**common, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True, eos_token_id=2),
            torch.float32,
        ),
        "qwen3-untied-bf16-sharded": (
            Qwen3ForCausalLM,
            Qwen3Config(**common, num_attention_heads=2, num_key_value_heads=2, head_dim=12, tie_word_embeddings=False, eos_token_id=2),
            torch.bfloat16,
        ),
        "llama3-rope-scaled": (
            LlamaForCausalLM,
            LlamaConfig(
                **common, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, rope_parameters=rope,
                attention_bias=True, bos_token_id=1, eos_token_id=[2, 0],
            ),
            torch.float32,
        ),
    }
    for name, (family, config, dtype) in cases.items():
        folder = OUTPUT / name
        tokenizer(with_begin=name.startswith("llama")).save_pretrained(folder)
        if name == "qwen2-tied":
            edit(folder / "tokenizer_config.json", lambda value: value.update(chat_template=TEMPLATE_TEXT))
        elif name == "llama3-rope-scaled":
            named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": TEMPLATE_NAMED}]
            edit(folder / "tokenizer_config.json", lambda value: value.update(chat_template=named))
        else:
            (folder / "chat_template.jinja").write_text(TEMPLATE_FILE)
        for seed in range(20):
            model = family(config)
            randomise(model, seed)
            model.to(dtype).save_pretrained(folder, max_shard_size="12KB" if "sharded" in name else "1GB")
            if name == "qwen2-tied":
                edit(folder / "config.json", older_dialect)
            if values := expected(folder):
                save_file(values, folder / "expected.safetensors")
                break
        (folder / "expected.json").write_text(lines(texts_and_chats(folder)))


if __name__ == "__main__":
    if len(sys.argv) > 1 and not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    elif len(sys.argv) > 1:
        print(lines(texts_and_chats(Path(sys.argv[1]))), end="")
    else:
        main()
