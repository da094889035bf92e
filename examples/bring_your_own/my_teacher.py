"""A teacher of one's own, trained by one's own loop: ``python my_teacher.py`` writes ``teacher.pt``.

Then ``--teacher my_teacher:build --weights teacher.pt``. A factory gets ``classes`` and ``input_shape`` if it has
parameters of those names, and whatever ``--teacher-args width=32`` says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Logits, not probabilities, come out; ``trunk`` can be kept as a feature (``--features hint=trunk``)."""

    def __init__(self, inputs: int, classes: int, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))


def build(classes: int, input_shape: tuple[int, ...], width: int = 64) -> nn.Module:
    return Teacher(input_shape[0], classes, width)


def train(steps: int = 300) -> nn.Module:
    from my_dataset import Spirals

    data = Spirals()
    rows = data.rows("train")
    x = torch.stack([data.load(int(row)) for row in rows])
    y = torch.from_numpy(data.labels[rows])
    torch.manual_seed(0)
    model = build(len(data.classes), data.input_shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), "teacher.pt")
    print("wrote teacher.pt")
