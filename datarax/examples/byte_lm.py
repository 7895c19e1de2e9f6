"""A small byte-level language model (Flax NNX, optax): the task of the quickstart.

Predicts each byte of a record from those before it. Everything that changes lives in the state: parameters,
optimizer and its step count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from datarax.transforms import map_batch


def bytes_to_tokens(records: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Records of equal length, list[bytes], to {"tokens": uint8[rows, length]}."""
    flat = np.frombuffer(b"".join(records), np.uint8)
    return {"tokens": flat.reshape(len(records), -1)}


tokens = map_batch(bytes_to_tokens, name="bytes_to_tokens")
"""The transform that the quickstart's config names."""


class Block(nnx.Module):
    """Causal self-attention and a gated feed-forward layer, each behind a normalisation."""

    def __init__(self, width: int, num_heads: int, rngs: nnx.Rngs) -> None:
        self.norm_attention = nnx.RMSNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=num_heads, in_features=width, decode=False, rngs=rngs
        )
        self.norm_feed = nnx.RMSNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 3 * width, rngs=rngs)
        self.down = nnx.Linear(3 * width, width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """One layer: float32[rows, length, width] to the same."""
        x = x + self.attention(self.norm_attention(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_feed(x))))


class Model(nnx.Module):
    """A decoder-only transformer over bytes."""

    def __init__(self, *, width: int, num_layers: int, num_heads: int, length: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(256, width, rngs=rngs)
        self.place = nnx.Embed(length, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, num_heads, rngs) for _ in range(num_layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 256, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits float32[rows, length, 256] of the byte after each of int32[rows, length]."""
        x = self.embed(tokens) + self.place(jnp.arange(tokens.shape[1]))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class ByteLanguageModel:
    """The task: `init` makes model and optimizer, `step` trains on one batch of {"tokens": uint8[rows, length]}."""

    def init(self, config: Mapping[str, Any], mesh: jax.sharding.Mesh) -> Any:
        """Parameters: width, num_layers, num_heads, length (of a record, in bytes), learning_rate, seed."""
        del mesh
        model = Model(
            width=config["width"],
            num_layers=config["num_layers"],
            num_heads=config["num_heads"],
            length=config["length"],
            rngs=nnx.Rngs(config["seed"]),
        )
        optimizer = nnx.Optimizer(model, optax.adamw(config["learning_rate"]), wrt=nnx.Param)
        # The graph is the static structure, the same for every state; what changes is all in the state.
        self._graph, state = nnx.split((model, optimizer))
        return state

    def step(self, state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        """One optimizer step; metrics: `loss`, in nats per byte."""
        state, loss = _train(self._graph, state, batch["tokens"])
        return state, {"loss": loss}


def _train_step(graph: Any, state: Any, tokens: jax.Array) -> tuple[Any, jax.Array]:
    model, optimizer = nnx.merge(graph, state)
    words = tokens.astype(jnp.int32)

    def loss_of(model: Model) -> jax.Array:
        logits = model(words[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, words[:, 1:]).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return nnx.state((model, optimizer)), loss


_train = jax.jit(_train_step, static_argnums=0, donate_argnums=1)

task = ByteLanguageModel()
"""What a config names: `datarax.examples.byte_lm:task`."""
