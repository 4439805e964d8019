"""by_hand.py: what gpt.py takes from PyTorch or leaves out, written by hand.

These are the answers to some exercises of rebuild.py, so try those first. rebuild.py puts each part of this file, with
holes, into my_gpt.py, before the chapter of gpt.py that its heading names.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from gpt import *

# %% Warm-up: tensors (before chapter 1)
# None of the warm-up is part of gpt.py. A tensor is an array of numbers with a shape: (2, 3) is a
# table of 2 rows and 3 columns. Dimensions are counted from 0, or from the end: -1 is the last. All
# numbers of a tensor have one type, its dtype: float32, int64 (integers), or bool.
#
#     torch.arange(2, 5)            the integers 2, 3, 4: shape (3,)
#     torch.ones(2, 3)              all 1; torch.zeros likewise
#     x.shape                       (2, 3), to be taken apart: rows, columns = x.shape
#     x[:, None]                    a row (n,) becomes a column (n, 1)
#     x.sum(dim=0)                  adds along the first dimension: (T, C) -> (C,)
#     x.mean(dim=1, keepdim=True)   the means of the rows, kept as a column: (T, C) -> (T, 1)
#     a @ b                         the matrix product: (T, C) @ (C, D) -> (T, D)
#     x.transpose(0, 1)             swaps two dimensions: (2, 3) -> (3, 2); x.T does it, too
#     x.reshape(3, 2)               reads all numbers in their order, and cuts them anew
#     torch.stack([a, b], dim=0)    along a new dimension: two (2, 3) -> (2, 2, 3)
#     x[i, j]                       i, j (n,), tensors of integers: n numbers, x[i[0], j[0]] first
#     x.sqrt(), x.exp()             of each number of a tensor; math.sqrt is for a single number
#
# +, * and the like work number by number; a power is x**2. If two shapes differ, they are compared
# from the right, and where one of them has size 1, or no dimension at all, it is repeated. This is
# called broadcasting.

SHAPE_OF_A_SUM = (4, 3)


def weighted_sum(weights, x):
    """Each row of x times its weight, all added up: weights (T,), x (T, C) -> (C,).

    >>> weighted_sum(torch.tensor([1, 10]), torch.tensor([[1, 2, 3], [4, 5, 6]]))
    tensor([41, 52, 63])
    """
    return (weights[:, None] * x).sum(dim=0)            # (T, 1) * (T, C) -> (T, C) -> (C,)


FIRST_ROW = (1, 2)


def pick(table, ids):
    """One number of each row, the one in the column ids[row]: table (N, V), ids (N,) -> (N,).

    >>> pick(torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([2, 0]))
    tensor([3, 4])
    """
    return table[torch.arange(len(ids)), ids]           # (N, V)[(N,), (N,)] -> (N,)


# %% Windows (before chapter 3)

NUMBER_OF_WINDOWS = 6


# %% Batches, as PyTorch's users make them (before chapter 4)
# Elsewhere, you will meet batches in another form. A Dataset has a length, and gives an example for
# each index. A DataLoader asks it for as many as a batch needs, and stacks them.

class WindowDataset(torch.utils.data.Dataset):
    """All windows of data (N,): example i is (inputs (T,), targets (T,)), which begin at data[i].

    >>> len(WindowDataset(torch.arange(6), block_size=2)), WindowDataset(torch.arange(6), 2)[3]
    (4, (tensor([3, 4]), tensor([4, 5])))
    """

    def __init__(self, data, block_size):
        self.data, self.block_size = data, block_size

    def __len__(self):
        """How many windows there are."""
        return len(self.data) - self.block_size

    def __getitem__(self, i):
        """Window i: two of (T,)."""
        window = self.data[i:i + self.block_size + 1]   # (N,) -> (T+1,)
        return window[:-1], window[1:]


# %% The loss by hand (before chapter 5)

def softmax_by_hand(logits):
    """F.softmax over the last dimension: exp(logit) / (the sum of exp(logit) over the row).

    Subtract the largest logit of the row first. Nothing changes, but no exp becomes infinite.
    """
    powers = (logits - logits.amax(dim=-1, keepdim=True)).exp()     # (..., V) - (..., 1)
    return powers / powers.sum(dim=-1, keepdim=True)                # (..., V) / (..., 1)


def cross_entropy_by_hand(logits, targets):
    """F.cross_entropy: the mean of -ln(the probability of the target), (N, V), (N,) -> ()."""
    log_probs = logits - logits.logsumexp(dim=-1, keepdim=True)     # (N, V) - (N, 1)
    return -log_probs[torch.arange(len(targets)), targets].mean()   # (N, V) -> (N,) -> ()


FIRST_LOSS = math.log(65)


# %% Positions that are not learned (before chapter 7)

def published_sinusoids(T, C):
    """The vectors of "Attention is all you need", a fixed table of positions: (T, C).

    At position t, channel 2i is sin(t * f) and channel 2i + 1 is cos(t * f). The frequency of this
    pair is f = 10000^(-2i / C), for i = 0, 1, ..., C/2 - 1.
    """
    frequencies = 10000.0 ** -(torch.arange(0, C, 2) / C)           # (C/2,)
    angles = torch.arange(T)[:, None] * frequencies                 # (T, 1) * (C/2,) -> (T, C/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)     # (T, C/2, 2) -> (T, C)


# %% The layers by hand (before chapter 8)
# At the end, you will put these into a GPT in place of PyTorch's.

class LinearByHand(nn.Module):
    """nn.Linear: C numbers become D, each a weighted sum of the C, plus a bias.

    Parameters: weight (D, C), and bias (D,). Both begin as random numbers, uniform from
    -1/sqrt(C) to 1/sqrt(C). With bias=False, self.bias is None.
    """

    def __init__(self, C, D, bias=True):
        super().__init__()
        self.weight = nn.Parameter((2 * torch.rand(D, C) - 1) / math.sqrt(C))
        self.bias = nn.Parameter((2 * torch.rand(D) - 1) / math.sqrt(C)) if bias else None

    def forward(self, x):
        """x (..., C) -> (..., D)."""
        y = x @ self.weight.T                           # (..., C) @ (C, D) -> (..., D)
        return y if self.bias is None else y + self.bias


class EmbeddingByHand(nn.Module):
    """nn.Embedding: a table with a row of C numbers for each of V tokens. Ids look up their rows.

    Parameter: weight (V, C), at first random with a standard deviation of 1.
    """

    def __init__(self, V, C):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(V, C))

    def forward(self, idx):
        """idx (...) int64 -> (..., C)."""
        return self.weight[idx]                         # (V, C)[(...)] -> (..., C)


def layer_norm_by_hand(x, weight, bias):
    """nn.LayerNorm: x (..., C), weight and bias (C,) -> (..., C).

        (x - mean) / sqrt(variance + 0.00001) * weight + bias

    Mean and variance are those of the C numbers of each token.
    """
    mean = x.mean(dim=-1, keepdim=True)                             # (..., C) -> (..., 1)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)         # (..., C) -> (..., 1)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias    # -> (..., C)


def gelu_by_hand(x):
    """GELU as GPT-2 has it: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), for each number."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# %% AdamW by hand (before chapter 9)

