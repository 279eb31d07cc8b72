"""Loads a model with plain Transformers, generates, and writes a report: what test_inference_lowmem.py runs, once on
the original and once, with paging, on the packed model. Knows nothing of codecllm.

    python worker.py MODEL DEVICE TOKENS PROMPT REPORT"""

import json
import sys
import time

model_name, device, tokens, prompt, report = sys.argv[1:]

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


class Clock:
    """A streamer that notes when each token came; the first call brings the prompt."""

    def __init__(self):
        self.times = []

    def put(self, value):
        self.times.append(time.perf_counter())

    def end(self):
        pass


torch.manual_seed(0)
context = None
if device == "cuda":  # what the driver takes before there is a tensor, libraries of matrix products among it
    from measure import device_bytes

    before = device_bytes()
    one = torch.ones(16, 16, device=device, dtype=torch.bfloat16)
    (one @ one).cpu()
    context = None if before is None else max(0, device_bytes() - before)
begin = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(model_name)
model = AutoModelForCausalLM.from_pretrained(model_name, dtype="auto").to(device).eval()
loaded = time.perf_counter()
inputs = tokenizer(prompt, return_tensors="pt").to(device)
inputs.pop("token_type_ids", None)
clock = Clock()
with torch.inference_mode():
    output = model.generate(**inputs, max_new_tokens=int(tokens), do_sample=False, streamer=clock)
new = output[0, inputs["input_ids"].shape[1] :].tolist()
times = clock.times[1:]
speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
with open(report, "w") as file:
    json.dump(
        {
            "tokens": new,
            "text": tokenizer.decode(new),
            "load_s": loaded - begin,
            "tokens_per_s": speed,
            "context_bytes": context,
        },
        file,
    )
