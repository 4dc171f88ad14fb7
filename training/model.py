"""The Llama-architecture model in plain PyTorch, for training and for dense evaluation.

Use: model = Llama(Config()); model.loss(tokens, roles, ...) in training, model.hidden(...) and model.answers(...)
in evaluation. Everything except attention works on flat [tokens, hidden] tensors, so that one compiled graph serves
every sequence length with the same number of tokens per step.
"""
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

IGNORED_ROLE = 2  # sequences.UNPREDICTABLE


@dataclass
class Config:
    vocab_size: int = 4096
    hidden_size: int = 320
    intermediate_size: int = 704
    num_layers: int = 6
    num_q_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    # 5e5 leaves 8 of 32 rotary pairs with wavelengths over four contexts of 32K, as many as 1e5 leaves at 8K.
    rope_theta: float = 5e5
    rms_norm_eps: float = 1e-5
    max_positions: int = 33280


def rms_norm(x, weight, eps):
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x, cos, sin):  # x [tokens, heads, head_dim]; cos, sin [tokens, head_dim / 2] f32
    a, b = x.float().chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


def before_attention(x, norm, qkv, cos, sin, heads, eps):
    """q [tokens, num_q_heads, head_dim], k and v [tokens, num_kv_heads, head_dim]."""
    num_q_heads, num_kv_heads, head_dim = heads
    projected = F.linear(rms_norm(x, norm, eps).to(qkv.dtype), qkv)
    q, k, v = projected.view(-1, num_q_heads + 2 * num_kv_heads, head_dim).split(
        (num_q_heads, num_kv_heads, num_kv_heads), 1)
    return rotate(q, cos, sin), rotate(k, cos, sin), v.contiguous()


def after_attention(x, attended, out, norm, gate_up, down, eps):
    x = x + F.linear(attended, out)
    gate, up = F.linear(rms_norm(x, norm, eps).to(gate_up.dtype), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


def head_loss(hidden, norm, embedding, targets, answer_weight, text_weight, eps):
    """(answer loss, text loss, answer digits predicted right) over chosen positions."""
    logits = F.linear(rms_norm(hidden, norm, eps).to(embedding.dtype), embedding).float()
    loss = torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None])[:, 0]
    right = (logits.argmax(-1) == targets).float()
    answers = answer_weight.sum().clamp(min=1)
    return ((loss * answer_weight).sum() / answers, (loss * text_weight).sum() / text_weight.sum().clamp(min=1),
            (right * answer_weight).sum() / answers)


class Layer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        weight = lambda rows, cols, scale=1.0: nn.Parameter(torch.randn(rows, cols) * scale * 0.8 / cols ** 0.5)
        residual = (2 * c.num_layers) ** -0.5
        self.norm_1, self.norm_2 = nn.Parameter(torch.ones(c.hidden_size)), nn.Parameter(torch.ones(c.hidden_size))
        self.qkv = weight((c.num_q_heads + 2 * c.num_kv_heads) * c.head_dim, c.hidden_size)
        self.out = weight(c.hidden_size, c.num_q_heads * c.head_dim, residual)
        self.gate_up = weight(2 * c.intermediate_size, c.hidden_size)
        self.down = weight(c.hidden_size, c.intermediate_size, residual)


