"""Make tests/golden: a tiny Hugging Face directory and what transformers computes with it.

    pip install transformers && python tests/make_golden.py

Every parameter is random and large, biases and norms too. With the usual first values (biases 0,
norms 1) a model that forgets them would pass. The model has more ids than the tokenizer, as Qwen
has, and the pad token is the end token, as in Qwen2.5 base.
"""
import os
import sys

import torch
import transformers
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden")
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))
from engine.examples import train_tokenizer  # noqa: E402

TEXT = ["A says B is a knave. B says A is a knight.", "So who is a knight and who is a knave?",
        "The answer is \\boxed{A is a knight, B is a knave}"]


def main():
    torch.manual_seed(0)
    os.makedirs(HERE, exist_ok=True)
    tokenizer = train_tokenizer(TEXT, 300)
    tokenizer.save(os.path.join(HERE, "tokenizer.json"))
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(
        vocab_size=320, hidden_size=64, intermediate_size=144, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        rope_theta=1e6, tie_word_embeddings=True, eos_token_id=0, pad_token_id=0)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.generation_config.eos_token_id = [0, 2]
    model.save_pretrained(HERE)

    tokens = torch.randint(0, tokenizer.get_vocab_size(), (3, 48))
    greedy = tokens[:, :16]
    for _ in range(64):                             # over the ids that exist, without a stop
        logits = model(greedy).logits[:, -1:, :tokenizer.get_vocab_size()]
        greedy = torch.cat([greedy, logits.argmax(-1)], dim=1)
    save_file({"tokens": tokens, "logits": model(tokens).logits.detach(),
               "greedy": greedy[:, 16:].contiguous()}, os.path.join(HERE, "expected.safetensors"))


if __name__ == "__main__":
    main()
