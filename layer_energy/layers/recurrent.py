"""Recurrent layers: LSTM, GRU and the plain RNN, whole stacks at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from layer_energy.layers.base import Built, Call, Choice, LayerType, LogInt, flag, register
from layer_energy.workload import Cost


class Recurrent(LayerType):
    """``layers`` stacked recurrent layers over ``(batch, length, in_features)``."""

    differentiated_inputs = 1  # not of the first states
    space = {
        "batch": LogInt(1, 128, powers=0.8),
        "length": LogInt(1, 256),
        "in_features": LogInt(8, 2048, aligned=0.8),
        "hidden": LogInt(8, 1024, aligned=0.8),
        "layers": Choice({1: 0.6, 2: 0.3, 3: 0.1}),
        "bidirectional": flag(0.25),
    }

    def __init__(
        self, kind: str, gates: int, layer: Callable[..., nn.RNNBase], *claims: str
    ) -> None:
        self.kind, self.gates, self.layer, self.claims = kind, gates, layer, claims
        self.states = 2 if layer is nn.LSTM else 1

    def build(self, p: Mapping[str, int]) -> Built:
        layer = self.layer(
            p["in_features"],
            p["hidden"],
            p["layers"],
            batch_first=True,
            bidirectional=bool(p["bidirectional"]),
        )
        stack = p["layers"] * (1 + p["bidirectional"])
        states = tuple(torch.empty(stack, p["batch"], p["hidden"]) for _ in range(self.states))
        x = torch.empty(p["batch"], p["length"], p["in_features"])
        return layer, (x, states if len(states) > 1 else states[0])

    def describe(self, call: Call) -> dict[str, int] | None:
        hidden = call["params"][1].shape[1]
        if call["params"][0].shape[0] != self.gates * hidden:
            return None  # a projection of the hidden state
        packed = call.get("batch_sizes")
        if packed is not None:  # a PackedSequence: all time steps one after the other
            tokens, in_features = call["data"].shape
            length = packed.numel()
            batch = -(-tokens // length)
        else:
            x = call["input"]
            in_features = x.shape[-1]
            batch, length = x.shape[:2] if call["batch_first"] else (x.shape[1], x.shape[0])
        return {
            "batch": batch,
            "length": length,
            "in_features": in_features,
            "hidden": hidden,
            "layers": call["num_layers"],
            "bidirectional": int(call["bidirectional"]),
        }

    def _weights(self, p: Mapping[str, int]) -> int:
        directions = 1 + p["bidirectional"]
        wide = p["in_features"] + (p["layers"] - 1) * directions * p["hidden"]
        return self.gates * directions * p["hidden"] * (wide + p["layers"] * p["hidden"])

    def cost(self, p: Mapping[str, int], itemsize: int) -> Cost:
        tokens = p["batch"] * p["length"]
        directions = 1 + p["bidirectional"]
        biases = 2 * self.gates * directions * p["hidden"] * p["layers"]
        elements = tokens * directions * p["hidden"]
        return Cost(
            macs=tokens * self._weights(p),
            bytes_in=itemsize * tokens * p["in_features"],
            bytes_weight=itemsize * (self._weights(p) + biases),
            bytes_out=itemsize * elements,
            elements=elements,
        )

    def drivers(self, p: Mapping[str, int], cost: Cost) -> dict[str, float]:
        steps = p["length"] * p["layers"] * (1 + p["bidirectional"])
        return {
            "steps": steps,
            "macs": cost.macs,
            "cells": p["batch"] * steps * p["hidden"],
            "bytes_weight_steps": cost.bytes_weight * p["length"],
            "bytes_weight": cost.bytes_weight,
        }


register(Recurrent("lstm", 4, nn.LSTM, "lstm"))
register(Recurrent("gru", 3, nn.GRU, "gru"))
register(Recurrent("rnn", 1, nn.RNN, "rnn_tanh", "rnn_relu"))
