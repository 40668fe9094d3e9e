"""The settings that trainers share. What is special to each stands at the top of its own file."""
from dataclasses import dataclass, field

from engine.flags import limits
from engine.prompts import TEMPLATES

SCHEDULES = ("cosine", "linear", "constant")


@dataclass(kw_only=True)
class Machine:
    """What every command that computes gradients has to know."""
    # ---- the machine
    micro_tokens: int = limits(0, at_least=0)   # tokens in one forward and backward pass; bounds the
    #                                 memory; 0: 16,384 on a GPU, 2,048 on a CPU
    device: str = "auto"            # cpu, cuda, cuda:0 ...; auto: cuda where there is one
    dtype: str = limits("auto", one_of=("auto", "float32", "bfloat16"))     # to compute in (weights
    #                                 stay fp32); auto: bfloat16 on cuda, and
    #                                 for large models on a CPU that has it


@dataclass(kw_only=True)
class Training(Machine):
    """What SFT, GRPO and PPO share."""
    beta2: float = limits(0.999, at_least=0, below=1)       # AdamW's other moment (paper: 0.999)
    clip_norm: float = limits(1.0, above=0)     # a longer gradient is shortened to this (paper: 1)
    # ---- the run
    out: str                        # run directory; the trained model will be in OUT/model
    resume: bool = False            # go on from the last checkpoint in OUT
    seed: int = limits(0, at_least=0, below=2**63)  # same seed, same machine: same run
    eval: str | None = None         # held-out problems: the share that is answered right is measured
    eval_every: int = limits(100, at_least=1)   # steps between two measurements; the last always is
    eval_n: int = limits(1, at_least=1)         # samples per problem
    eval_temperature: float = limits(0.0, at_least=0)       # 0: greedy (paper)
    eval_max_new_tokens: int = limits(4096, at_least=1)     # (paper: 4096)
    template: str = limits("chat", one_of=TEMPLATES)    # prompts of official problem files
    save_every: int = limits(100, at_least=1)   # steps between two checkpoints
    keep: int = limits(2, at_least=1)           # checkpoints to keep; OUT/best is kept besides
    keep_at: list[int] = field(default_factory=list)    # steps whose model stays, as OUT/step-N
    # ---- the machine
    pack: bool = True               # sequences end to end in one row, not padded to the longest
    checkpointing: str = limits("auto", one_of=("auto", "yes", "no"))   # recompute activations;
    #                                 auto: where memory is short
    offload: bool = False           # AdamW and its state in main memory, not on the GPU


@dataclass(kw_only=True)
class RolloutTraining(Training):
    """What GRPO and PPO share beyond that: training on answers that the policy has just sampled."""
    model: str                      # model directory to start from
    data: list[str]                 # problems (JSONL; ours, or official K&K, MATH or GSM8K files)
    temperature: float = limits(0.7, above=0)           # of sampling and training (paper: 0.7)
    clip: float = limits(0.2, above=0, below=1)         # how far from 1 the ratio counts (paper: 0.2)
    norm: str = limits("token", one_of=("token", "sequence", "constant"))   # how the loss is
    #       averaged; token: mean over all tokens (DAPO, 2503.14476; the paper's way is not known);
    #       sequence: mean of the answers' means (GRPO, 2402.03300);
    #       constant: sum / (answers * max_new_tokens) (Dr. GRPO, 2503.20783)
    correct: float = limits(0.0, at_least=0)    # C: where sampler and trainer do not agree, weigh
    #       each token by min(p_trainer / p_sampler, C) (truncated importance sampling, as in TRL;
    #       2 is usual); 0: off
    warmup: int = limits(8, at_least=0)     # steps before the full rate, which fewer steps than
    #       that never reach (paper: K&K 8, MATH 4)
    steps: int = limits(100, at_least=1)                # batches of answers (paper: 100 to 150)
    max_prompt_tokens: int = limits(1024, at_least=1)   # problems with longer prompts are left out
    max_new_tokens: int = limits(4096, at_least=1)      # longest answer (paper: 4096)
    schedule: str = limits("constant", one_of=SCHEDULES)    # after the warm-up (paper: constant)
    beta1: float = limits(0.5, at_least=0, below=1)     # AdamW's momentum (paper: 0.5)
    weight_decay: float = limits(0.01, at_least=0)      # (paper: 0.01)
    # ---- the run
    eval_every: int = limits(10, at_least=1)    # steps between two measurements; first, last always
    save_every: int = limits(10, at_least=1)    # steps between two checkpoints
    kl_every: int = limits(10, at_least=0)      # steps between two measurements of the KL; 0: never
    rollouts: int = limits(-1, at_least=-1)     # write the answers of the last so many steps; -1: all
    texts: int = limits(3, at_least=0)          # answers of each step to write out for reading
