"""The ``demo`` command of both packages: denoise a photograph with neighborhood attention.

Loads an image, adds noise, removes it (:mod:`denoise`), prints what was done and how well, and writes a picture of it
(:mod:`picture`). The framework is passed in as a :class:`DemoPackage`.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .command_line import CommandError, backend_in_force, check_outputs, end, natural, whole, write
from .denoise import PATCH, add_noise, bands, non_local_means, patches, psnr, query_and_key
from .picture import Panel, busiest_pixel, draw_picture

if TYPE_CHECKING:
    from .denoise import Array

WINDOW = 21
SIGMA = 25.0
MAX_SIDE = 1024
# The modules that the demo needs, and their names in the package index.
MODULES = {"numpy": "numpy", "PIL": "pillow", "tqdm": "tqdm", "sklearn": "scikit-learn"}
SAMPLE = "china.jpg"


@dataclass(frozen=True, slots=True)
class DemoPackage:
    """The package that runs the demo.

    package: its name, 'natten-mps'. backends: those that can attend to a whole band; 'dense' cannot, because its memory
    is quadratic in the pixels. get_backend: the package's function. attend(query, key, value, kernel_size, backend) ->
    output, lse and explain(query, key, value, kernel_size, backend) -> str: on numpy arrays, at scale 1; shapes as in
    :data:`denoise.Attend`. backend None means the backend in force.
    """

    package: str
    backends: tuple[str, ...]
    get_backend: Callable[[], str]
    attend: Callable[["Array", "Array", "Array", int, str | None], tuple["Array", "Array"]]
    explain: Callable[["Array", "Array", "Array", int, str | None], str]


def add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", runner: DemoPackage) -> None:
    """Add the ``demo`` command to a command line; its ``run`` default takes the parsed arguments."""
    package = runner.package
    parser = commands.add_parser(
        "demo",
        help="denoise a photograph by neighborhood attention, and write a picture of it",
        description=f"""Add noise to a photograph and remove it again by exact non-local means, computed
            as one 2-D neighborhood attention: queries and keys are the {PATCH}x{PATCH} patches around the
            pixels, values are the pixels. Prints the time and the PSNR before and after, and writes the
            three images side by side as a PNG. `{package} demo train` trains a classifier instead.""",
        epilog=f"example: {package} demo photo.jpg --window 31 --sigma 15 --out denoised.png",
    )
    add = parser.add_argument
    add(
        "image",
        nargs="?",
        type=Path,
        metavar="IMAGE",
        help=f"any image that Pillow reads (default: scikit-learn's {SAMPLE}, 640x427)",
    )
    add(
        "--window",
        type=_kernel_size,
        default=WINDOW,
        metavar="N",
        help="each pixel attends to N x N pixels, N >= 2, odd or even (default: %(default)s)",
    )
    add(
        "--sigma",
        type=_sigma,
        default=SIGMA,
        metavar="S",
        help="deviation of the added noise, in grey levels of 255 (default: %(default)g)",
    )
    add("--seed", type=natural, default=0, metavar="N", help="seed of the noise (default: %(default)s)")
    add(
        "--max-side",
        type=_side,
        default=MAX_SIDE,
        metavar="N",
        help="scale larger images down to N pixels on their longer side (default: %(default)s)",
    )
    add("--backend", choices=runner.backends, help="the backend to use (default: the backend in force)")
    add(
        "--out",
        type=Path,
        default=Path(f"{package}-demo.png"),
        metavar="FILE",
        help="where the picture goes, PNG (default: %(default)s)",
    )
    add(
        "--array",
        type=Path,
        metavar="FILE",
        help="also save the denoised image, float32 [height, width, 3] in [0, 1] units, as .npy",
    )
    add("--progress", action="store_true", help="show the progress bar even if stderr is not a terminal")
    parser.set_defaults(run=lambda arguments: end(f"{package} demo", lambda: run(arguments, runner)))


def _kernel_size(text: str) -> int:
    return whole(text, 2)


def _side(text: str) -> int:
    return whole(text, 16)


def _sigma(text: str) -> float:
    try:
        sigma = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
    if not 1 <= sigma <= 255:
        raise argparse.ArgumentTypeError(f"must be from 1 to 255; got {text}")
    return sigma


def require(modules: list[str], package: str) -> None:
    """Raise :class:`CommandError` with the command that installs ``modules`` if any is missing."""
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise CommandError(
                f'the demo needs {MODULES[name]}, which is not installed: pip install "{package}[demo]"'
            ) from None


def load_image(path: Path | None, max_side: int) -> tuple["Array", str, str]:
    """The image ``[height, width, 3]``, float32 in [0, 1]; its name; a note if it was scaled down, or ''.

    Without a path it is scikit-learn's photograph. Transparency is dropped, orientation tags are applied.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    if path is None:
        from sklearn.datasets import load_sample_image

        picture, name = Image.fromarray(load_sample_image(SAMPLE)), f"{SAMPLE} of scikit-learn"
    else:
        try:
            with Image.open(path) as opened:
                if opened.mode[0] in "IF":
                    raise CommandError(f"{path}: pixels of mode {opened.mode}; save it with 8 bits per channel")
                picture, name = ImageOps.exif_transpose(opened).convert("RGB"), path.name
        except FileNotFoundError:
            raise CommandError(f"{path}: no such file") from None
        except UnidentifiedImageError:
            raise CommandError(f"{path}: not an image that Pillow can read") from None
        except (OSError, Image.DecompressionBombError) as error:
            raise CommandError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    width, height = picture.size
    note = ""
    if max(width, height) > max_side:
        ratio = max_side / max(width, height)
        size = max(1, round(width * ratio)), max(1, round(height * ratio))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        note = f"scaled down from {width} x {height}; --max-side sets the limit"
    return np.asarray(picture, np.float32) / np.float32(255), name, note


