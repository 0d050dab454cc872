"""LoRI on data of your own: a LoRI-S adapter for each of two domains, then both merged into one adapter."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import lori

base = str(lori.SCALE_MODEL_DIR)  # or any causal LM of Llama's family: a folder or a hub id
tokenizer = AutoTokenizer.from_pretrained(base)
# Prompt and response are joined as they are, so the space between them is the response's
domains = {"colour": [("Name a colour.", " blue")] * 8, "animal": [("Name an animal.", " tiger")] * 8}


def fit(method, domain, learning_rate, masks=None):
    changes = {"learning_rate": learning_rate, "num_epochs": 20, "batch_size": 8}  # a small model takes larger rates
    config = lori.paper_config(method, domain, base, **changes)  # all else is the paper's: rank 32, α 64
    model = lori.attach(AutoModelForCausalLM.from_pretrained(base), config)
    model = lori.sparsify(model, masks) if masks else model
    curve = lori.train(model, lori.tokenise(domains[domain], tokenizer, config), config, tokenizer=tokenizer)
    print(f"{method} {domain}: loss {curve[0]['train/loss']:.2f} -> {curve[-1]['train/loss']:.2f}")  # nats a response
    lori.save_adapter(model, f"adapters/{domain}/{method}", config)
    return model


def answer(model, prompt):
    tokens = tokenizer(prompt, return_tensors="pt")
    said = model.generate(**tokens, max_new_tokens=8)[0, tokens["input_ids"].shape[1] :]
    return tokenizer.decode(said, skip_special_tokens=True).strip()


for domain, ((prompt, _), *_) in domains.items():
    fit("lori-d", domain, learning_rate=0.01)
    masks = lori.extract_masks(f"adapters/{domain}/lori-d", lori.MaskConfig(sparsity=0.9, scope="model"))
    trained = fit("lori-s", domain, learning_rate=0.04, masks=masks)
    untrained = AutoModelForCausalLM.from_pretrained(base)
    print(f"{domain}: {answer(untrained, prompt)} -> {answer(trained, prompt)}")
merge = lori.MergeConfig(base, "concat", (0.5, 0.5), density=1.0, seed=0, match_norms=False)
lori.merge([f"adapters/{domain}/lori-s" for domain in domains], merge, "adapters/merged")
model = lori.load_adapter(AutoModelForCausalLM.from_pretrained(base), "adapters/merged")
