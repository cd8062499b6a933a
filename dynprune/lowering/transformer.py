"""PyTorch's transformer layers in a form that torch.fx can trace: attention stays a layer of its own.

Their forwards choose between implementations by values and settings, which no trace can follow. While a
model is traced its encoders and decoders have these classes, which compute the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class _EncoderLayer(nn.TransformerEncoderLayer):
    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        masks = (src_mask, src_key_padding_mask, is_causal)
        x = src
        if self.norm_first:
            x = x + _attend(self.self_attn, self.norm1(x), None, *masks)
            return x + _feed_forward(self, self.norm2(x))
        x = self.norm1(x + _attend(self.self_attn, x, None, *masks))
        y: Tensor = self.norm2(x + _feed_forward(self, x))
        return y


class _DecoderLayer(nn.TransformerDecoderLayer):
    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        own = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        other = (memory_mask, memory_key_padding_mask, memory_is_causal)
        x = tgt
        if self.norm_first:
            x = x + _attend(self.self_attn, self.norm1(x), None, *own)
            x = x + _attend(self.multihead_attn, self.norm2(x), memory, *other)
            return x + _feed_forward(self, self.norm3(x))
        x = self.norm1(x + _attend(self.self_attn, x, None, *own))
        x = self.norm2(x + _attend(self.multihead_attn, x, memory, *other))
        y: Tensor = self.norm3(x + _feed_forward(self, x))
        return y


class _Encoder(nn.TransformerEncoder):
    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        x = src
        for layer in self.layers:
            # Whether a mask is causal is only a hint beside the mask itself.
            x = layer(
                x,
                src_mask=mask,
                src_key_padding_mask=src_key_padding_mask,
                is_causal=bool(is_causal),
            )
        if src_key_padding_mask is not None and mask is None and self.use_nested_tensor:
            x = zero_padding(x, src_key_padding_mask, self.mask_check)
        return x if self.norm is None else self.norm(x)


class _Decoder(nn.TransformerDecoder):
    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        x = tgt
        for layer in self.layers:
            x = layer(
                x,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=bool(tgt_is_causal),
                memory_is_causal=memory_is_causal,
            )
        return x if self.norm is None else self.norm(x)


_TRACEABLE: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoder: _Encoder,
    nn.TransformerEncoderLayer: _EncoderLayer,
    nn.TransformerDecoder: _Decoder,
    nn.TransformerDecoderLayer: _DecoderLayer,
}


def _feed_forward(layer: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer, x: Tensor) -> Tensor:
    y: Tensor = layer.linear2(layer.activation(layer.linear1(x)))
    return y


def _attend(
    attention: nn.MultiheadAttention,
    x: Tensor,
    memory: Tensor | None,
    mask: Tensor | None,
    padding: Tensor | None,
    is_causal: bool,
) -> Tensor:
    seen = x if memory is None else memory
    result: Tensor = attention(
        x, seen, seen, attn_mask=mask, key_padding_mask=padding, is_causal=is_causal, need_weights=False
    )[0]
    return result


def zero_padding(x: Tensor, padding: Tensor, check: bool) -> Tensor:
    """What the nested tensors of PyTorch's encoder leave of padded steps, where it takes them: zeros.

    Args:
        x: ``[batch, steps, features]``.
        padding: ``[batch, steps]``, bool or added to the scores, not zero at padding.
        check: whether it takes them only for padding that is all at the end.
    """
    inside = padding.logical_not()
    if check and not torch._nested_tensor_from_mask_left_aligned(x, inside):
        return x
    return x.masked_fill(~inside.unsqueeze(-1), 0.0)


@contextlib.contextmanager
def traceable(model: nn.Module) -> Iterator[None]:
    """Give the transformer layers of a model forwards that can be traced, as long as it lasts.

    Subclasses of PyTorch's, and layers with forward hooks, stay as they are.
    """
    changed = [
        module for module in model.modules()
        if type(module) in _TRACEABLE and not (module._forward_hooks or module._forward_pre_hooks)
    ]  # fmt: skip
    for module in changed:
        module.__class__ = _TRACEABLE[type(module)]
    try:
        yield
    finally:
        for module in changed:
            module.__class__ = type(module).__mro__[1]
