"""Whether sdists and wheels may be published. Prints every rule that a file breaks; exit status 1 if one does.

Of each wheel: its name and tag; that it holds this checkout's sources, what is compiled for its platform, and nothing
else; and of what is compiled the processor, the oldest system, the library's name, what it is linked to and where it
looks for that, the signature, and that no path of the machine it was built on is inside. A wheel without compiled code
is what a compiler that failed leaves behind: it is accepted only for natten-mps, and beside a wheel for a platform.
Then twine, check-wheel-contents and abi3audit. (The rule on glibc is auditwheel's own.)

usage: check_wheel.py FILE...
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import binaries
from registry import ROOT

NAME = re.compile(
    r"(?P<module>natten_m(?:ps|lx))-(?P<version>[^-]+)-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platforms>[^-]+)\.whl"
)
PURE = "py3-none-any"
TAG = {"natten_mps": "py3-none", "natten_mlx": "cp311-abi3"}
COMPILED = (".so", ".dylib", ".pyd", ".a", ".o", ".metallib")
JUNK = (".pyc", ".DS_Store", ".orig", ".rej")
MACOS = (14, 0)
# The newest glibc that a wheel may ask for, which is what MLX's own wheels do.
GLIBC = (2, 35)
# What a compiled file may be linked to, beside libraries of the wheel; and where those and libmlx are looked for.
SYSTEM = {
    "Linux": re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so\.\d|ld-linux-[\w-]+\.so\.\d"),
    "macOS": re.compile(
        r"/usr/lib/lib(System\.B|c\+\+\.1|objc\.A)\.dylib|/System/Library/Frameworks/(Metal|Foundation)\..+"
    ),
}
ORIGIN = {"Linux": "$ORIGIN", "macOS": "@loader_path"}
SUFFIX = {"Linux": ".so", "macOS": ".dylib"}


@dataclass(frozen=True)
class Wheel:
    """A wheel whose name is right. files: those of the package, by their paths in it. info: those of the dist-info."""

    path: Path
    module: str
    version: str
    platforms: tuple[str, ...]
    files: dict[str, bytes]
    info: dict[str, bytes]
    others: list[str]

    @property
    def pure(self) -> bool:
        return self.platforms == ("any",)

    @property
    def system(self) -> str:
        return "macOS" if self.platforms[0].startswith("macosx") else "Linux"

    @property
    def compiled(self) -> dict[str, bytes]:
        return {name: content for name, content in self.files.items() if name.endswith(COMPILED)}

    @property
    def package(self) -> Path:
        """The checkout's."""
        return ROOT / "packages" / self.module.replace("_", "-")


def open_wheel(path: Path) -> Wheel | None:
    """None if the name is no wheel's of this project."""
    name = NAME.fullmatch(path.name)
    if name is None:
        return None
    parts: tuple[dict[str, bytes], dict[str, bytes]] = ({}, {})
    others = []
    folders = (f"{name['module']}/", f"{name['module']}-{name['version']}.dist-info/")
    with zipfile.ZipFile(path) as archive:
        for file in filter(lambda name: not name.endswith("/"), archive.namelist()):
            for folder, part in zip(folders, parts, strict=True):
                if file.startswith(folder):
                    part[file.removeprefix(folder)] = archive.read(file)
                    break
            else:
                others.append(file)
    return Wheel(path, name["module"], name["version"], tuple(name["platforms"].split(".")), *parts, others)


# --- the rules: each lists what breaks it ----------------------------------------------------------------


def wrong_tag(wheel: Wheel) -> list[str]:
    faults = []
    tag = wheel.path.stem.split("-", 2)[2]
    if wheel.pure:
        if tag != PURE:
            faults.append(f"is tagged {tag}; without a platform it is {PURE}")
        if wheel.module == "natten_mlx":
            faults.append("holds no compiled code: where it was built, the compiler failed")
    elif tag != f"{TAG[wheel.module]}-{'.'.join(wheel.platforms)}":
        faults.append(f"is tagged {tag}; a platform's wheel is {TAG[wheel.module]}")
    stated = wheel.info.get("WHEEL", b"").decode()
    python = tag.removesuffix("-".join(("", ".".join(wheel.platforms))))
    if {f"{python}-{platform}" for platform in wheel.platforms} != set(
        re.findall(r"^Tag: (.+)$", stated, re.MULTILINE)
    ):
        faults.append("has a name and a file WHEEL that state different tags")
    version = tomllib.loads((wheel.package / "pyproject.toml").read_text())["project"]["version"]
    metadata = wheel.info.get("METADATA", b"").decode()
    if not wheel.version == version == (re.findall(r"^Version: (.+)$", metadata, re.MULTILINE) or [""])[0]:
        faults.append(f"is not of version {version}, or its metadata is not")
    return faults + [line for platform in wheel.platforms for line in wrong_platform(platform)]


