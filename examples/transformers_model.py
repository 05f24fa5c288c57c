"""Load an artifact with transformers, save it again, and make it dense."""

from transformers import AutoModelForCausalLM, AutoTokenizer

import dpq
import dpq_llama  # registers dpq with transformers

dpq.compress("builtin:tiny-llama", "for-transformers", bits=4, data=False, iterations=2)

model = AutoModelForCausalLM.from_pretrained("for-transformers")
tokenizer = AutoTokenizer.from_pretrained("for-transformers")
ids = tokenizer("import os", return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=8)[0]))

model.save_pretrained("saved-again")  # the same codes; weights are never dense

dense = model.dequantize()  # an ordinary model, for tools that know no quantization
print(type(dense.model.layers[0].mlp.up_proj).__name__, dpq_llama.__name__)
