"""scripts/check_wheel.py: whole wheels pass, and every rule has a wheel that breaks it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import pytest
from machos import X86_64, MachO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import check_wheel  # noqa: E402

MACOS, LINUX = "macosx_14_0_arm64", "manylinux_2_17_x86_64"
LIBRARY = {
    "natten_mps": MachO("@rpath/libnatten_cpu.dylib"),
    "natten_mlx": MachO("@rpath/libnatten_mlx_cpu.dylib"),
}
EXTENSION = MachO(
    needs=("@rpath/libnatten_mlx_cpu.dylib", "@rpath/libmlx.dylib", "/usr/lib/libSystem.B.dylib"),
    search=("@loader_path/_native", "@loader_path/../mlx/lib"),
)
BUILD_INFO = b'NANOBIND_INTERNALS = {\n    "0.32.4": "22",\n}\n'
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="a compiler for Linux makes the libraries of these wheels"
)


@dataclass
class Made:
    """A wheel as it should be; a test changes one thing. files, info: by path, in the package and in its dist-info."""

    module: str
    platform: str
    files: dict[str, bytes]
    info: dict[str, bytes] = field(default_factory=dict)
    others: dict[str, bytes] = field(default_factory=dict)
    tag: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        self.version = version(self.module.replace("_", "-"))
        self.tag = "py3-none" if self.module == "natten_mps" or self.platform == "any" else "cp311-abi3"
        source = ROOT / "packages" / self.module.replace("_", "-") / "src" / self.module
        for folder in (source, source / "_metal", source / "_metal" / "metal" / "kernels"):
            for path in folder.rglob("*"):
                if path.is_file() and not {"__pycache__", "_native"} & set(path.relative_to(source).parts):
                    self.files[path.relative_to(source).as_posix()] = path.read_bytes()
        tags = "".join(f"Tag: {self.tag}-{platform}\n" for platform in self.platform.split("."))
        self.info = {
            "WHEEL": tags.encode(),
            "METADATA": f"Version: {self.version}\n".encode(),
            "licenses/LICENSE": (ROOT / "LICENSE").read_bytes(),
        }

    def write(self, folder: Path) -> Path:
        stem = f"{self.module}-{self.version}"
        path = folder / f"{stem}-{self.tag}-{self.platform}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for prefix, files in (
                (f"{self.module}/", self.files),
                (f"{stem}.dist-info/", self.info),
                ("", self.others),
            ):
                for name, content in files.items():
                    archive.writestr(prefix + name, content)
        return path


def mps(library: MachO = LIBRARY["natten_mps"]) -> Made:
    return Made("natten_mps", MACOS, {"_native/libnatten_cpu.dylib": library.made()})


def mlx(extension: MachO = EXTENSION, library: MachO = LIBRARY["natten_mlx"]) -> Made:
    compiled = {"_native/libnatten_mlx_cpu.dylib": library.made(), "_ext_0_32_4.abi3.so": extension.made()}
    return Made("natten_mlx", MACOS, {"_build_info.py": BUILD_INFO} | compiled)


def pure(module: str = "natten_mps") -> Made:
    return Made(module, "any", {})


def elf(folder: Path, name: str, *options: str, text: str = "int natten(void) { return 1; }") -> bytes:
    """A library for this Linux, and its processor."""
    made = folder / name
    flags = ("-shared", "-fPIC", "-nostartfiles", f"-Wl,-soname,{name}", *options)
    subprocess.run(["cc", "-x", "c", "-", "-o", made, *flags], input=text.encode(), check=True)
    return made.read_bytes()


def linux(folder: Path, *options: str, platform: str = LINUX, text: str = "int natten(void) { return 1; }") -> Made:
    library = elf(folder, "libnatten_cpu.so", *options, text=text)
    return Made("natten_mps", platform, {"_native/libnatten_cpu.so": library})


def said(made: Made, folder: Path) -> list[str]:
    path = made.write(folder)
    return [line.removeprefix(f"{path.name}: ") for line in check_wheel.complaints([path])]


@pytest.mark.parametrize("made", [mps, mlx], ids=["natten_mps", "natten_mlx"])
def test_wheels_for_macos_pass(made: Callable[[], Made], tmp_path: Path) -> None:
    assert said(made(), tmp_path) == []


@on_linux
def test_a_wheel_for_linux_passes(tmp_path: Path) -> None:
    assert said(linux(tmp_path), tmp_path) == []
    both = f"{LINUX}.manylinux2014_x86_64"
    assert said(linux(tmp_path, platform=both), tmp_path) == []


def test_a_pure_wheel_passes_beside_one_with_compiled_code_alone(tmp_path: Path) -> None:
    assert check_wheel.complaints([pure().write(tmp_path), mps().write(tmp_path)]) == []
    (line,) = said(pure(), tmp_path)
    assert line.startswith("holds no compiled code, and no wheel for a platform is beside it")
    other = mlx().write(tmp_path)
    assert len(check_wheel.complaints([pure().write(tmp_path), other])) == 1


def test_a_pure_wheel_of_natten_mlx_is_a_failed_build(tmp_path: Path) -> None:
    assert said(pure("natten_mlx"), tmp_path) == ["holds no compiled code: where it was built, the compiler failed"]


def test_a_pure_wheel_under_the_name_of_a_platforms_wheel(tmp_path: Path) -> None:
    left = mps()
    del left.files["_native/libnatten_cpu.dylib"]
    (line,) = said(left, tmp_path)
    assert line == "has the compiled files []; a wheel like it has ['_native/libnatten_cpu.dylib']"
    renamed = pure()
    renamed.platform = MACOS
    assert len(said(renamed, tmp_path)) == 2  # that, and a WHEEL that says another tag


NAMES = {
    "not ours": ("natten-0.21.6-py3-none-any.whl", "is no name of a wheel of this project"),
    "no wheel": ("natten_mps.zip", "is no name of a wheel of this project"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names(case: str) -> None:
    name, line = NAMES[case]
    assert check_wheel.complaints([Path(name)]) == [f"{name}: {line}"]


@pytest.mark.parametrize(
    ("platform", "line"),
    [
        ("macosx_15_0_arm64", "is for macosx_15_0_arm64; wheels for macOS are for macosx_14_0_arm64"),
        ("macosx_14_0_universal2", "is for macosx_14_0_universal2; wheels for macOS are for macosx_14_0_arm64"),
        ("linux_x86_64", "is for linux_x86_64, which no index takes"),
        ("manylinux_2_36_x86_64", "is for manylinux_2_36_x86_64; it must run with glibc 2.35"),
        ("win_amd64", "is for win_amd64, which no index takes"),
    ],
)
def test_platforms(platform: str, line: str, tmp_path: Path) -> None:
    made = mps()
    made.platform = platform
    made.info["WHEEL"] = f"Tag: py3-none-{platform}\n".encode()
    assert line in said(made, tmp_path)


def _tag(made: Made) -> None:
    made.tag = "cp311-cp311"
    made.info["WHEEL"] = f"Tag: cp311-cp311-{MACOS}\n".encode()


def _extension_of_another_release(made: Made) -> None:
    made.files["_build_info.py"] = BUILD_INFO.replace(b"0.32.4", b"0.32.3")


SPOILED: dict[str, tuple[Callable[[Made], object], str]] = {
    "tag": (_tag, "is tagged cp311-cp311-macosx_14_0_arm64; a platform's wheel is cp311-abi3"),
    "another WHEEL": (
        lambda made: made.info.update(WHEEL=b"Tag: py3-none-any\n"),
        "has a name and a file WHEEL that state different tags",
    ),
    "another version": (
        lambda made: made.info.update(METADATA=b"Version: 9\n"),
        "is not of version VERSION, or its metadata is not",
    ),
    "no licence": (lambda made: made.info.pop("licenses/LICENSE"), "lacks the licence"),
    "no py.typed": (lambda made: made.files.pop("py.typed"), "lacks py.typed"),
    "no kernel": (lambda made: made.files.pop("_metal/metal/kernels/na_fwd.h"), "lacks _metal/metal/kernels/na_fwd.h"),
    "another kernel": (
        lambda made: made.files.update({"_metal/metal/kernels/na_fwd.h": b"//"}),
        "has another _metal/metal/kernels/na_fwd.h",
    ),
    "bytecode": (lambda made: made.files.update({"a.pyc": b""}), "holds natten_mlx/a.pyc"),
    "another package": (lambda made: made.others.update({"tests/a.py": b""}), "holds tests/a.py"),
    "one more library": (
        lambda made: made.files.update({"_native/libmlx.dylib": MachO("@rpath/libmlx.dylib").made()}),
        (
            "has the compiled files ['_native/libmlx.dylib', '_native/libnatten_mlx_cpu.dylib']; "
            "a wheel like it has ['_native/libnatten_mlx_cpu.dylib']"
        ),
    ),
    "another release": (
        _extension_of_another_release,
        "has extensions ['_ext_0_32_4.abi3.so'], and _build_info.py names MLX ['0.32.3']",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_contents(case: str, tmp_path: Path) -> None:
    spoil, line = SPOILED[case]
    made = mlx()
    spoil(made)
    assert line.replace("VERSION", made.version) in said(made, tmp_path)


def test_another_version_than_the_checkouts(tmp_path: Path) -> None:
    made = mps()
    ours, made.version = made.version, "9.9"
    assert f"is not of version {ours}, or its metadata is not" in said(made, tmp_path)


EXTENSIONS = {
    "macOS 15": (replace(EXTENSION, oldest=(15, 0)), "asks for macOS 15.0, its wheel for 14.0"),
    "Intel": (replace(EXTENSION, processor=X86_64), "is for macOS on other, its wheel for macosx_14_0_arm64"),
    "no rpath": (
        replace(EXTENSION, search=()),
        "looks for libraries in (); it must be ('@loader_path/_native', '@loader_path/../mlx/lib')",
    ),
    "absolute rpath": (
        replace(EXTENSION, search=(*EXTENSION.search, "/elsewhere/mlx/lib")),
        (
            "looks for libraries in ('@loader_path/_native', '@loader_path/../mlx/lib', '/elsewhere/mlx/lib'); "
            "it must be ('@loader_path/_native', '@loader_path/../mlx/lib')"
        ),
    ),
    "another library": (
        replace(EXTENSION, needs=(*EXTENSION.needs, "/elsewhere/lib/libomp.dylib")),
        (
            "is linked to ['/elsewhere/lib/libomp.dylib', '@rpath/libmlx.dylib', '@rpath/libnatten_mlx_cpu.dylib']; "
            "of others' libraries an extension needs ['@rpath/libnatten_mlx_cpu.dylib', '@rpath/libmlx.dylib'], "
            "the library none"
        ),
    ),
    "unsigned": (replace(EXTENSION, signed=False), "is not signed"),
    "signed before it was changed": (
        replace(EXTENSION, wrong_page=True, text=bytes(5000)),
        "has a signature that does not fit its page 1",
    ),
    "a path": (
        replace(EXTENSION, text=b"\0/elsewhere/runner/natten/csrc/metal.cpp\0"),
        "holds paths of the machine it was built on: /elsewhere/runner/natten/csrc/metal.cpp",
    ),
}


@pytest.mark.parametrize("case", EXTENSIONS)
def test_extensions_for_macos(case: str, tmp_path: Path) -> None:
    extension, line = EXTENSIONS[case]
    assert f"_ext_0_32_4.abi3.so {line}" in said(mlx(extension), tmp_path)


def test_install_name_of_the_library(tmp_path: Path) -> None:
    (line,) = said(mlx(library=MachO("/else/libnatten_mlx_cpu.dylib")), tmp_path)[:1]
    assert line == (
        "_native/libnatten_mlx_cpu.dylib has the name '/else/libnatten_mlx_cpu.dylib' for those that link to it; "
        "it must be '@rpath/libnatten_mlx_cpu.dylib'"
    )


LINUX_LIBRARIES = {
    "rpath": (("-Wl,-rpath,/elsewhere/lib",), "", "looks for libraries in ('/elsewhere/lib',); it must be ()"),
    "another library": (
        ("-Wl,--no-as-needed", "-l:libz.so.1"),
        "",
        (
            "is linked to ['libz.so.1']; of others' libraries an extension needs ['libnatten_cpu.so', 'libmlx.so'], "
            "the library none"
        ),
    ),
    "name": (("-Wl,-soname,other.so",), "", "has the name 'other.so' for those that link to it; it must be "),
    "a path": (
        (),
        'const char* path = "/elsewhere/me/natten/kernels.cpp";',
        "holds paths of the machine it was built on: ",
    ),
    "a newer glibc": (
        (),
        "int pthread_create(void*, void*, void*, void*); int natten(void) { return pthread_create(0, 0, 0, 0); }",
        "asks for glibc 2.34, its wheel for 2.17",
    ),
}


@on_linux
@pytest.mark.parametrize("case", LINUX_LIBRARIES)
def test_libraries_for_linux(case: str, tmp_path: Path) -> None:
    options, text, line = LINUX_LIBRARIES[case]
    lines = said(linux(tmp_path, *options, text=text or "int natten(void) { return 1; }"), tmp_path)
    assert any(told.startswith(f"_native/libnatten_cpu.so {line}") for told in lines), lines


@on_linux
def test_a_library_of_another_processor(tmp_path: Path) -> None:
    (line,) = said(linux(tmp_path, platform="manylinux_2_17_riscv64"), tmp_path)[:1]
    assert line == "is for manylinux_2_17_riscv64, which no index takes"
    other = (
        "manylinux_2_17_aarch64"
        if check_wheel.binaries.read(tmp_path / "libnatten_cpu.so").machines == ("x86_64",)
        else LINUX
    )
    (line,) = said(linux(tmp_path, platform=other), tmp_path)
    assert line.startswith("_native/libnatten_cpu.so is for Linux on ")


def test_sdists(tmp_path: Path) -> None:
    path, stem = tmp_path / "natten_mps-9.tar.gz", "natten_mps-9"
    wanted = ("PKG-INFO", "LICENSE", "README.md", "pyproject.toml", "CMakeLists.txt", "csrc/cpu/kernels.cpp")
    (tmp_path / "file").write_text("")
    with tarfile.open(path, "w:gz") as archive:
        for name in wanted:
            archive.add(tmp_path / "file", f"{stem}/{name}")
    assert check_wheel.wrong_sdist(path) == []
    (tmp_path / "link").symlink_to("file")
    with tarfile.open(path, "w:gz") as archive:
        for name in (*wanted[1:], "src/a.pyc", "src/a.so"):
            archive.add(tmp_path / "file", f"{stem}/{name}")
        archive.add(tmp_path / "link", f"{stem}/csrc/link")
    told = [line.removeprefix("natten_mps-9.tar.gz: ") for line in check_wheel.wrong_sdist(path)]
    assert told == [f"holds the link {stem}/csrc/link", "holds src/a.pyc", "holds src/a.so", "lacks PKG-INFO"]