def adamw_by_hand(w, g, m, v, t, learning_rate, weight_decay):
    """Step t (the first is 1) of AdamW, for a parameter w with the slopes g. Returns new w, m, v.

    m and v are the running means of chapter 8, with 0.9 and 0.99. All four tensors have one shape.
    """
    m = 0.9 * m + 0.1 * g
    v = 0.99 * v + 0.01 * g**2
    mean, square = m / (1 - 0.9**t), v / (1 - 0.99**t)
    w = w - learning_rate * weight_decay * w
    return w - learning_rate * mean / (square.sqrt() + 1e-8), m, v


# %% Beyond chapter 9 (before chapter 10)
# Two things that gpt.py does without.

@torch.no_grad()
def beam_search(model, idx, max_new_tokens, width):
    """The most probable continuation of idx (1, T) that a beam finds -> (1, T + max_new_tokens).

    Greedy writing takes the likeliest token, though another may lead to a more probable text. A
    beam keeps several texts. In each step, all that continue one of them by one token are compared,
    and the `width` most probable stay (or all, if there are fewer). The probability of a text is
    the product of those of its new tokens. So width=1 is greedy, and a very wide beam is exact.
    """
    sums = torch.zeros(1, 1)                                        # (texts, 1)
    for _ in range(max_new_tokens):
        logits, _ = model(idx[:, -model.block_size:])               # (texts, T, V)
        sums = sums + F.log_softmax(logits[:, -1], dim=-1)          # (texts, V)
        V, best = sums.shape[1], sums.flatten().topk(min(width, sums.numel()))
        texts, token = best.indices // V, best.indices % V          # two of (width,)
        idx = torch.cat((idx[texts], token[:, None]), dim=1)        # (width, T+1)
        sums = best.values[:, None]                                 # (width, 1)
    return idx[:1]