def denoise(noisy: "Array", args: argparse.Namespace, runner: DemoPackage) -> tuple["Array", float, float]:
    """The denoised image, the total seconds, and the seconds spent in the attention.

    Shows a progress bar of rows on stderr.
    """
    from tqdm import tqdm

    attending = 0.0

    def attend(query: "Array", key: "Array", value: "Array", window: int) -> tuple["Array", "Array"]:
        nonlocal attending
        began = time.perf_counter()
        result = runner.attend(query, key, value, window, args.backend)
        attending += time.perf_counter() - began
        return result

    hidden = not (args.progress or sys.stderr.isatty())
    with tqdm(total=noisy.shape[0], unit="row", desc="denoise", file=sys.stderr, disable=hidden) as bar:
        start = time.perf_counter()
        denoised = non_local_means(noisy, args.sigma / 255, args.window, attend, progress=bar.update)
        return denoised, time.perf_counter() - start, attending


def explain(noisy: "Array", args: argparse.Namespace, runner: DemoPackage) -> str:
    """The package's explanation of how it computes the first band, indented to follow a label.

    Raises :class:`CommandError` with the package's reason if the chosen backend cannot take the problem.
    """
    band = next(bands(noisy.shape[0], noisy.shape[1], args.window))
    query, key = query_and_key(patches(noisy, band.low, band.high), 1.0)
    value = noisy[None, band.low : band.high, :, None]
    try:
        return runner.explain(query, key, value, args.window, args.backend).replace("\n", "\n         ")
    except NotImplementedError as error:
        raise CommandError(str(error)) from None


def run(args: argparse.Namespace, runner: DemoPackage) -> int:
    """Run the demo; returns the exit status. Messages go to stderr, results to stdout."""
    require(["numpy", "PIL", "tqdm"] + (["sklearn"] if args.image is None else []), runner.package)
    import numpy as np

    check_outputs([args.out, args.array], args.image)
    if args.backend is None:
        backend_in_force(runner.get_backend, runner.backends)
    image, name, note = load_image(args.image, args.max_side)
    height, width, _ = image.shape
    window = args.window
    if min(height, width) < max(window, PATCH):
        raise CommandError(f"{name}: {width} x {height} pixels are too few for a window of {window} x {window}")
    noisy = add_noise(image, args.sigma / 255, args.seed)
    print(f"image    {name}, {width} x {height}" + (f" ({note})" if note else ""))
    print(f"noise    sigma {args.sigma:g} of 255, seed {args.seed}")
    print(f"window   {window} x {window}: each pixel attends to {window**2}")
    print(f"plan     {explain(noisy, args, runner)}", flush=True)
    denoised, seconds, attending = denoise(noisy, args, runner)
    before, after = psnr(noisy, image), psnr(denoised, image)
    print(f"time     {seconds:.2f} s, of which attention {attending:.2f} s")
    print(f"PSNR     {before:.2f} dB -> {after:.2f} dB ({after - before:+.2f} dB)")

    panels = [
        Panel(image, "original", (f"{width} x {height}",)),
        Panel(noisy, "noisy", (f"PSNR {before:.2f} dB", f"sigma {args.sigma:g}/255")),
        Panel(denoised, "denoised", (f"PSNR {after:.2f} dB  ({after - before:+.2f})", f"{seconds:.2f} s")),
    ]
    header = f"{runner.package}: exact non-local means as one neighborhood attention, window {window}x{window}"
    picture = draw_picture(header, panels, busiest_pixel(image, window), window)
    write(args.out, lambda file: picture.save(file, format="PNG"))
    if args.array is not None:
        write(args.array, lambda file: np.save(file, denoised))
    print(f"wrote    {args.out}" + (f", {args.array}" if args.array is not None else ""))
    return 0
