"""Automatic mixed precision: which operations cast what they read, as on a GPU.

Source: the operator lists of PyTorch's documentation of ``torch.amp`` ("CUDA Ops that can autocast
to float16" and "to float32"). Everything else runs in the dtype it is given.
"""

from __future__ import annotations

import torch

AMP = {"bf16-amp": "bfloat16", "fp16-amp": "float16"}
"""Names of mixed precisions, and the dtype that matrix products run in."""

TO_HALF = frozenset(
    ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
     "convolution", "_convolution", "linear", "matmul", "mm", "bmm", "mv", "addmm", "addmv",
     "addbmm", "baddbmm", "addr", "chain_matmul", "linalg_multi_dot",
     "scaled_dot_product_attention", "prelu", "lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell",
     "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
)  # fmt: skip
TO_SINGLE = frozenset(
    ("acos", "asin", "binary_cross_entropy_with_logits", "cdist", "cosh",
     "cosine_embedding_loss", "cosine_similarity", "cumprod", "cumsum", "dist", "erfinv", "exp",
     "expm1", "frobenius_norm", "group_norm", "hinge_embedding_loss", "huber_loss", "kl_div",
     "l1_loss", "layer_norm", "linalg_matrix_norm", "linalg_vector_norm", "log", "log10",
     "log1p", "log2", "log_softmax", "logsumexp", "margin_ranking_loss", "mse_loss",
     "multi_margin_loss", "multilabel_margin_loss", "native_layer_norm", "nll_loss",
     "nll_loss2d", "norm", "nuclear_norm", "pdist", "poisson_nll_loss", "pow", "prod",
     "reciprocal", "renorm", "rms_norm", "rsqrt", "sinh", "smooth_l1_loss", "soft_margin_loss",
     "softmax", "softplus", "sum", "tan", "triplet_margin_loss", "upsample_bicubic2d",
     "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d",
     "upsample_nearest3d", "upsample_trilinear3d", "cross_entropy_loss", "nll_loss_nd")
)  # fmt: skip
_CASTABLE = (torch.float32, torch.float16, torch.bfloat16)


class Autocast:
    """Casts like autocast with ``dtype`` as its half precision; weights are cast once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._half = dtype
        self._weights: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def target(self, operation: str) -> torch.dtype | None:
        """What an operation casts to, ``None`` if it takes what it is given."""
        if operation in TO_HALF:
            return self._half
        return torch.float32 if operation in TO_SINGLE else None

    def cast(self, t: torch.Tensor, target: torch.dtype) -> torch.Tensor:
        """A tensor in the dtype an operation wants; call this where operations are recorded."""
        if t.dtype not in _CASTABLE or t.dtype == target:
            return t
        if not isinstance(t, torch.nn.Parameter):
            return t.to(target)
        known = self._weights.get(id(t))
        if known is None:
            known = self._weights[id(t)] = (t, t.to(target))
        return known[1]
