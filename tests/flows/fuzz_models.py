"""A network put together of named units, as a test draws them: what people's models do that splitting might break. Copied, with
a `PARALLEL` at its end, as the user's file of a job; nothing of ours is imported."""

import torch
from torch import nn
from torch.nn import functional


class Tokens(nn.Module):
    """Numbers → positions in a vocabulary."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary

    def forward(self, x):
        return (x.abs() * 7).long() % self.vocabulary


class Grid(nn.Module):
    def forward(self, x):
        return x.unflatten(1, (1, 4, 4))


class Flat(nn.Module):
    def forward(self, x):
        return x.flatten(1)


class Pool(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Last(nn.Module):
    """The answer for the last token."""

    def forward(self, x):
        return x[:, -1]


class Squeeze(nn.Module):
    """One number a row, not a column of one."""

    def forward(self, x):
        return x.mean(1)


class Feed(nn.Module):
    """A block of a transformer without attention: columns, then rows."""

    def __init__(self, width, hidden, dropout=0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return x + self.dropout(self.down(functional.gelu(self.up(self.norm(x)))))


class Attention(nn.Module):
    """Heads of queries share those of keys and values."""

    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, kv_heads * self.size, bias=False)
        self.v = nn.Linear(width, kv_heads * self.size, bias=False)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.q, self.k, self.v))
        answer = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return x + self.o(answer.transpose(1, 2).flatten(-2))


class Conv(nn.Module):
    def __init__(self, channels, after, norm):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(2, channels)
        self.conv = nn.Conv2d(channels, after, 3, padding=1)

    def forward(self, x):
        return functional.relu(self.conv(self.norm(x)))


class Stem(nn.Conv2d):
    def __init__(self, before, after, size):
        super().__init__(before, after, size, padding=1)


class Scale(nn.Module):
    """One parameter, of no dims or of one."""

    def __init__(self, *shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return x * self.scale


class Counted(nn.Module):
    """A buffer that changes with each forward that learns, and decides what is answered."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.calls += 1
        return x * (1 + 0.1 * self.calls.to(x.dtype))


class Centred(nn.Module):
    """A moving mean of what came by, taken away from what comes by: reads the buffer that it writes."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        answer = (x - self.mean) * self.weight
        if self.training:
            self.mean.mul_(0.8).add_(x.detach().reshape(-1, x.shape[-1]).mean(0), alpha=0.2)
        return torch.tanh(answer)


class Spare(nn.Module):
    """Has a layer that forward does not use."""

    def __init__(self, width):
        super().__init__()
        self.used, self.spare = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.used(x))


class Frozen(nn.Module):
    """A layer that does not learn, or of which the bias alone does."""

    def __init__(self, width, bias):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.linear.requires_grad_(False)
        self.linear.bias.requires_grad_(bias)

    def forward(self, x):
        return torch.tanh(self.linear(x))


class Twice(nn.Module):
    """One layer, gone through twice."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return torch.tanh(self.linear(torch.tanh(self.linear(x))))


UNITS = {
    "tokens": Tokens, "embed": nn.Embedding, "grid": Grid, "flat": Flat, "pool": Pool, "last": Last, "squeeze": Squeeze,
    "linear": nn.Linear, "gelu": nn.GELU, "tanh": nn.Tanh, "dropout": nn.Dropout, "feed": Feed, "attention": Attention,
    "conv": Conv, "scale": Scale, "counted": Counted, "centred": Centred, "spare": Spare, "frozen": Frozen, "twice": Twice,
    "norm": nn.LayerNorm, "batch": nn.BatchNorm1d, "stem": Stem,
}  # fmt: skip


class Net(nn.Module):
    """`units`: a name of `UNITS` and what it takes; `same`: pairs of positions that are one module; `tied`: two whose weight is
    one parameter."""

    def __init__(self, units, same=(), tied=None):
        super().__init__()
        self.layers = nn.ModuleList(UNITS[name](*given) for name, *given in units)
        for first, second in same:
            self.layers[second] = self.layers[first]
        if tied:
            self.layers[tied[1]].weight = self.layers[tied[0]].weight

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x
