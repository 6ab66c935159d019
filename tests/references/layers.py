"""Slow definitions of the layers that an image autoencoder does not have: float64 numpy, shares nothing with tae."""

import math

import numpy as np


def temporal_conv_by_loops(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, zeros: bool = False
) -> np.ndarray:
    """Convolve (b, c, t, h, w) along t with weight (out, in, 3); outside the clip stands the nearest frame again, or 0."""
    frames = x.shape[2]
    out = np.zeros((x.shape[0], len(bias), math.ceil(frames / stride), *x.shape[3:]))
    for t_out in range(out.shape[2]):
        for tap in range(3):
            t_in = min(max(stride * t_out + tap - 1, 0), frames - 1)
            if zeros and t_in != stride * t_out + tap - 1:
                continue
            out[:, :, t_out] += np.einsum("oc,bchw->bohw", weight[:, :, tap], x[:, :, t_in])
    return out + bias[:, None, None, None]


def group_norm_by_loops(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, groups: int, per: str) -> np.ndarray:
    """Normalise (b, c, t, h, w) over the channels of a group and the positions of a frame, or of the whole clip."""
    out = np.empty_like(x)
    size = x.shape[1] // groups
    for b in range(x.shape[0]):
        for group in range(groups):
            channels = slice(group * size, (group + 1) * size)
            whole = x[b, channels]
            parts = [whole[:, t] for t in range(x.shape[2])] if per == "frame" else [whole]
            done = [(part - part.mean()) / np.sqrt(part.var() + 1e-6) for part in parts]
            out[b, channels] = np.stack(done, axis=1) if per == "frame" else done[0]
    return out * weight[:, None, None, None] + bias[:, None, None, None]


def attention_by_loops(x: np.ndarray, parameters: dict[str, np.ndarray], groups: int, over: str) -> np.ndarray:
    """Single-head attention with residual among positions of a frame (space) or frames of a position (time)."""
    normed = group_norm_by_loops(x, parameters["norm.weight"], parameters["norm.bias"], groups, "frame")
    b, c, t, h, w = x.shape

    def project(name: str, tokens: np.ndarray) -> np.ndarray:
        return tokens @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    def attend(tokens: np.ndarray) -> np.ndarray:
        scores = project("query", tokens) @ project("key", tokens).T / math.sqrt(c)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return project("output", (weights / weights.sum(axis=1, keepdims=True)) @ project("value", tokens))

    out = x.copy()
    for i in range(b):
        if over == "space":
            for frame in range(t):
                out[i, :, frame] += attend(normed[i, :, frame].reshape(c, -1).T).T.reshape(c, h, w)
        else:
            for row in range(h):
                for column in range(w):
                    out[i, :, :, row, column] += attend(normed[i, :, :, row, column].T).T
    return out


def haar_by_matrix(x: np.ndarray) -> np.ndarray:
    """The bands (8, b, c, t/2, h/2, w/2) of a clip of even sizes: each 2x2x2 cell times an orthonormal 8x8 matrix."""
    along_one_axis = np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)
    matrix = np.kron(np.kron(along_one_axis, along_one_axis), along_one_axis)
    b, c, t, h, w = x.shape
    out = np.empty((8, b, c, t // 2, h // 2, w // 2))
    for i in range(t // 2):
        for j in range(h // 2):
            for k in range(w // 2):
                cell = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2].reshape(b, c, 8)
                out[..., i, j, k] = np.einsum("on,bcn->obc", matrix, cell)
    return out


def rms_norm_by_loops(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Each position of (b, c, t, h, w) by the root of the mean square of its channels."""
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * weight[:, None, None, None]
