"""AdamW on fp32 weights, and the learning rate of each step."""
import math

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def learning_rate(settings, step: int, steps: int) -> float:
    """The rate of step 1 ... steps: a linear start, then the schedule down from settings.lr."""
    if step <= settings.warmup:
        return settings.lr * step / (settings.warmup + 1)
    done = (step - 1 - settings.warmup) / max(1, steps - settings.warmup)
    return settings.lr * {"constant": 1.0, "linear": 1 - done,
                          "cosine": (1 + math.cos(math.pi * done)) / 2}[settings.schedule]


class AdamW:
    """torch's AdamW. With `offload` it works on copies of the weights in main memory.

    It decays every parameter, as the paper's trainer does. A loss or gradient that is not finite
    changes nothing; `skipped` counts such updates in a row.
    """

    def __init__(self, model, settings):
        self.names, self.parameters = zip(*model.named_parameters())
        self.settings, self.skipped, self.weights = settings, 0, list(self.parameters)
        if settings.offload:                                # pinned memory makes copies fast
            self.weights = [torch.empty(p.shape, dtype=p.dtype, pin_memory=p.is_cuda)
                            for p in self.parameters]
            self.copied = False         # until the first update: a checkpoint may be loaded first
            self.grads = [torch.empty_like(w, pin_memory=w.is_pinned()) for w in self.weights]
        self.state = {"step": [torch.zeros((), device=w.device) for w in self.weights],
                      "exp_avg": [torch.zeros_like(w) for w in self.weights],
                      "exp_avg_sq": [torch.zeros_like(w) for w in self.weights]}

    @torch.no_grad()
    def update(self, lr: float, loss: float) -> float:
        """One step along the gradient, shortened to clip_norm; returns the norm it had before."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm).item()
        finite = math.isfinite(norm) and math.isfinite(loss)
        self.skipped = 0 if finite else self.skipped + 1
        if finite:
            self._step(lr, [p.grad for p in self.parameters])
        for p in self.parameters:
            p.grad = None
        return norm

    def _step(self, lr: float, grads: list[Tensor]) -> None:
        settings = self.settings
        if settings.offload:
            if not self.copied:
                for weight, p in zip(self.weights, self.parameters):
                    weight.copy_(p)
                self.copied = True
            for mine, grad in zip(self.grads, grads):
                mine.copy_(grad, non_blocking=True)
            if grads[0].is_cuda:
                torch.cuda.synchronize()                    # The CPU reads the copies next.
            grads = self.grads
        # The function, not the class: the class imports PyTorch's compiler, a second or two.
        adamw(self.weights, grads, self.state["exp_avg"], self.state["exp_avg_sq"], [],
              self.state["step"], fused=True, amsgrad=False, maximize=False, lr=lr, eps=1e-8,
              beta1=settings.beta1, beta2=settings.beta2, weight_decay=settings.weight_decay)
        if settings.offload:
            for p, weight in zip(self.parameters, self.weights):
                p.copy_(weight, non_blocking=True)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, by name."""
        return {f"{key}.{name}": value for key, values in self.state.items()
                for name, value in zip(self.names, values)}
