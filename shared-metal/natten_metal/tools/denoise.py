"""Non-local means, exactly, as one neighborhood attention.

Non-local means replaces a pixel by a mean of the pixels around it, each weighted by how alike the
patches around the two are. With ``p_i`` the patch around pixel ``i`` (5x5 pixels of 3 channels, each
multiplied by the square root of its weight in a Gaussian of sum 1), ``v_i`` the pixel, and a filter
strength ``h``:

    out_i = sum_j w_ij v_j / sum_j w_ij        j over the window of i
    w_ij  = exp(-|p_i - p_j|^2 / h^2)          and w_ii = exp(-2 sigma^2 / h^2)

``|p_i - p_j|^2 = |p_i|^2 - 2 p_i.p_j + |p_j|^2``, and a softmax over ``j`` does not depend on ``|p_i|^2``:

    q_i = [p_i, 1]      k_j = [2 p_j, -|p_j|^2] / h^2      scale = 1

so that neighborhood attention with a head dimension of 76 and values of 3 channels is the whole filter,
except for ``w_ii``. A pixel is compared with its own noise and would get the weight 1, while the same patch
under other noise of deviation sigma lies at a distance of ``2 sigma^2``, which is why ``w_ii`` is defined by
that distance. Attention's log-sum-exp gives the weight ``a_i = exp(q_i.k_i - lse_i)`` that the pixel had, so
the output is corrected afterwards. With ``t = 1 - exp(-2 sigma^2 / h^2)``:

    out_i = (attention_i - a_i t v_i) / (1 - a_i t)

Source: Buades, Coll, Morel, "A non-local algorithm for image denoising", CVPR 2005, and their "Non-local
means denoising", IPOL 2011. Windows at the border are shifted, as in all of neighborhood attention.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..problem.window import window as window_of

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[tuple[int, ...], np.dtype[np.floating]]
    # query, key [1, rows, columns, 1, 76], value [1, rows, columns, 1, 3], kernel_size -> attention at
    # scale 1: output [1, rows, columns, 1, 3] and log-sum-exp [1, rows, columns, 1].
    Attend = Callable[[Array, Array, Array, int], tuple[Array, Array]]

PATCH = 5
# Standard deviation of the Gaussian that weights a patch, in pixels.
PATCH_DEVIATION = 1.0
# Filter strength h in units of the noise's standard deviation: the best for sigma = 25/255 on scikit-learn's china.jpg
# with window 21, and within 0.3 dB of the best there for every sigma from 5/255 to 60/255.
STRENGTH = 0.8
# Pixels per band: 80k of them hold 50 MB of queries and keys.
BAND_PIXELS = 80_000


@dataclass(frozen=True, slots=True)
class Band:
    """Rows ``[first, last)`` of an image, and the rows ``[low, high)`` that their windows reach."""

    first: int
    last: int
    low: int
    high: int


def add_noise(image: "Array", sigma: float, seed: int) -> "Array":
    """``image`` plus Gaussian noise of standard deviation ``sigma`` (same units), not clipped; float32.

    The same ``seed`` gives the same noise.
    """
    import numpy as np

    noise = np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
    return image.astype(np.float32) + np.float32(sigma) * noise


def psnr(image: "Array", reference: "Array") -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1; infinite where the images are equal."""
    import numpy as np

    error = float(np.mean(np.square(image.astype(np.float64) - reference)))
    return -10.0 * math.log10(error) if error else math.inf


def bands(height: int, width: int, window: int) -> Iterator[Band]:
    """Cut an image into bands such that attention on rows ``[low, high)`` alone gives each pixel of ``[first, last)``
    the same neighbourhood as in the whole image.

    Start and end of a window never decrease with the row, so the window of a band's first row reaches highest and that
    of its last row lowest. Cutting away the rows above a band shifts its windows and their limits by the same amount.
    """
    rows = max(BAND_PIXELS // width, 2 * window)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        low, _ = window_of(first, height, window, 1, False)
        _, high = window_of(last - 1, height, window, 1, False)
        yield Band(first, last, low, high)


def patches(image: "Array", low: int, high: int) -> "Array":
    """Weighted patches ``[high - low, width, 75]`` of the pixels in rows ``[low, high)``, image's dtype.

    ``image [height, width, 3]`` is mirrored at its borders. The squared distance of two patches is the
    weighted mean squared difference of their pixels.
    """
    import numpy as np

    reach = PATCH // 2
    height, width, channels = image.shape
    rows = np.pad(np.arange(height), reach, mode="reflect")[low : high + 2 * reach]
    padded = np.pad(image[rows], ((0, 0), (reach, reach), (0, 0)), mode="reflect")
    offsets = np.arange(-reach, reach + 1)
    profile = np.exp(-(offsets**2) / (2 * PATCH_DEVIATION**2))
    profile /= profile.sum()
    out = np.empty((high - low, width, PATCH, PATCH, channels), image.dtype)
    for dy in range(PATCH):
        for dx in range(PATCH):
            weight = profile[dy] * profile[dx] / channels
            out[:, :, dy, dx] = padded[dy : dy + high - low, dx : dx + width] * math.sqrt(weight)
    return out.reshape(high - low, width, PATCH * PATCH * channels)


def query_and_key(patch: "Array", strength: float) -> tuple["Array", "Array"]:
    """Query ``[p, 1]`` and key ``[2 p, -|p|^2] / h^2`` of patches ``[rows, columns, 75]``, h = ``strength``.

    Shapes ``[1, rows, columns, 1, 76]``, dtype of ``patch``.
    """
    import numpy as np

    size = patch.shape[-1]
    query = np.empty((1, *patch.shape[:-1], 1, size + 1), patch.dtype)
    key = np.empty_like(query)
    query[0, :, :, 0, :size] = patch
    query[..., size] = 1
    np.multiply(patch, 2 / strength**2, out=key[0, :, :, 0, :size])
    key[0, :, :, 0, size] = np.einsum("yxi,yxi->yx", patch, patch) / -(strength**2)
    return query, key


def non_local_means(
    noisy: "Array",
    sigma: float,
    window: int,
    attend: "Attend",
    *,
    band_list: list[Band] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> "Array":
    """Denoise ``noisy [height, width, 3]``, which carries noise of deviation ``sigma``, in its own dtype.

    window: side of the square of pixels averaged; at most the image's shorter side. attend: computes the
    attention on numpy arrays. progress: called with the number of rows finished, band by band.
    """
    import numpy as np

    height, width, _ = noisy.shape
    strength = STRENGTH * sigma
    taken = 1 - math.exp(-2 * sigma**2 / strength**2)
    # Distances do not depend on the mean, but small features keep |p|^2 - 2 p.p' + |p'|^2 accurate in float32.
    centred = noisy - noisy.mean((0, 1), dtype=np.float64).astype(noisy.dtype)
    out = np.empty_like(noisy)
    for band in bands(height, width, window) if band_list is None else band_list:
        query, key = query_and_key(patches(centred, band.low, band.high), strength)
        value = np.ascontiguousarray(noisy[None, band.low : band.high, :, None])
        output, lse = attend(query, key, value, window)
        # q_i.k_i = |p_i|^2 / h^2, which the key contains with the opposite sign.
        own = np.exp(-key[..., -1] - lse)[..., None] * taken
        fixed = (output - own * value) / (1 - own)
        inside = slice(band.first - band.low, band.last - band.low)
        out[band.first : band.last] = fixed[0, inside, :, 0]
        progress(band.last - band.first)
    return out