class Linear8bit(nn.Module):
    """An nn.Linear whose weights are integers from -127 to 127: a quarter of the memory.

    Each row of the matrix has one scale, the step from one integer to the next. So a weight is its
    integer times the scale of its row, and its error is half a step at most.
    """

    def __init__(self, linear):
        """Buffers: weight (D, C) int8, scale (D, 1) and bias (D,), which may be None."""
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127        # (D, C) -> (D, 1)
        integers = (weight / scale.clamp(min=1e-30)).round()        # (D, C)
        self.register_buffer("weight", integers.to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias)

    def forward(self, x):
        """x (..., C) -> (..., D)."""
        weight = self.weight * self.scale                           # (D, C) * (D, 1) -> (D, C)
        return F.linear(x, weight, self.bias)                       # (..., C) -> (..., D)


# %% Backward by hand (before the appendix)
# loss.backward() goes back through the program, from the last line to the first. Each function gets
# the slopes of the loss along what it returned (dy, of the shape of y), and works out those along
# what it was given (dx, of the shape of x). The chain rule does it, and three facts cover the rest:
#
#     y = a @ b         da = dy @ b^T     db = a^T @ dy           (^T: rows and columns exchanged)
#     used n times      the slopes of the n uses are added up
#     y = x * c         dx = dy * c       number by number

def linear_backward(dy, x, weight):
    """For y = x @ weight^T + bias: dy (N, D), x (N, C), weight (D, C) -> dx, dweight, dbias."""
    return dy @ weight, dy.T @ x, dy.sum(dim=0)         # (N, C), (D, C), (D,)


def cross_entropy_backward(logits, targets):
    """For cross_entropy(logits (N, V), targets (N,)), softmax included -> dlogits (N, V)."""
    came = F.one_hot(targets, logits.shape[1])          # (N, V), 1 for the token that came
    return (logits.softmax(dim=1) - came) / len(targets)


def layer_norm_backward(dy, x, weight):
    """For y = z * weight + bias, where z = (x - mean) / deviation: dy, x (N, C), weight (C,) -> dx.

    The deviation is sqrt(variance + 0.00001). Let dz be the slopes along z. A change of one x moves
    all z of its token, because mean and deviation move. Both effects are subtracted:

        dx = (dz - mean(dz) - z * mean(dz * z)) / deviation          means over the C numbers
    """
    mean = x.mean(dim=1, keepdim=True)                  # (N, 1)
    deviation = (((x - mean) ** 2).mean(dim=1, keepdim=True) + 1e-5).sqrt()         # (N, 1)
    z, dz = (x - mean) / deviation, dy * weight         # two of (N, C)
    return (dz - dz.mean(dim=1, keepdim=True)
            - z * (dz * z).mean(dim=1, keepdim=True)) / deviation


