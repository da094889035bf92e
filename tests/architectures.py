"""Small models of the kinds that people compress, with random weights: ``NAME()`` gives (model, example, classes).

The model is in eval mode, its example holds two inputs, and its batch norms have statistics as if they were trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 7
Made = tuple[nn.Module, Tensor, int]


def made(build: Callable[[], nn.Module], example: Callable[[torch.Generator], Tensor]) -> Made:
    """The model that ``build`` makes under a seed of its own, statistics and scales of its norms drawn at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return model.eval(), example(torch.Generator().manual_seed(1)), CLASSES


def images(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=generator)


def conv_norm(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1; with a projection where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [conv_norm(inputs, width, 1), nn.ReLU(), conv_norm(width, width, 3, stride), nn.ReLU()]
            layers.append(conv_norm(width, outputs, 1))
        else:
            layers = [conv_norm(inputs, width, 3, stride), nn.ReLU(), conv_norm(width, width, 3)]
        self.body = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.downsample = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.downsample(x))


class ResNet(nn.Module):
    """A stem, three stages of two blocks, a mean over what is left of the image, a linear head (He et al. 2016)."""

    def __init__(self, width: int, bottleneck: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(3, width, 3), nn.ReLU())
        stages, inputs = [], width
        for stage, stride in enumerate((1, 2, 2)):
            for block in range(2):
                stages.append(Block(inputs, width * 2**stage, stride if block == 0 else 1, bottleneck))
                inputs = stages[-1].outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


def resnet() -> Made:
    return made(lambda: ResNet(8, bottleneck=False), images)


def bottleneck() -> Made:
    return made(lambda: ResNet(8, bottleneck=True), images)


class Inverted(nn.Module):
    """An inverted residual: wider, a convolution per channel, narrower (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        parts = [*conv_norm(inputs, wide, 1), nn.ReLU6(), *conv_norm(wide, wide, 3, stride, groups=wide), nn.ReLU6()]
        self.body = nn.Sequential(*parts, *conv_norm(wide, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobilenet() -> Made:
    """A MobileNetV2 of five inverted residuals."""

    def build() -> nn.Module:
        shapes = [(8, 8, 1), (8, 16, 2), (16, 16, 1), (16, 24, 2), (24, 24, 1)]
        blocks = [Inverted(inputs, outputs, stride, 4) for inputs, outputs, stride in shapes]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(24, CLASSES)]
        return nn.Sequential(*conv_norm(3, 8, 3), nn.ReLU6(), *blocks, *head)

    return made(build, images)


def grouped() -> Made:
    """Convolutions in groups, group norms, and no batch norm."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, padding=1, groups=4), nn.GroupNorm(4, 32), nn.ReLU(),
            nn.Conv2d(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, CLASSES),
        )  # fmt: skip

    return made(build, images)


class Attention(nn.Module):
    """Self-attention of several heads from one fused projection (..., query key value)."""

    def __init__(self, width: int, heads: int, fused_kernel: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.fused_kernel = fused_kernel
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused_kernel:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            mixed = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, fused_kernel: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, fused_kernel)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 4 x 4, a class token, learnt positions, two layers (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int, fused_kernel: bool) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 17, width))
        self.layers = nn.Sequential(*(Layer(width, heads, fused_kernel) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def vit() -> Made:
    """Attention written out."""
    return made(lambda: VisionTransformer(32, 4, fused_kernel=False), images)


def vit_sdpa() -> Made:
    """Attention by ``F.scaled_dot_product_attention``."""
    return made(lambda: VisionTransformer(32, 4, fused_kernel=True), images)


def hf_vit() -> Made:
    """The ViTForImageClassification of transformers."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        num_labels=CLASSES,
    )  # fmt: skip
    return made(lambda: ViTForImageClassification(config), images)


def hf_bert() -> Made:
    """The BertForSequenceClassification of transformers, on token numbers (B, L)."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=16, num_labels=CLASSES,
    )  # fmt: skip
    return made(lambda: BertForSequenceClassification(config), lambda g: torch.randint(1, 50, (2, 12), generator=g))


class Native(nn.Module):
    """Patches and the encoder layers of torch itself, whose attention keeps its projections as bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))


def native() -> Made:
    """``torch.nn.TransformerEncoder``."""
    return made(Native, images)


CONVOLUTIONAL = {make.__name__: make for make in (resnet, bottleneck, mobilenet, grouped)}
TRANSFORMERS = {make.__name__: make for make in (vit, vit_sdpa, hf_vit, hf_bert)}
EVERY = CONVOLUTIONAL | TRANSFORMERS
"""All that pruning can follow; ``native`` is not among them."""
