"""Log-mel spectrograms, as Whisper hears sound (Radford et al. 2022, arXiv:2212.04356, section 2.2).

    S = |STFT(x)|^2  (Hann window, the ends mirrored, the last frame left out),    m = log10 max(F S, 1e-10)
    features = (max(m, max m - 8) + 4) / 4

F are triangles on Slaney's mel scale, each of area 1.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError

#: Windows and steps of Whisper in seconds: 25 and 10 milliseconds.
WINDOW, STEP = 0.025, 0.010
#: Frequencies above are not heard, in Hz.
HIGHEST = 8000.0
#: Slaney's scale: linear to 1000 Hz, which are 15 mel; above, a factor 6.4 is 27 mel.
_LINEAR_HZ, _LINEAR_MELS, _LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27.0


def _mel_of(hertz: np.ndarray) -> np.ndarray:
    linear = hertz * _LINEAR_MELS / _LINEAR_HZ
    logarithmic = _LINEAR_MELS + np.log(np.maximum(hertz, _LINEAR_HZ) / _LINEAR_HZ) / _LOG_STEP
    return np.where(hertz < _LINEAR_HZ, linear, logarithmic)


def _hertz_of(mel: np.ndarray) -> np.ndarray:
    linear = mel * _LINEAR_HZ / _LINEAR_MELS
    return np.where(mel < _LINEAR_MELS, linear, _LINEAR_HZ * np.exp(_LOG_STEP * (mel - _LINEAR_MELS)))


@functools.lru_cache(maxsize=8)
def mel_filters(num_mels: int, window: int, sample_rate: int) -> np.ndarray:
    """Weights of the frequencies of a window in each mel band, float32 [window / 2 + 1, num_mels].

    Args:
      num_mels: number of bands.
      window: samples of a window.
      sample_rate: samples a second.

    Raises:
      UserError: the windows are too short to tell `num_mels` bands apart.
    """
    highest = min(HIGHEST, sample_rate / 2)
    lowest_mel, highest_mel = _mel_of(np.array([0.0, highest]))
    edges = _hertz_of(np.linspace(lowest_mel, highest_mel, num_mels + 2))
    frequencies = np.linspace(0.0, sample_rate / 2, window // 2 + 1)
    slopes = edges[None] - frequencies[:, None]  # [K, num_mels + 2]
    widths = np.diff(edges)
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    filters = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))
    if not filters.any(0).all():
        raise UserError(
            f"{num_mels} mel bands are too many for windows of {window} samples at {sample_rate} Hz: no frequency lies "
            f"in {int((~filters.any(0)).sum())} of them"
        )
    return filters.astype(np.float32)


def num_frames(num_samples: int, sample_rate: int) -> int:
    """Number of frames of a clip."""
    return num_samples // round(STEP * sample_rate)


def log_mel(samples: Array, num_mels: int, sample_rate: int) -> Array:
    """Features of clips [B, L] in [-1, 1], float32 [B, frames, num_mels]; most lie between -1 and 1.

    Raises:
      UserError: clips are shorter than half a window, or there are too many bands.
    """
    window, step = round(WINDOW * sample_rate), round(STEP * sample_rate)
    if samples.shape[1] <= window // 2:
        raise UserError(f"clips of {samples.shape[1]} samples are shorter than half a window of {window}")
    padded = jnp.pad(samples.astype(jnp.float32), ((0, 0), (window // 2, window // 2)), mode="reflect")
    starts = np.arange(num_frames(samples.shape[1], sample_rate)) * step
    frames = padded[:, starts[:, None] + np.arange(window)[None]]  # [B, F, window]
    hann = (0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(window) / window)).astype(np.float32)
    spectrum = jnp.fft.rfft(frames * hann[None, None], axis=-1)
    power = spectrum.real**2 + spectrum.imag**2
    with jax.default_matmul_precision("float32"):
        mels = power @ mel_filters(num_mels, window, sample_rate)
    levels = jnp.log10(jnp.maximum(mels, 1e-10))
    levels = jnp.maximum(levels, levels.max((1, 2), keepdims=True) - 8.0)
    return (levels + 4.0) / 4.0