def attention_backward(dy, q, k, v):
    """For y = attention(q, k, v), one head: four of (T, hs) -> dq, dk, dv, three of (T, hs).

    Three stages, backwards: y = weights @ v; weights = softmax(masked scores), with the slopes
    dscores = weights * (dweights - the sum of weights * dweights over the row), which are 0 where a
    weight is 0; scores = q @ k^T / sqrt(hs).
    """
    T, hs = q.shape
    scores = q @ k.T / math.sqrt(hs)                    # (T, T)
    later = torch.ones(T, T, dtype=torch.bool).triu(1)  # (T, T)
    weights = scores.masked_fill(later, -math.inf).softmax(dim=1)               # (T, T)
    dweights = dy @ v.T                                 # (T, hs) @ (hs, T) -> (T, T)
    dscores = weights * (dweights - (weights * dweights).sum(dim=1, keepdim=True))  # (T, T)
    dscores = dscores / math.sqrt(hs)
    return dscores @ k, dscores.T @ q, weights.T @ dy   # three of (T, hs)


# %% A GPT of your own parts (before the appendix)
# GPT(config) with your layers in place of PyTorch's, and `train` with your loss and your AdamW.
# `run` takes both: run(name, text, Config(), make_gpt=gpt_by_hand, train_gpt=train_by_hand)

class LayerNormByHand(nn.Module):
    """layer_norm_by_hand as a module, made of an nn.LayerNorm, whose parameters it takes over."""

    def __init__(self, layer):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x):
        return layer_norm_by_hand(x, self.weight, self.bias)


def replace_layers(module, kind, make):
    """Put make(layer) in the place of each layer of this kind, anywhere in a module."""
    for name, layer in module.named_children():
        if isinstance(layer, kind):
            setattr(module, name, make(layer))
        else:
            replace_layers(layer, kind, make)


def linear_of(layer):
    """A LinearByHand with the parameters of an nn.Linear."""
    mine = LinearByHand(layer.in_features, layer.out_features, layer.bias is not None)
    mine.load_state_dict(layer.state_dict())
    return mine


def embedding_of(layer):
    """An EmbeddingByHand with the parameters of an nn.Embedding."""
    mine = EmbeddingByHand(layer.num_embeddings, layer.embedding_dim)
    mine.load_state_dict(layer.state_dict())
    return mine


def gpt_by_hand(config):
    """A GPT with the parameters of GPT(config), all of whose layers are yours."""
    model = GPT(config)
    replace_layers(model, nn.Linear, linear_of)
    replace_layers(model, nn.Embedding, embedding_of)
    replace_layers(model, nn.LayerNorm, LayerNormByHand)
    for block in model.blocks:
        block.attn.attend = attention                   # three of (B, nh, T, hs) -> (B, nh, T, hs)
        block.mlp.forward = lambda x, mlp=block.mlp: mlp.proj(gelu_by_hand(mlp.fc(x)))
    return model


def train_by_hand(model, train_data, val_data, config):
    """Like `train`, with cross_entropy_by_hand and adamw_by_hand."""
    kept = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]     # m and v
    losses = []
    for step in range(1, config.max_steps + 1):
        x, y = get_batch(train_data, step - 1, config)
        logits, _ = model.train()(x)                    # (B, T, V)
        loss = cross_entropy_by_hand(logits.flatten(0, 1), y.flatten())
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for i, p in enumerate(model.parameters()):
            decay = config.weight_decay if p.dim() >= 2 else 0.0
            p.data, *kept[i] = adamw_by_hand(p.data, p.grad, *kept[i], step,
                                             learning_rate_at(step - 1, config), decay)
        losses.append(loss.item())
        if step % config.eval_interval == 0 or step == config.max_steps:
            yield step, sum(losses) / len(losses), evaluate(model, val_data)
            losses = []