def wrong_platform(platform: str) -> list[str]:
    if platform == "any":
        return []
    if platform == f"macosx_{MACOS[0]}_{MACOS[1]}_arm64":
        return []
    if platform.startswith("macosx"):
        return [f"is for {platform}; wheels for macOS are for macosx_{MACOS[0]}_{MACOS[1]}_arm64"]
    if re.fullmatch(r"manylinux20\d\d_(x86_64|aarch64)", platform):
        return []  # another name of a tag that stands beside it
    linux = re.fullmatch(r"manylinux_(\d+)_(\d+)_(x86_64|aarch64)", platform)
    if linux is None:
        return [f"is for {platform}, which no index takes"]
    if (int(linux[1]), int(linux[2])) > GLIBC:
        return [f"is for {platform}; it must run with glibc {GLIBC[0]}.{GLIBC[1]}"]
    return []


def wrong_contents(wheel: Wheel) -> list[str]:
    faults = [f"holds {name}" for name in wheel.others]
    source = wheel.package / "src" / wheel.module
    wanted = {
        path.relative_to(source).as_posix(): path
        for folder in (source, source / "_metal", source / "_metal" / "metal" / "kernels")  # the last two are links
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and "_native" not in path.relative_to(source).parts
    }
    for name, path in wanted.items():
        if wheel.files.get(name) != path.read_bytes():
            faults.append(f"{'has another' if name in wheel.files else 'lacks'} {name}")
    made = {"_build_info.py"} if wheel.module == "natten_mlx" and not wheel.pure else set()
    left = wheel.files.keys() - wanted.keys() - made - wheel.compiled.keys()
    faults += [f"holds {wheel.module}/{name}" for name in sorted(left)]
    if wheel.info.get("licenses/LICENSE") != (ROOT / "LICENSE").read_bytes():
        faults.append("lacks the licence")
    return faults


def wrong_selection(wheel: Wheel) -> list[str]:
    """Of compiled files: the library, and of natten-mlx an extension for each release that _build_info names."""
    wanted = set()
    if not wheel.pure:
        wanted.add(f"_native/{library(wheel)}{SUFFIX[wheel.system]}")
    found = set(wheel.compiled)
    extensions = {name for name in found if name.startswith("_ext_")}
    if wheel.module == "natten_mlx" and not wheel.pure:
        told = re.findall(r'"([\d.]+)":', wheel.files.get("_build_info.py", b"").decode())
        built = {name.partition(".")[0] for name in extensions}
        if not told or {f"_ext_{release.replace('.', '_')}" for release in told} != built:
            return [f"has extensions {sorted(extensions)}, and _build_info.py names MLX {told}"]
        found -= extensions
    if found == wanted:
        return []
    return [f"has the compiled files {sorted(found)}; a wheel like it has {sorted(wanted)}"]


def library(wheel: Wheel) -> str:
    return {"natten_mps": "libnatten_cpu", "natten_mlx": "libnatten_mlx_cpu"}[wheel.module]


def wrong_binaries(wheel: Wheel) -> list[str]:
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for name, content in wheel.compiled.items():
            file = Path(folder, PurePosixPath(name).name)
            file.write_bytes(content)
            faults += [f"{name} {line}" for line in wrong_binary(wheel, name, binaries.read(file))]
    return faults