class Llama(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.heads = (config.num_q_heads, config.num_kv_heads, config.head_dim)
        self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * 0.03)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = nn.Parameter(torch.ones(config.hidden_size))
        frequency = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
        angle = torch.arange(config.max_positions, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)
        self.steps = (before_attention, after_attention, head_loss)
        self.backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]

    def compile_steps(self):
        self.steps = tuple(torch.compile(step, dynamic=False) for step in (before_attention, after_attention, head_loss))

    def _half(self, weight):
        return weight.to(torch.bfloat16) if weight.is_cuda else weight

    def loss(self, tokens, roles, loss_positions, answer_slots):
        """tokens [batch, length + 1] i64, roles [batch, length + 1] u8. All answers (up to answer_slots) and a random
        sample of the text, loss_positions in total, enter the loss."""
        before, after, head = self.steps
        eps, (batch, length) = self.config.rms_norm_eps, (tokens.shape[0], tokens.shape[1] - 1)
        cos, sin = self.cos[:length].repeat(batch, 1), self.sin[:length].repeat(batch, 1)
        x = F.embedding(tokens[:, :-1].reshape(-1), self.embedding)
        for layer in self.layers:
            q, k, v = before(x, layer.norm_1, self._half(layer.qkv), cos, sin, self.heads, eps)
            q, k, v = (t.view(batch, length, -1, self.heads[2]).transpose(1, 2) for t in (q, k, v))
            with sdpa_kernel(self.backends, set_priority=True):
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            attended = attended.transpose(1, 2).reshape(batch * length, -1)
            x = after(x, attended, self._half(layer.out), layer.norm_2, self._half(layer.gate_up),
                      self._half(layer.down), eps)
        targets, roles = tokens[:, 1:].reshape(-1), roles[:, 1:].reshape(-1)
        answer = (roles == 1).float()
        rank = torch.rand_like(answer) + 2 * answer - 2 * (roles == IGNORED_ROLE).float()
        chosen = rank.topk(loss_positions, sorted=False).indices
        answer, text = answer[chosen], (roles[chosen] == 0).float()
        return head(x.index_select(0, chosen), self.norm, self._half(self.embedding), targets[chosen], answer, text, eps)

    def _layers(self, x, cos, sin, attend):
        for index, layer in enumerate(self.layers):
            q, k, v = before_attention(x, layer.norm_1, self._half(layer.qkv), cos, sin, self.heads,
                                       self.config.rms_norm_eps)
            q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
            attended = attend(index, q, k, v)[0].transpose(0, 1).reshape(x.shape[0], -1)
            x = after_attention(x, attended, self._half(layer.out), layer.norm_2, self._half(layer.gate_up),
                                self._half(layer.down), self.config.rms_norm_eps)
        return x

    def logits(self, x):
        return F.linear(rms_norm(x, self.norm, self.config.rms_norm_eps).to(self._half(self.embedding).dtype),
                        self._half(self.embedding)).float()

    @torch.no_grad()
    def prefill(self, tokens):
        """tokens [length] i64 -> (hidden [length, hidden_size], [(k, v)] each [1, num_kv_heads, length, head_dim])."""
        cache = []

        def attend(_, q, k, v):
            cache.append((k, v))
            with sdpa_kernel(self.backends, set_priority=True):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        length = tokens.shape[0]
        x = F.embedding(tokens, self.embedding)
        return self._layers(x, self.cos[:length], self.sin[:length], attend), cache

    @torch.no_grad()
    def fork(self, cache, suffixes):
        """Logits of several suffixes (lists of ids), each following the same prefilled context by itself."""
        context = cache[0][0].shape[2]
        device = cache[0][0].device
        flat = torch.tensor(sum(suffixes, []), device=device)
        owner = torch.repeat_interleave(torch.arange(len(suffixes)), torch.tensor([len(s) for s in suffixes])).to(device)
        positions = torch.cat([torch.arange(len(s)) for s in suffixes]).to(device)
        visible = (owner[:, None] == owner) & (positions[:, None] >= positions)
        mask = torch.cat((visible.new_ones(len(flat), context), visible), 1)

        def attend(index, q, k, v):
            k, v = (torch.cat(pair, 2) for pair in zip(cache[index], (k, v)))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)

        cos, sin = self.cos[context + positions], self.sin[context + positions]
        logits = self.logits(self._layers(F.embedding(flat, self.embedding), cos, sin, attend))
        return logits.split([len(s) for s in suffixes])

    def describe(self):
        return {**asdict(self.config), "parameters": sum(p.numel() for p in self.parameters())}
