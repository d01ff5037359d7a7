"""The demo: exact non-local means by neighborhood attention on a photograph, in both packages."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from natten_mps._metal.tools import demo, denoise, picture

PACKAGES = ("natten_mps", "natten_mlx")
WINDOW = 13
SIGMA = 25 / 255


def start_of(i: int, n: int, w: int) -> int:
    """First row of the window of row ``i``: centred, shifted at the borders."""
    return min(max(i - w // 2, 0), n - w)


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Attention with scale 1, from its definition, one query at a time."""
    _, height, width, _, _ = query.shape
    out = np.empty_like(value)
    lse = np.empty_like(query[..., 0])
    for y in range(height):
        for x in range(width):
            top, left = start_of(y, height, window), start_of(x, width, window)
            keys = key[0, top : top + window, left : left + window, 0].reshape(window**2, -1)
            values = value[0, top : top + window, left : left + window, 0].reshape(window**2, -1)
            logits = keys @ query[0, y, x, 0]
            lse[0, y, x, 0] = np.logaddexp.reduce(logits)
            out[0, y, x, 0] = np.exp(logits - lse[0, y, x, 0]) @ values
    return out, lse


def direct_non_local_means(noisy: np.ndarray, sigma: float, window: int) -> np.ndarray:
    """The two loops of the definition: every pixel with every pixel of its window, patch by patch."""
    height, width, _ = noisy.shape
    h = 0.8 * sigma
    padded = np.pad(noisy, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    gauss = np.exp(-(np.arange(-2, 3) ** 2) / 2)
    weight = np.outer(gauss, gauss)[..., None] / gauss.sum() ** 2 / 3
    out = np.empty_like(noisy)
    for y in range(height):
        for x in range(width):
            total, mean = 0.0, np.zeros(3)
            top, left = start_of(y, height, window), start_of(x, width, window)
            for v in range(top, top + window):
                for u in range(left, left + window):
                    difference = padded[y : y + 5, x : x + 5] - padded[v : v + 5, u : u + 5]
                    distance = 2 * sigma**2 if (v, u) == (y, x) else (weight * difference**2).sum()
                    w = np.exp(-distance / h**2)
                    total, mean = total + w, mean + w * noisy[v, u]
            out[y, x] = mean / total
    return out


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    """A part of scikit-learn's china.jpg with roofs, sky and water: 96 rows of 128 pixels, bytes."""
    return load_sample_image("china.jpg")[100:196, 230:358]


@pytest.fixture(scope="module")
def file(photograph: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("demo") / "crop.png"
    Image.fromarray(photograph).save(path)
    return path


@pytest.fixture(scope="module")
def expected(photograph: np.ndarray) -> np.ndarray:
    """The photograph with the noise of seed 0, denoised in float64 from the definition of attention."""
    noisy = denoise.add_noise(photograph / np.float32(255), SIGMA, 0).astype(np.float64)
    return denoise.non_local_means(noisy, SIGMA, WINDOW, attend)


@pytest.fixture(params=PACKAGES)
def cli(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"{request.param}.cli")


def name_of(cli: ModuleType) -> str:
    return cli.__name__.split(".")[0].replace("_", "-")


# --- the method ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, 5, 8, 21])
def test_bands_keep_every_window(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoise, "BAND_PIXELS", 1)
    for height in range(window, 5 * window + 3):
        bands = list(denoise.bands(height, 640, window))
        assert [row for band in bands for row in range(band.first, band.last)] == list(range(height))
        for band in bands:
            for row in range(band.first, band.last):
                inside = band.low + start_of(row - band.low, band.high - band.low, window)
                assert inside == start_of(row, height, window)
    assert len(bands) == 3


def test_bands_hold_a_bounded_number_of_pixels() -> None:
    for height, width in ((427, 640), (768, 1024), (20_000, 300)):
        rows = [band.high - band.low for band in denoise.bands(height, width, 21)]
        assert max(rows) * width <= denoise.BAND_PIXELS + 20 * width


@pytest.mark.parametrize("window", [5, 6])
def test_bands_give_the_whole_image(window: int, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = denoise.add_noise(photograph[:44, :40] / np.float32(255), SIGMA, 0).astype(np.float64)
    whole = [denoise.Band(0, 44, 0, 44)]
    expected = denoise.non_local_means(noisy, SIGMA, window, attend, band_list=whole)
    monkeypatch.setattr(denoise, "BAND_PIXELS", 1)
    finished: list[int] = []
    banded = denoise.non_local_means(noisy, SIGMA, window, attend, progress=finished.append)
    assert len(finished) == 44 // (2 * window) + 1
    assert sum(finished) == 44
    np.testing.assert_allclose(banded, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [6, 7])
def test_attention_is_non_local_means(window: int, photograph: np.ndarray) -> None:
    noisy = denoise.add_noise(photograph[20:38, 30:46] / np.float32(255), SIGMA, 3).astype(np.float64)
    expected = direct_non_local_means(noisy, SIGMA, window)
    actual = denoise.non_local_means(noisy, SIGMA, window, attend)
    assert np.abs(expected - noisy).max() > 0.05
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_noise_has_its_deviation_and_its_seed() -> None:
    image = np.full((200, 300, 3), 0.5, np.float32)
    noisy = denoise.add_noise(image, SIGMA, 7)
    assert noisy.dtype == np.float32
    assert (noisy - image).std() == pytest.approx(SIGMA, rel=0.01)
    np.testing.assert_array_equal(noisy, denoise.add_noise(image, SIGMA, 7))
    assert not np.array_equal(noisy, denoise.add_noise(image, SIGMA, 8))


def test_psnr() -> None:
    image = np.zeros((4, 4, 3), np.float32)
    assert denoise.psnr(image + np.float32(0.1), image) == pytest.approx(20, abs=1e-5)
    assert denoise.psnr(image, image) == np.inf


# --- the command --------------------------------------------------------------------------------------


def run(cli: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["demo", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_demo_denoises(
    cli: ModuleType,
    file: Path,
    photograph: np.ndarray,
    expected: np.ndarray,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, array = tmp_path / "out.png", tmp_path / "out.npy"
    status, printed, bar = run(cli, capsys, file, "--window", WINDOW, "--out", out, "--array", array, "--progress")
    assert status == 0
    assert "denoise: 100%" in bar
    assert "96/96" in bar

    image = photograph / np.float32(255)
    noisy = denoise.add_noise(image, SIGMA, 0)
    denoised = np.load(array)
    assert denoised.dtype == np.float32
    # A twentieth of a grey level: float32 logits reach 100 (an error of 1e-5), and removing the pixel's own weight
    # multiplies their error by up to 23.
    np.testing.assert_allclose(denoised, expected, rtol=0, atol=2e-4)

    before, after = denoise.psnr(noisy, image), denoise.psnr(denoised, image)
    assert after - before > 5.5
    lines = printed.splitlines()
    assert lines[:3] == [
        "image    crop.png, 128 x 96",
        "noise    sigma 25 of 255, seed 0",
        "window   13 x 13: each pixel attends to 169",
    ]
    assert lines[3].startswith("plan     na2d: batch 1, shape (96, 128), heads 1, head_dim 76 (values 3)")
    assert any(line.startswith("         backend: ") for line in lines)
    assert re.fullmatch(r"time     \d+\.\d\d s, of which attention \d+\.\d\d s", lines[-3])
    assert lines[-2] == f"PSNR     {before:.2f} dB -> {after:.2f} dB ({after - before:+.2f} dB)"
    assert lines[-1] == f"wrote    {out}, {array}"
    with Image.open(out) as written:
        assert written.format == "PNG"
        # 3 images of 128 x 96 at scale 4, 28 between, 32 around; 46 for the header, 13 * 18 for the window
        assert written.size == (3 * 512 + 2 * 28 + 2 * 32, 32 + 46 + 384 + 28 + 234 + 32)


def test_without_a_terminal_there_is_no_progress_bar_and_a_backend_can_be_chosen(
    cli: ModuleType, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (file, "--window", 4, "--backend", "pure", "--out", tmp_path / "out.png", "--max-side", 64)
    status, printed, bar = run(cli, capsys, *arguments)
    assert (status, bar) == (0, "")
    assert "image    crop.png, 64 x 48 (scaled down from 128 x 96; --max-side sets the limit)\n" in printed
    assert "backend: pure (backend='pure' was asked for)\n" in printed


def test_demo_takes_the_sample_photograph_by_default() -> None:
    image, name, note = demo.load_image(None, 1024)
    assert (name, note, image.dtype) == ("china.jpg of scikit-learn", "", np.float32)
    np.testing.assert_array_equal(np.rint(image * 255), load_sample_image("china.jpg"))


def test_demo_reports_an_unusable_backend(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.backends.mps.is_available():
        pytest.skip("every backend is usable here")
    for package, backend in (("natten_mps", "metal"), ("natten_mlx", "fast_metal")):
        cli = importlib.import_module(f"{package}.cli")
        status, _, error = run(cli, capsys, file, "--backend", backend, "--out", tmp_path / "out.png")
        assert status == 1
        wanted = f"{name_of(cli)} demo: na2d: backend='{backend}' cannot take this problem: "
        assert error.startswith(wanted)
        assert len(error.splitlines()) == 1


# --- the picture --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "box"), [(13, (34, 14, 47, 27)), (14, (33, 13, 47, 27))])
def test_window_is_drawn_to_scale(window: int, box: tuple[int, int, int, int], photograph: np.ndarray) -> None:
    panels = [picture.Panel(photograph / np.float32(255), title, ("line",)) for title in ("a", "b", "c")]
    drawn = np.asarray(picture.draw_picture("header", panels, (20, 40), window)).astype(int)
    left, top, right, bottom = box
    zoom = {13: 18, 14: 16}[window]
    for panel in range(3):
        x0, y0 = 32 + panel * (512 + 28), 32 + 46
        x, y, end_x, end_y = x0 + 4 * left, y0 + 4 * top, x0 + 4 * right, y0 + 4 * bottom
        framed = drawn[y - 3 : end_y + 3, x - 3 : end_x + 3]
        accent = (framed == picture.ACCENT).all(-1)
        inside = np.zeros_like(accent)
        inside[3:-3, 3:-3] = True
        assert (accent == ~inside).all()
        shown = np.kron(photograph[top:bottom, left:right], np.ones((4, 4, 1), int))
        np.testing.assert_array_equal(framed[3:-3, 3:-3], shown)

        inset_y = y0 + 4 * 96 + 28
        inset = drawn[inset_y : inset_y + window * zoom, x0 : x0 + window * zoom]
        shown = np.kron(photograph[top:bottom, left:right], np.ones((zoom, zoom, 1), int))
        marked = (inset != shown).any(-1)
        rows, columns = np.nonzero(marked)
        centre_y, centre_x = (20 - top) * zoom, (40 - left) * zoom
        assert (rows.min(), rows.max() + 1) == (centre_y - 2, centre_y + zoom + 2)
        assert (columns.min(), columns.max() + 1) == (centre_x - 2, centre_x + zoom + 2)
        assert not marked[centre_y : centre_y + zoom, centre_x : centre_x + zoom].any()
        assert (inset[marked] == picture.ACCENT).all()


def test_busiest_pixel() -> None:
    image = np.full((60, 80, 3), 0.5, np.float32)
    image[30:36, 50:56] = np.random.default_rng(0).random((6, 6, 3), np.float32)
    row, column = picture.busiest_pixel(image, 9)
    assert abs(row - 33) <= 4
    assert abs(column - 53) <= 4
    left, top, right, bottom = picture.window_box((row, column), image.shape, 9)
    assert (right - left, bottom - top) == (9, 9)


# --- errors ---------------------------------------------------------------------------------------------


def make_missing(folder: Path) -> tuple[list[object], str]:
    path = folder / "none.jpg"
    return [path], f"{path}: no such file"


def make_text(folder: Path) -> tuple[list[object], str]:
    path = folder / "text.jpg"
    path.write_text("not an image")
    return [path], f"{path}: not an image that Pillow can read"


def make_folder(folder: Path) -> tuple[list[object], str]:
    return [folder], f"{folder}: cannot be read: Is a directory"


def make_deep(folder: Path) -> tuple[list[object], str]:
    path = folder / "deep.png"
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(path)
    return [path], f"{path}: pixels of mode I;16; save it with 8 bits per channel"


def make_small(folder: Path) -> tuple[list[object], str]:
    path = folder / "small.png"
    Image.new("RGB", (40, 20)).save(path)
    return [path], "small.png: 40 x 20 pixels are too few for a window of 21 x 21"


def make_nowhere(folder: Path) -> tuple[list[object], str]:
    path = folder / "nowhere" / "out.png"
    return ["--out", path], f"{path}: there is no folder {path.parent}"


def make_over_folder(folder: Path) -> tuple[list[object], str]:
    return ["--array", folder], f"{folder}: is a folder"


@pytest.mark.parametrize(
    "make",
    [make_missing, make_text, make_folder, make_deep, make_small, make_nowhere, make_over_folder],
    ids=lambda make: make.__name__.removeprefix("make_"),
)
def test_errors(
    cli: ModuleType,
    make: Callable[[Path], tuple[list[object], str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments, message = make(tmp_path)
    status, printed, error = run(cli, capsys, "--out", tmp_path / "out.png", *arguments)
    assert (status, printed, error) == (1, "", f"{name_of(cli)} demo: {message}\n")
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "1"], "argument --window: must be at least 2; got 1"),
        (["--window", "2.5"], "argument --window: '2.5' is not a whole number"),
        (["--sigma", "0.5"], "argument --sigma: must be from 1 to 255; got 0.5"),
        (["--sigma", "nan"], "argument --sigma: must be from 1 to 255; got nan"),
        (["--sigma", "loud"], "argument --sigma: 'loud' is not a number"),
        (["--seed", "-1"], "argument --seed: must be at least 0; got -1"),
        (["--max-side", "8"], "argument --max-side: must be at least 16; got 8"),
    ],
)
def test_bad_arguments(cli: ModuleType, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["demo", *arguments])
    assert exit_.value.code == 2
    assert capsys.readouterr().err.endswith(f"{name_of(cli)} demo: error: {message}\n")


def test_help_and_version(cli: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    package = importlib.import_module(cli.__package__ or "")
    for arguments, expected in (
        (["--help"], "denoise a photograph by neighborhood attention"),
        (["demo", "--help"], f"example: {name_of(cli)} demo photo.jpg --window 31"),
        (["--version"], f"{name_of(cli)} {package.__version__}\n"),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(arguments)
        assert exit_.value.code == 0
        assert expected in capsys.readouterr().out


@pytest.mark.parametrize("module", ["numpy", "PIL", "tqdm", "sklearn"])
def test_a_missing_module_is_named(
    cli: ModuleType, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    status, printed, error = run(cli, capsys)
    called = {"PIL": "pillow", "sklearn": "scikit-learn"}.get(module, module)
    wanted = f'the demo needs {called}, which is not installed: pip install "{name_of(cli)}[demo]"'
    assert (status, printed, error) == (1, "", f"{name_of(cli)} demo: {wanted}\n")


@pytest.mark.parametrize("package", PACKAGES)
def test_command_line_needs_the_framework_only(package: str) -> None:
    code = (
        "import sys\n"
        "for name in ('numpy', 'PIL', 'tqdm', 'sklearn'): sys.modules[name] = None\n"
        f"from {package}.cli import main\n"
        "sys.exit(main(['demo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    name = package.replace("_", "-")
    wanted = f'{name} demo: the demo needs numpy, which is not installed: pip install "{name}[demo]"'
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (1, "", wanted)
