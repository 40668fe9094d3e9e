r"""On-policy distillation: GRPO's loop, where a teacher says of every token how good it was.

    python distill.py --model runs/base/model --teacher runs/rl/model --data data/rl.jsonl \
        --out runs/distilled

Re-distillation (sft.py) shows a student the answers of its teacher. Here the student answers, and
the teacher only reads: it says how likely it finds each sampled token. The loop, the loss and the
update are those of grpo.py. What differs is the advantage of a token:

    d_t = log p_teacher(o_t) - log p_student(o_t)      a token that the teacher likes better counts
    A_t = d_t + discount * A_{t+1}                                                  `ppo.gae`

The sum of -d_t over an answer, in the mean over the student's own answers, is the reverse KL,
KL(student, teacher). (`teacher_kl` in the metrics is the mean for a token.) With
discount = 1 the expected gradient is that of this KL for whole answers. With discount = 0 (the
default) a token answers for itself alone: at every place that the student's answers reach, the KL
of the next token is made smaller, and the noise of what comes later is left out. The reward is
logged, and teaches nothing: where the answer to a problem of task math is not known, any text will
do as `gold`.

Several teachers make one student of several goals: --teacher kk=runs/a/model math=runs/b/model. A
name is a task of the problems or a level (3=DIR 4=DIR: puzzles of 3 and of 4 people).

Not from the paper. Reverse KL on the student's own samples: MiniLLM, 2306.08543, and GKD,
2306.13649; a teacher that RL made: 2605.12483; a teacher for each of several goals: 2606.30406.
"""
from dataclasses import dataclass

from engine.flags import limits, parse
from engine.settings import RolloutTraining


@dataclass(kw_only=True)
class Settings(RolloutTraining):         # the rest of the settings: engine/settings.py
    teacher: list[str]              # model directory; or several, each as NAME=DIR, where NAME is a
    #                                 task or a level of problems
    prompts: int = limits(64, at_least=1)       # problems in a step
    group: int = limits(4, at_least=1)          # answers to each
    temperature: float = limits(1.0, above=0)   # of sampling, and of both models' log-probs
    discount: float = limits(0.0, at_least=0, at_most=1)    # how much later tokens count
    passes: int = limits(1, at_least=1)         # over a step's answers
    minibatches: int = limits(1, at_least=1)    # updates in a pass, each on a share of the prompts
    kl: float = limits(0.0, at_least=0)         # weight of the k3 KL to the start, in the loss
    lr: float = limits(5e-6, above=0)


if __name__ == "__main__":      # before torch is imported: --help and a wrong flag answer at once
    settings = parse(Settings, __doc__)

import torch
from torch import Tensor

from engine.batches import Sequence
from engine.evaluate import as_sequence
from engine.problems import read_problems
from engine.tokenizer import load_tokenizer
from engine.training import teacher_directories, train_command
from grpo import GRPO, Answer, Trainer
from model import Config, load
from ppo import gae


# ---- the variant -----------------------------------------------------------------------------
def teacher_of(problem: dict, names) -> str | None:
    """The name of the teacher for this problem: its task, its level, or "" for all problems."""
    fitting = (problem["task"], str(problem["level"]), "")
    return next((name for name in fitting if name in names), None)


class Distillation(GRPO):
    """GRPO with another `credit`: the advantages come from teachers, and not from rewards."""
    name = "distill"

    def __init__(self, settings, ranks, policy, optimizer, reference=None):
        super().__init__(settings, ranks, policy, optimizer, reference)
        dtype = policy.compute_dtype or torch.float32
        self.teachers = {name: load(path, ranks.device, dtype).requires_grad_(False)
                         for name, path in teacher_directories(settings.teacher).items()}
        self.teacher_kl = 0.0           # of the last answers

    def credit(self, groups: list[list[dict]]) -> list[list[Answer]]:
        """The rollouts with an advantage for every token."""
        rollouts = [rollout for group in groups for rollout in group]
        sequences = [as_sequence(rollout) for rollout in rollouts]
        # The trainer computes both, with one teacher in batches of the same shape: in fp32 a teacher
        # that is the student then gives exactly 0. The sampler's log-probs differ by rounding.
        student = self.gather(self.logprobs(self.policy, sequences))
        teacher = self.judge(rollouts, sequences)
        differences = [theirs - own for theirs, own in zip(teacher, student)]
        self.teacher_kl = -float(torch.cat(differences).double().mean())
        answers = (Answer(sequence, gae(d, torch.zeros_like(d), self.settings.discount, 1.0),
                          torch.tensor(rollout["logprobs"]))
                   for sequence, d, rollout in zip(sequences, differences, rollouts))
        return [[next(answers) for _ in group] for group in groups]

    def judge(self, rollouts: list[dict], sequences: list[Sequence]) -> list[Tensor]:
        """log p of each token of each answer, under the teacher for its problem."""
        judged = [torch.empty(0)] * len(sequences)
        for name, teacher in self.teachers.items():
            mine = [i for i, rollout in enumerate(rollouts)
                    if teacher_of(rollout, self.teachers) == name]
            logprobs = self.gather(self.logprobs(teacher, [sequences[i] for i in mine]))
            for i, logp in zip(mine, logprobs):
                judged[i] = logp
        return judged

    def update(self, groups: list[list[Answer]], lr: float) -> dict:
        return super().update(groups, lr) | {"teacher_kl": self.teacher_kl}


# ---- the command -----------------------------------------------------------------------------
def check(settings) -> None:
    """ValueError for a teacher that cannot read the student's answers, or where one is missing."""
    teachers = teacher_directories(settings.teacher)
    words = load_tokenizer(settings.model).get_vocab()
    for path in teachers.values():
        if load_tokenizer(path).get_vocab() != words:
            raise ValueError(f"teacher = {path}: its vocabulary is not that of {settings.model}, so"
                             " it cannot read the student's tokens")
        longest = settings.max_prompt_tokens + settings.max_new_tokens
        context = Config.load(path).max_position_embeddings
        if longest > context:
            raise ValueError(f"teacher = {path}: its context is {context}, and max_prompt_tokens +"
                             f" max_new_tokens = {longest}")
    idle = {*teachers}
    for problem in read_problems(settings.data, settings.template):
        name = teacher_of(problem, teachers)
        idle.discard(name)
        if name is None:
            raise ValueError(f"teacher = {' '.join(settings.teacher)}: none for problem"
                             f" {problem['id']}, task {problem['task']}, level {problem['level']}")
    if idle:
        raise ValueError(f"teacher = {' '.join(settings.teacher)}: no problem is for"
                         f" {', '.join(sorted(idle))}")


def train(settings, ranks, dtype) -> None:
    Trainer(settings, ranks, dtype, Distillation).train()


if __name__ == "__main__":
    train_command(settings, train, check)