def wrong_binary(wheel: Wheel, name: str, binary: binaries.Binary) -> list[str]:
    faults = []
    tagged = {re.sub(r"^(manylinux\w*?|macosx)(_\d+_\d+)?_(?=x86|aarch|arm)", "", p) for p in wheel.platforms}
    if binary.system != wheel.system or set(binary.machines) != tagged or len(binary.machines) != 1:
        faults.append(
            f"is for {binary.system} on {', '.join(binary.machines)}, its wheel for {', '.join(wheel.platforms)}"
        )
        return faults
    oldest = ".".join(map(str, binary.oldest))
    if wheel.system == "macOS" and binary.oldest != MACOS:
        faults.append(f"asks for macOS {oldest}, its wheel for {MACOS[0]}.{MACOS[1]}")
    promised = [tuple(map(int, found)) for found in re.findall(r"manylinux_(\d+)_(\d+)_", ".".join(wheel.platforms))]
    if wheel.system == "Linux" and promised and binary.oldest > min(promised):
        faults.append(f"asks for glibc {oldest}, its wheel for {min(promised)[0]}.{min(promised)[1]}")
    extension = name.startswith("_ext_")
    prefix = "@rpath/" if wheel.system == "macOS" else ""
    own, mlx = (f"{prefix}{stem}{SUFFIX[wheel.system]}" for stem in (library(wheel), "libmlx"))
    if not extension and binary.name != own:
        faults.append(f"has the name {binary.name!r} for those that link to it; it must be {own!r}")
    origin = ORIGIN[wheel.system]
    search = (f"{origin}/_native", f"{origin}/../mlx/lib") if extension else ()
    if binary.search != search:
        faults.append(f"looks for libraries in {binary.search}; it must be {search}")
    needs = {need for need in binary.needs if not SYSTEM[wheel.system].fullmatch(need)}
    if needs != ({own, mlx} if extension else set()):
        faults.append(
            f"is linked to {sorted(needs)}; of others' libraries an extension needs {[own, mlx]}, the library none"
        )
    if binary.signature:
        faults.append(binary.signature)
    if binary.paths:
        faults.append(f"holds paths of the machine it was built on: {', '.join(binary.paths[:5])}")
    return faults


RULES = (wrong_tag, wrong_contents, wrong_selection, wrong_binaries)


def complaints(paths: list[Path]) -> list[str]:
    """Every rule that a wheel breaks, in words."""
    faults = []
    wheels = {path: open_wheel(path) for path in paths}
    platforms = {wheel.module for wheel in wheels.values() if wheel and not wheel.pure}
    for path, wheel in wheels.items():
        if wheel is None:
            faults.append(f"{path.name}: is no name of a wheel of this project")
            continue
        if wheel.pure and wheel.module == "natten_mps" and wheel.module not in platforms:
            faults.append(
                f"{path.name}: holds no compiled code, and no wheel for a platform is beside it: a compiler failed"
            )
        faults += [f"{path.name}: {line}" for rule in RULES for line in rule(wheel)]
    return faults


def wrong_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    faults = [f"{path.name}: holds the link {member.name}" for member in members if member.issym() or member.islnk()]
    faults += [f"{path.name}: holds {name}" for name in sorted(names) if name.endswith((*COMPILED, *JUNK))]
    wanted = {"PKG-INFO", "LICENSE", "README.md", "pyproject.toml", "CMakeLists.txt", "csrc/cpu/kernels.cpp"}
    return faults + [f"{path.name}: lacks {name}" for name in sorted(wanted - names)]


# --- tools -----------------------------------------------------------------------------------------------


def run_tools(wheels: list[Path], sdists: list[Path]) -> list[str]:
    """What the usual programs that check wheels print, if they fail."""
    programs = Path(sys.executable).parent
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        stable = stable_extensions(wheels, Path(folder))
        commands = [
            ("twine", "check", "--strict", *wheels, *sdists),
            ("check-wheel-contents", *wheels) if wheels else (),
            ("abi3audit", "--strict", "--assume-minimum-abi3", "3.11", *stable) if stable else (),
        ]
        for program, *arguments in filter(None, commands):
            done = subprocess.run([programs / program, *arguments], capture_output=True, text=True, check=False)
            if done.returncode:
                faults.append(f"{program}: {done.stdout}{done.stderr}".strip())
    return faults


def stable_extensions(wheels: list[Path], folder: Path) -> list[Path]:
    """The extensions that keep to Python's stable ABI, unpacked: of a wheel abi3audit expects it of the others too."""
    found = []
    for path in wheels:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".abi3.so")]
            found += [Path(archive.extract(name, folder / path.stem)) for name in names]
    return found


def main() -> None:
    files = [Path(name) for name in sys.argv[1:]]
    if not files or any(name.startswith("-") for name in sys.argv[1:]):
        sys.exit(__doc__)
    sdists = [path for path in files if path.name.endswith(".tar.gz")]
    wheels = [path for path in files if path not in sdists]
    faults = complaints(wheels) + [line for path in sdists for line in wrong_sdist(path)]
    faults += run_tools(wheels, sdists)
    if faults:
        sys.exit("\n".join(f"check_wheel: {line}" for line in faults))
    print(f"check_wheel: {len(files)} files may be published: {', '.join(path.name for path in files)}")


if __name__ == "__main__":
    main()
