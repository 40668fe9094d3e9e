"""Solutions of lesson 1."""
import torch


def probabilities(logits, temperature):
    return torch.softmax(logits / temperature, dim=-1)


def draw(p, u):
    ends = torch.cumsum(p, 0)
    return int((ends <= u).sum())               # how many parts end before the dart


def positions(prompt_length, new):
    without = sum(prompt_length + i for i in range(new))
    return without, prompt_length + new - 1     # the last token that is drawn is never read
