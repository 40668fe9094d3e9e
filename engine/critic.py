"""PPO's critic: the transformer of the policy, with one number for each token as its output."""
import copy

import torch

from engine.batches import Sequence, by_response, layout


def make_critic(policy):
    """The policy's own weights, and a head that starts at 0."""
    critic = copy.deepcopy(policy)
    critic.head = torch.nn.Parameter(torch.zeros(policy.config.hidden_size,
                                                 device=policy.head_weight.device))
    if not policy.config.tie_word_embeddings:
        del critic.lm_head                                  # A critic predicts no words.
    return critic


def critic_values(critic, sequences: list[Sequence], pack: bool):
    """The value before each token of the responses, [B, R]; and the mask of real ones."""
    tokens, where, mask, lengths = layout(sequences, pack, critic.head.device)
    hidden = critic.hidden(tokens, lengths)[:, :-1][where].float()              # [N, C]
    return by_response((hidden * critic.head).sum(-1), mask), mask
