"""A plain PyTorch U-DiT written the obvious way, as the paper's public code behaves: what the toolkit's model is measured against.

Feature maps are (N, C, H, W), attention is an explicit softmax(q·kᵀ)·v, a re-parameterised feed-forward applies all its branches,
norms permute the channels to the back and forth, everything is float32. Parameters carry the authors' names. It computes the same
function as `space.build`, which tests/space/model/test_kernels.py checks against the golden tensors.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from space.model.condition import sinusoids
from space.model.position import rotations
from space.spec import ModelSpec

LAYERS_A_BLOCK = 2

FILTERS = ("pixel-shuffle", "dwconv", "dwconv-shortcut")

STAGES = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")


def modulate(x, shift, scale):
    return x * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class Norm(nn.Module):
    """LayerNorm over the channels of (N, C, H, W), without affine."""

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:], eps=1e-6).permute(0, 3, 1, 2)


class TimeEmbedder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.mlp(sinusoids(t))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.embedding_table = nn.Embedding(classes, width)

    def forward(self, y):
        return self.embedding_table(y)


class Embedder(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, 3, padding=1)

    def forward(self, x):
        return self.proj(x)


class Downsampler(nn.Module):
    """A depthwise convolution, with a shortcut, then pixel-unshuffle into groups of tokens."""

    def __init__(self, stage):
        super().__init__()
        self.factor, self.shortcut, self.layer = stage.factor, stage.downsampler == "dwconv-shortcut", None
        if stage.kernel is not None:
            self.layer = nn.Conv2d(stage.width, stage.width, stage.kernel, padding=stage.kernel // 2, groups=stage.width)

    def forward(self, x):
        if self.layer is not None:
            x = self.layer(x) + x if self.shortcut else self.layer(x)
        return rearrange(x, "n c (h i) (w j) -> (n i j) (h w) c", i=self.factor, j=self.factor)


class Attention(nn.Module):
    def __init__(self, stage):
        super().__init__()
        self.heads, self.factor, self.side = stage.heads, stage.factor, stage.resolution // stage.factor
        self.downsampler = Downsampler(stage)
        self.to_qkv = nn.Linear(stage.width, 3 * stage.width)
        self.to_out = nn.Conv2d(stage.width, stage.width, 1)
        self.cosine, self.rope = stage.similarity == "cosine", stage.position == "rope2d"
        if self.cosine:
            self.logit_scale = nn.Parameter(torch.full((stage.heads, 1, 1), math.log(10)))
        if self.rope:
            angles = rotations(self.side, self.side, stage.width // stage.heads)
            self.register_buffer("rotations", torch.view_as_complex(angles), persistent=False)

    def forward(self, x):
        tokens = self.downsampler(x)
        q, k, v = (rearrange(t, "g l (a d) -> g a l d", a=self.heads) for t in self.to_qkv(tokens).chunk(3, dim=-1))
        if self.cosine:
            q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.rope:
            q, k = self.rotate(q), self.rotate(k)
        scale = self.logit_scale.clamp(max=4.6052).exp() if self.cosine else q.shape[-1] ** -0.5
        scores = (q @ k.transpose(-2, -1)) * scale
        out = scores.softmax(dim=-1) @ v
        out = rearrange(out, "(n i j) a (h w) d -> n (a d) (h i) (w j)", i=self.factor, j=self.factor, h=self.side)
        return self.to_out(out)

    def rotate(self, x):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * self.rotations).flatten(-2).type_as(x)


class MLP(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class ConvFeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.project_in = nn.Conv2d(width, hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden)
        self.project_out = nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        return self.project_out(self.dwconv(F.gelu(self.project_in(x))))


class ReparamConvFeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        middle = hidden // 2
        self.project_in = nn.Sequential(nn.Conv2d(width, middle, 1), nn.Conv2d(middle, hidden, 1))
        self.dwconv = nn.ModuleList(nn.Conv2d(hidden, hidden, k, padding=k // 2, groups=hidden) for k in (5, 3, 1))
        self.project_out = nn.Sequential(nn.Conv2d(hidden, middle, 1), nn.Conv2d(middle, width, 1))

    def forward(self, x):
        x = F.gelu(self.project_in(x))
        out = x
        for branch in self.dwconv:
            out = out + branch(x)
        return self.project_out(out)


def feed_forward(stage):
    if stage.feed_forward == "mlp":
        return MLP(stage.width, stage.hidden)
    return (ReparamConvFeedForward if stage.reparam else ConvFeedForward)(stage.width, stage.hidden)


class Block(nn.Module):
    """Two layers, each attention and feed-forward with adaLN-Zero."""

    def __init__(self, stage):
        super().__init__()
        self.norm = Norm()
        for n in range(1, LAYERS_A_BLOCK + 1):
            self.add_module(f"adaLN_modulation{n}", nn.Sequential(nn.SiLU(), nn.Linear(stage.width, 6 * stage.width)))
            self.add_module(f"attn{n}", Attention(stage))
            self.add_module(f"mlp{n}", feed_forward(stage))

    def forward(self, x, c):
        for n in range(1, LAYERS_A_BLOCK + 1):
            modulation, attention, mlp = (getattr(self, f"{part}{n}") for part in ("adaLN_modulation", "attn", "mlp"))
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation(c).chunk(6, dim=1)
            x = x + gate_a[:, :, None, None] * attention(modulate(self.norm(x), shift_a, scale_a))
            x = x + gate_f[:, :, None, None] * mlp(modulate(self.norm(x), shift_f, scale_f))
        return x


class Stage(nn.ModuleList):
    def __init__(self, stage):
        super().__init__(Block(stage) for _ in range(stage.layers // LAYERS_A_BLOCK))

    def forward(self, x, c):
        for block in self:
            x = block(x, c)
        return x


class Resample(nn.Module):
    """A 3×3 convolution to half the channels and pixel-unshuffle, or to twice the channels and pixel-shuffle."""

    def __init__(self, width, down):
        super().__init__()
        outputs, shuffle = (width // 2, nn.PixelUnshuffle(2)) if down else (2 * width, nn.PixelShuffle(2))
        self.body = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), shuffle)

    def forward(self, x):
        return self.body(x)


class Final(nn.Module):
    def __init__(self, width, outputs):
        super().__init__()
        self.norm = Norm()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out_proj = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x, c):
        return self.out_proj(modulate(self.norm(x), *self.adaLN_modulation(c).chunk(2, dim=1)))


class Yardstick(nn.Module):
    """A U-DiT of three levels that attends over downsampled tokens."""

    def __init__(self, spec):
        super().__init__()
        width, classes = spec.channels, spec.num_classes + spec.null_class
        self.x_embedder = Embedder(spec.in_channels, width)
        for level in range(3):
            self.add_module(f"t_embedder_{level + 1}", TimeEmbedder(width << level))
            self.add_module(f"y_embedder_{level + 1}", LabelEmbedder(classes, width << level))
        for name, stage in zip(STAGES, spec.stages, strict=True):
            self.add_module(name, Stage(stage))
        self.down1_2, self.down2_3 = Resample(width, down=True), Resample(2 * width, down=True)
        self.up3_2, self.up2_1 = Resample(4 * width, down=False), Resample(2 * width, down=False)
        self.reduce_chan_level2 = nn.Conv2d(4 * width, 2 * width, 1)
        self.reduce_chan_level1 = nn.Conv2d(2 * width, 2 * width, 1)
        self.output = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.final_layer = Final(2 * width, spec.out_channels)

    def forward(self, x, t, y):
        c1, c2, c3 = (getattr(self, f"t_embedder_{i}")(t) + getattr(self, f"y_embedder_{i}")(y) for i in (1, 2, 3))
        first = self.encoder_level_1(self.x_embedder(x), c1)
        second = self.encoder_level_2(self.down1_2(first), c2)
        h = self.up3_2(self.latent(self.down2_3(second), c3))
        h = self.decoder_level_2(self.reduce_chan_level2(torch.cat([h, second], dim=1)), c2)
        h = self.reduce_chan_level1(torch.cat([self.up2_1(h), first], dim=1))
        return self.final_layer(self.output(self.decoder_level_1(h, c2)), c2)


def yardstick(spec: ModelSpec) -> Yardstick:
    """The obvious form of a spec, with torch's initial values; raises ValueError for what it does not cover."""
    if spec.levels != 3 or any(s.tokens != "downsampled" or s.downsampler not in FILTERS for s in spec.stages):
        raise ValueError("the obvious form has three levels and attends over tokens downsampled by depthwise filters or none")
    return Yardstick(spec)
