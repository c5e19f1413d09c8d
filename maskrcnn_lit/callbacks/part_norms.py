"""Norms of gradients and of updates by part of the model, without making the host wait."""

import torch
from torch import Tensor, nn

# Submodule of MaskRCNN -> its name in the logs, where it is another one.
NAMES = {"backbone": "trunk", "fpn": "pyramid"}


class PartNorms:
    """Of one optimizer step, for each part of the model that learns (trunk, pyramid, rpn, box_head,
    mask_head, and any other submodule):

    - gradient_norm/PART: the L2 norm of the gradient, before clipping;
    - update_ratio/PART: the L2 norm of the change of the weights over that of the weights.

    Call `before` when the gradients are there, and `after` the step. Between the two it keeps a
    copy of the trainable weights. Nothing is read from the device: `values` are tensors on it.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self._copies: dict[str, tuple[list[Tensor], list[Tensor]]] = {}

    @torch.no_grad()
    def before(self, model: nn.Module) -> None:
        self.values, self._copies = {}, {}
        for part, parameters in trainable_parts(model).items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                weights = [p.detach() for p in parameters]
                self._copies[part] = weights, [weight.clone() for weight in weights]
                self.values[f"gradient_norm/{part}"] = _norm(gradients)

    @torch.no_grad()
    def after(self) -> None:
        """Nothing without a call of `before`."""
        for part, (weights, copies) in self._copies.items():
            size = _norm(copies).clamp(min=1e-12)
            torch._foreach_sub_(copies, weights)
            self.values[f"update_ratio/{part}"] = _norm(copies) / size
        self._copies = {}

    def take(self) -> dict[str, Tensor]:
        """The values; then there are none."""
        values, self.values = self.values, {}
        return values


def trainable_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of each direct submodule, by its name in the logs; parameters that
    two of them share count for the first.
    """
    seen: set[int] = set()
    parts: dict[str, list[nn.Parameter]] = {}
    for name, module in model.named_children():
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                parts.setdefault(NAMES.get(name, name), []).append(parameter)
    return parts


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(tensors).float()
