"""PPO: GRPO's loop with a critic that says, token by token, what an answer is worth from here on.

    python ppo.py --model runs/base/model --data data/rl.jsonl --out runs/ppo

GRPO compares an answer with its group and gives all its tokens the same advantage. PPO (1707.06347)
has a second network, the critic: here the same transformer, with one number as its output. Its
value v_t predicts, from the tokens before t, the reward that the answer will get. The advantage of
a token is how much better the answer went on than v_t predicted (GAE, 1506.02438):

    d_t = r_t + gamma v_{t+1} - v_t         r_t is 0 before the last token, v is 0 after it
    A_t = d_t + gamma lam A_{t+1}           (an answer that was cut off has ended, too)   `gae`

The policy's loss and the loop are those of grpo.py. After the policy, the critic learns the
returns A_t + v_t (the reward itself if gamma = lam = 1). Its loss is the larger of two squared
errors: of v as it is, and of v held within `value_clip` of its old value (`value_loss`).

Defaults are those of Echo Chamber (2504.07912) where they are known: 64 prompts of 8, KL 1e-3,
rates 1e-6 and 7e-6, lam 0.95. Not from it: the critic starts as the policy with an output of 0.
"""
from dataclasses import dataclass

from engine.flags import limits, parse
from engine.settings import RolloutTraining


@dataclass(kw_only=True)
class Settings(RolloutTraining):         # the rest of the settings: engine/settings.py
    prompts: int = limits(64, at_least=1)       # problems in a step
    group: int = limits(8, at_least=1)          # answers to each
    passes: int = limits(2, at_least=1)         # over a step's answers
    minibatches: int = limits(4, at_least=1)    # updates in a pass, each on a share of the prompts
    kl: float = limits(1e-3, at_least=0)        # weight of the k3 KL to the start, in the loss
    lr: float = limits(1e-6, above=0)           # of the policy
    critic_lr: float = limits(7e-6, above=0)    # of the critic, always the same
    gamma: float = limits(1.0, at_least=0, at_most=1)   # how much a later reward is worth
    lam: float = limits(0.95, at_least=0, at_most=1)    # 1: use the real reward; 0: only the next v
    value_clip: float = limits(0.2, above=0)    # how far v may move in the clipped error
    whiten: bool = True             # advantages with mean 0 and deviation 1 over a step's tokens


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import torch
from torch import Tensor

from engine.batches import Sequence, accumulate, of_each, padded
from engine.critic import critic_values, make_critic
from engine.evaluate import as_sequence, mean
from engine.optimizer import AdamW
from engine.training import train_command
from grpo import GRPO, Answer, Trainer


# ---- the method ------------------------------------------------------------------------------
def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """The advantages of the tokens of one answer; rewards and values of each token, [length]."""
    next_values = torch.cat([values[1:], values.new_zeros(1)])
    deltas = (rewards + gamma * next_values - values).tolist()      # d_t
    advantages, A = [], 0.0
    for d in reversed(deltas):          # plain numbers: a tensor for each token is slow
        A = d + gamma * lam * A         # A_t from A_{t+1}
        advantages.append(A)
    return values.new_tensor(advantages[::-1])


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """For each token half the squared error of its value, plain or clipped: the larger one."""
    clipped = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.max((new - returns) ** 2, (clipped - returns) ** 2)


@dataclass
class ValuedAnswer(Answer):
    """An answer with what the critic said of its tokens, and what it should have said."""
    values: Tensor                  # [length], before the step
    returns: Tensor                 # [length]


class ValueMinibatch:
    """Answers from which the critic learns together."""

    def __init__(self, answers: list[ValuedAnswer], settings):
        self.answers, self.settings = answers, settings
        self.sequences = [answer.sequence for answer in answers]
        self.tokens = sum(len(answer.returns) for answer in answers)

    def loss(self, critic, indices: list[int]) -> Tensor:
        """The part that the answers with these indices have in the loss."""
        settings, answers = self.settings, [self.answers[i] for i in indices]
        new, mask = critic_values(critic, [answer.sequence for answer in answers], settings.pack)
        old = padded([answer.values for answer in answers], new)
        returns = padded([answer.returns for answer in answers], new)
        return (value_loss(new, old, returns, settings.value_clip) * mask).sum() / self.tokens


# ---- the variant -----------------------------------------------------------------------------
class PPO(GRPO):
    """GRPO with a critic: another `credit`, and after the policy's update the critic's."""
    name, has_critic = "ppo", True

    def __init__(self, settings, ranks, policy, optimizer, reference=None):
        super().__init__(settings, ranks, policy, optimizer, reference)
        self.critic = make_critic(policy)
        self.critic_optimizer = AdamW(self.critic, settings)
        self.optimizers.append(self.critic_optimizer)

    def parts(self) -> dict:
        return super().parts() | {"critic.safetensors": self.critic.state_dict,
                                  "critic_optimizer.safetensors": self.critic_optimizer.tensors}

    def credit(self, groups: list[list[dict]]) -> list[list[ValuedAnswer]]:
        """The rollouts with an advantage for every token."""
        settings, rollouts = self.settings, [rollout for group in groups for rollout in group]
        sequences = [as_sequence(rollout) for rollout in rollouts]
        values = self.values(sequences)
        advantages = []
        for rollout, v in zip(rollouts, values):
            rewards = torch.zeros_like(v)
            rewards[-1] = rollout["reward"]
            advantages.append(gae(rewards, v, settings.gamma, settings.lam))
        returns = [A + v for A, v in zip(advantages, values)]      # before whitening
        flat = torch.cat(advantages)
        if settings.whiten and len(flat) > 1:
            advantages = [(A - flat.mean()) / (flat.std() + 1e-8) for A in advantages]
        answers = map(ValuedAnswer, sequences, advantages,
                      [torch.tensor(rollout["logprobs"]) for rollout in rollouts], values, returns)
        return [[next(answers) for _ in group] for group in groups]

    def values(self, sequences: list[Sequence]) -> list[Tensor]:
        """What the critic says of each token of every response."""
        return self.gather(of_each(
            lambda some: critic_values(self.critic, some, self.settings.pack),
            sequences, self.ranks, self.settings))

    def update(self, groups: list[list[ValuedAnswer]], lr: float) -> dict:
        return self.learn(groups, super().update(groups, lr))

    def learn(self, groups: list[list[ValuedAnswer]], trained: dict) -> dict:
        """As many updates of the critic as the policy had. Adds to the metrics of that one."""
        settings, losses = self.settings, []
        minibatches = [ValueMinibatch(answers, settings) for answers in self.split(groups)]
        for minibatch in minibatches * settings.passes:
            losses.append(accumulate(self.critic, minibatch, self.ranks, settings))
            self.critic_optimizer.update(settings.critic_lr, losses[-1])
            trained["skipped"] += self.critic_optimizer.skipped > 0
        answers = [answer for group in groups for answer in group]
        returns = torch.cat([answer.returns for answer in answers])
        errors = torch.cat([answer.values for answer in answers]) - returns
        explained = float(1 - errors.var() / returns.var()) if returns.var() > 0 else 0.0
        return trained | {"value_loss": mean(losses), "value_explains": explained}


def train(settings, ranks, dtype) -> None:
    Trainer(settings, ranks, dtype, PPO).train()


if __name__ == "__main__":
    train_command(settings, train)
