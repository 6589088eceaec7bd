"""Three networks as people write them, with what each says of its own splitting: plain data; nothing of ours is imported."""

import torch
from torch import nn
from torch.nn import functional

MLP_PARALLEL = {"tensor": {"0": "columns", "2": "rows"}, "blocks": "*", "sequence": ["*"]}
HEADS_PARALLEL = {
    "tensor": {"2": "columns", "3": "shared", "4": "rows"},
    "heads": {"3": ["heads"]},
    "blocks": "*",
    "sequence": ["*"],
}
CNN_PARALLEL = {"tensor": {"head.2": "scattered"}, "sequence": ["stem", "blocks.*", "head"], "blocks": "blocks.*"}
LLAMA_PARALLEL = {
    "tensor": {
        "embed": "rows",
        "layers.*.attention.q": "columns",
        "layers.*.attention.k": "columns",
        "layers.*.attention.v": "columns",
        "layers.*.attention.o": "rows",
        "layers.*.gate": "columns",
        "layers.*.up": "columns",
        "layers.*.down": "rows",
        "head": "gathered",
    },
    "heads": {"layers.*.attention": ["heads", "kv_heads"]},
    "blocks": "layers.*",
    "sequence": ["embed", "layers.*", "norm", "head"],
}


class MLP(nn.Sequential):
    def __init__(self, inputs=12, width=30, outputs=4):
        super().__init__(
            nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, outputs),
        )  # fmt: skip


class Scale(nn.Module):
    """Each head is multiplied by the same numbers, which count little: their gradient is the shortest by far."""

    heads = 4

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return (x.unflatten(-1, (-1, len(self.weight))) * (1 + 1e-3 * self.weight)).flatten(-2)


class Heads(nn.Sequential):
    def __init__(self, inputs=12, width=32, outputs=4):
        up, down = nn.Linear(width, width), nn.Linear(width, outputs)
        super().__init__(nn.Linear(inputs, width), nn.GELU(), up, Scale(width // Scale.heads), down)


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + self.second(functional.relu(self.first(self.norm(x))))


class CNN(nn.Module):
    """Group norm: batch norm's statistics are of a rank's own rows."""

    def __init__(self, channels=10, classes=5, depth=3):
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList(Block(channels) for _ in range(depth))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate(x):
    """Rotary positions, computed where they are needed: x is [rows, heads, length, size]."""
    half = x.shape[-1] // 2
    speed = 10_000.0 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angle = torch.arange(x.shape[-2], dtype=x.dtype, device=x.device)[:, None] * speed
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


class Attention(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v = nn.Linear(width, kv_heads * self.size, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x):
        # -1: as many heads as there are here
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        answer = functional.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        return self.o(answer.transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    def __init__(self, width, heads, kv_heads, hidden):
        super().__init__()
        self.before_attention, self.before_feed = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, heads, kv_heads)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        x = x + self.attention(self.before_attention(x))
        y = self.before_feed(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """As it stands, of 4.9 million parameters."""

    def __init__(self, vocabulary=1024, width=256, heads=8, kv_heads=4, hidden=704, depth=6):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, heads, kv_heads, hidden) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def mlp(draw, rows):
    return torch.randn(rows, 12, dtype=torch.float64, generator=draw), torch.randn(rows, 4, dtype=torch.float64, generator=draw)


def cnn(draw, rows):
    return torch.randn(rows, 1, 8, 8, dtype=torch.float64, generator=draw), torch.randint(5, (rows,), generator=draw)


def llama(draw, rows):
    tokens = torch.randint(1024, (rows, 13), generator=draw)
    return tokens[:, :-1], tokens[:, 1:]


def classes(answer, target):
    """Every row, and in it every token, weighs the same. Flat: with more dims (nll_loss2d) a GPU would not repeat it."""
    answer, target = answer.flatten(0, -2), target.flatten()
    return functional.cross_entropy(answer, target), (answer.argmax(1) == target).sum()


def numbers(answer, target):
    return functional.mse_loss(answer, target), torch.zeros(())


# class, what it declares, rows of a step, measure, learning rate
MODELS = {
    "mlp": (MLP, MLP_PARALLEL, mlp, numbers, 0.01),
    "heads": (Heads, HEADS_PARALLEL, mlp, numbers, 0.01),
    "cnn": (CNN, CNN_PARALLEL, cnn, classes, 0.01),
    "llama": (Llama, LLAMA_PARALLEL, llama, classes, 3e-4),
}
