"""A LoRI-D adapter on a JSON-lines file: python docs/example_jsonl.py ROWS.jsonl ADAPTER_DIR

A row is {"prompt": …, "response": …}. Both are joined as they are: begin the response with a space if it needs one.
"""

import json
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

import lori

rows_path, adapter_dir = sys.argv[1:]
lines = [json.loads(line) for line in Path(rows_path).read_text().splitlines()]
rows = [(line["prompt"], line["response"]) for line in lines]

base = str(lori.SCALE_MODEL_DIR)  # or any causal LM of Llama's family: a folder or a hub id
tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
config = lori.paper_config("lori-d", Path(rows_path).stem, base, learning_rate=0.01, num_epochs=20, batch_size=8)
model = lori.attach(model, config)
for point in lori.train(model, lori.tokenise(rows, tokenizer, config), config, tokenizer=tokenizer):
    print(f"step {point['step']}: loss {point['train/loss']:.2f}")  # nats a response
for prompt in dict(rows):
    tokens = tokenizer(prompt, return_tensors="pt")
    said = model.generate(**tokens, max_new_tokens=20)[0, tokens["input_ids"].shape[1] :]
    print(prompt, "->", tokenizer.decode(said, skip_special_tokens=True))
lori.save_adapter(model, adapter_dir, config)
