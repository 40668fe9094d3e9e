"""Solutions of lesson 4."""
import torch


def group_advantages(rewards):
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + 1e-6)


def teaching(rewards):
    mean = rewards.mean(-1)
    return float(((mean > 0) & (mean < 1)).float().mean())


def gain(ratio, A, clip):
    return torch.minimum(ratio * A, ratio.clamp(1 - clip, 1 + clip) * A)
