"""PPO: grpo.py with a critic that says, token by token, what an answer is worth from here on.

    python ppo.py --model runs/base/model --data data/rl.jsonl --out runs/ppo

GRPO compares an answer with its group and credits all its tokens alike. PPO (1707.06347) has a
second network V, here the same transformer with one number for an output, that foretells the reward
from the tokens so far. A token's advantage is what V has to be corrected by after it (GAE,
1506.02438):

    d_t = r_t + gamma V_{t+1} - V_t         r_t is 0 but at the end, and so is V after the end
    A_t = d_t + gamma lam A_{t+1}

The policy's loss, its clip and its KL are grpo.py's; its loop is, too. Then V learns A_t + V_t, what
the reward turned out to be, by the larger of two squares: the plain one, and one where V may move
by `value_clip` only. `gae`, `value_loss` and class Critic are all the difference there is.

Defaults are those of Echo Chamber (2504.07912) where known: 64 prompts of 8, KL 1e-3, lr 1e-6 and
7e-6, lam 0.95. Not from it: the critic starts as the policy with an output of 0, and a group of
one will do.
"""
import copy
import os
from dataclasses import dataclass

import torch
from safetensors.torch import load_file
from torch import Tensor

import cli
import grpo
from sft import AdamW, accumulate, command, laid_out


@dataclass
class Settings(grpo.Settings):
    prompts: int = 64               # problems in a step
    kl: float = 1e-3                # weight of the k3 KL to the start, in the loss
    lr: float = 1e-6
    updates: int = 2                # passes over a step's answers
    minibatches: int = 4            # updates in a pass
    critic_lr: float = 7e-6
    gamma: float = 1.0              # how much a later reward is worth
    lam: float = 0.95               # 1: trust the reward alone; 0: the critic's next word alone
    value_clip: float = 0.2         # how far V may move in the clipped square
    whiten: bool = True             # advantages with mean 0 and deviation 1 over a step's tokens


# ---- the method ------------------------------------------------------------------------------
def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages of the tokens of one answer, all [T]."""
    after = torch.cat([values[1:], values.new_zeros(1)])
    found, ahead = [], 0.0
    for wrong_by in reversed((rewards + gamma * after - values).tolist()):      # no tensors: many
        ahead = wrong_by + gamma * lam * ahead
        found.append(ahead)
    return values.new_tensor(found[::-1])


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the square error of V, the larger of plain and clipped, for each token."""
    near = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.max((new - returns) ** 2, (near - returns) ** 2)


class Critic:
    """V: the policy's own weights at the start, and a head that starts at 0."""

    def __init__(self, policy, ranks, settings, run):
        self.model, self.ranks = copy.deepcopy(policy), ranks
        self.model.head = torch.nn.Parameter(torch.zeros(
            policy.config.hidden_size, device=policy.head_weight.device))
        if not policy.config.tie_word_embeddings:
            del self.model.lm_head                          # a critic says no words
        self.optimizer = AdamW(self.model, settings)
        self.saved = ("critic.safetensors", "critic_optimizer.safetensors")
        if run.checkpoint:
            weights, state = (os.path.join(run.checkpoint, name) for name in self.saved)
            self.model.load_state_dict(load_file(weights))
            self.optimizer.restore(state)
        run.also = dict(zip(self.saved, (self.model.state_dict, self.optimizer.tensors)))

    def forward(self, model, sequences, pack, temperature=1.0, entropy=False):
        """V before each token of the responses, [B, R]; the mask of real ones; nothing."""
        tokens, where, mask, lengths = laid_out(sequences, pack, model.head.device)
        values = (model.hidden(tokens, lengths)[:, :-1][where].float() * model.head).sum(-1)
        return values.new_zeros(mask.shape).masked_scatter(mask, values), mask, None

    def values(self, sequences, settings) -> list[Tensor]:
        """V before each token of every response."""
        found = grpo.logprobs_of(self.model, self.ranks, sequences, settings, self.forward)
        mine = [(i, values.cpu()) for i, values in found.items()]
        return [values for _, values in sorted(self.ranks.gather(mine))]

    def credit(self, groups: list[list[dict]], settings) -> list[list[grpo.Answer]]:
        """As grpo.to_train_on, with an advantage for every token."""
        rows = [row for group in groups for row in group]
        sequences = [grpo.sequence_of(row) for row in rows]
        values = self.values(sequences, settings)
        found = []
        for row, V in zip(rows, values):
            rewards = torch.zeros_like(V)
            rewards[-1] = grpo.worth(row, settings)
            found.append(gae(rewards, V, settings.gamma, settings.lam))
        self.old, self.returns = values, [A + V for A, V in zip(found, values)]
        if settings.whiten and found:
            flat = torch.cat(found)
            found = [(A - flat.mean()) / (flat.std() + 1e-8) for A in found]
        answers = iter([grpo.Answer(sequence, A, torch.tensor(row["logprobs"]))
                        for sequence, A, row in zip(sequences, found, rows)])
        return [[next(answers) for _ in group] for group in groups]

    def learn(self, groups: list[list[grpo.Answer]], settings) -> dict:
        """As many updates of V as the policy had; how well V foretold."""
        s, sequences = settings, [answer.sequence for group in groups for answer in group]
        if not sequences:                                   # --equal-groups dropped them all
            return {"value_loss": 0.0, "value_explains": 0.0}
        flat = torch.cat(self.returns)
        off = torch.cat(self.old) - flat
        share = -(-len(groups) // s.minibatches)
        losses, batches, at = [], [], 0
        for first in range(0, len(groups), share):
            size = sum(map(len, groups[first:first + share]))
            batches.append(range(at, at := at + size))
        for which in batches * s.updates:
            total = sum(len(self.returns[i]) for i in which)

            def loss_of(indices, new, mask, _):
                old, returns = (grpo.padded([rows[which[i]] for i in indices], new)
                                for rows in (self.old, self.returns))
                return (value_loss(new, old, returns, s.value_clip) * mask).sum() / total

            losses.append(accumulate(self.model, self.ranks, [sequences[i] for i in which], s,
                                     loss_of, forward=self.forward))
            self.optimizer.update(s.critic_lr, losses[-1])
        return {"value_loss": grpo.mean(losses), "value_explains": float(
            1 - off.var() / flat.var()) if flat.var() > 0 else 0.0}


# ---- the command -----------------------------------------------------------------------------
def train(settings, ranks, dtype) -> None:
    for name, fine in (("gamma", 0 <= settings.gamma <= 1), ("lam", 0 <= settings.lam <= 1),
                       ("critic_lr", 0 < settings.critic_lr), ("value_clip", 0 < settings.value_clip),
                       ("cut_off", settings.cut_off != "mask"),
                       ("equal_groups", settings.equal_groups == "keep" or settings.group > 1)):
        if not fine:
            raise ValueError(f"{name} = {getattr(settings, name)} cannot be used here")
    grpo.train(settings, ranks, dtype, Critic)


def main():
    command(cli.parse(Settings, __doc__), train)


if __name__ == "__main__":
    main()
