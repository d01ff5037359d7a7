"""Metal source text: from an instantiation of a kernel template to what each host compiles.

One flattened, ASCII text (the headers of ``kernels/`` in order, then an entry point per instantiation)
serves ``torch.mps.compile_shader`` and the C++ primitive (:func:`library`). ``mx.fast.metal_kernel`` writes
the signature itself, and takes a header and the entry point's body (:func:`mlx_header`, :func:`mlx_body`).
Everything that changes the code is a template argument, gathered
in a config struct; everything that changes with the problem is in the parameter array (``params.h``).
"""

from dataclasses import dataclass
from pathlib import Path

from ..caches import cached
from .templates import MPP_CHECK, MPP_TEMPLATES, TEMPLATES, Argument, Template

KERNELS = Path(__file__).parent / "kernels"
HEADERS = (
    "params.h",
    "window.h",
    "mma.h",
    "sums.h",
    "coord.h",
    "stage.h",
    "run.h",
    "flat.h",
    "walk.h",
    "slice.h",
    "team.h",
    "na_fwd.h",
    "na_delta.h",
    "na_bwd_dq.h",
    "na_bwd_dkv.h",
    "na_split.h",
    "na_rpb.h",
)
# What templates on matrix units need besides.
MPP_HEADERS = ("mpp.h", "mpp_walk.h", "na_fwd_mpp.h", "na_bwd_dq_mpp.h", "na_bwd_dkv_mpp.h")
# And what their self-test alone needs.
CHECK_HEADER = "na_mpp_check.h"
RECORDS = {**TEMPLATES, **MPP_TEMPLATES, MPP_CHECK.name: MPP_CHECK}
METAL_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat"}
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
THREADGROUP_BYTES = 32768


@dataclass(frozen=True, slots=True)
class Instance:
    """One instantiation of a kernel template: every compile-time choice.

    template: its name; :attr:`record` has all that is known about it (:mod:`.templates`).
    dim, dim_v: padded head dims (DA, DB). patch: rows of one simdgroup along (z, y, x); times heads it is 8.
    simdgroups: patches per threadgroup. chunk: staged columns. bricks: bricks per softmax group. wide: tokens are full
    and begin at 16-byte boundaries, so words are copied, or loaded directly, instead of elements. masked: the keys have
    a mask. of_additional: na_bwd_dkv of additional keys. slots: na_rpb of logits_grad instead of the fused op.
    empty_zero: na_qk leaves 0 where a slot has no key. table: entries that na_rpb's tables hold. part: bricks whose
    terms are summed before they join the total (0: all). flat: bricks run on from one row of a box into the next.
    """

    template: str
    dtype: str
    rank: int
    dim: int
    dim_v: int
    patch: tuple[int, int, int] = (1, 1, 8)
    heads: int = 1
    simdgroups: int = 4
    chunk: int = 32
    bricks: int = 2
    stage: bool = True
    wide: bool = False
    rpb: bool = False
    masked: bool = False
    additional: bool = False
    of_additional: bool = False
    lse_grad: bool = False
    slots: bool = False
    empty_zero: bool = False
    table: int = 0
    part: int = 0
    flat: bool = False
    team: int = 1

    @property
    def record(self) -> Template:
        """The template's record."""
        return RECORDS[self.template]

    @property
    def mpp(self) -> bool:
        """Whether it is on matrix units."""
        return self.record.mpp

    @property
    def fused(self) -> bool:
        """na_rpb of the fused op: it recomputes the gradients of the logits."""
        return not self.slots

    @property
    def name(self) -> str:
        """The entry point's name, which spells the whole instantiation; each letter has one meaning."""
        options = {
            "s": self.stage,
            "w": self.wide,
            "b": self.rpb,
            "m": self.masked,
            "x": self.additional,
            "e": self.of_additional,
            "l": self.lse_grad,
            "i": self.slots,
            "z": self.empty_zero,
            "f": self.flat,
        }
        flags = "".join(letter for letter, on in options.items() if on)
        patch = "".join(map(str, self.patch))
        team = f"k{self.team}" if self.team > 1 else ""
        return (
            f"{self.template}_r{self.rank}_{self.dtype}_d{self.dim}_v{self.dim_v}_p{patch}h{self.heads}"
            f"_g{self.simdgroups}{team}_c{self.chunk}_n{self.bricks}_a{self.part}_t{self.table}_{flags}"
        )

    @property
    def arguments(self) -> tuple[Argument, ...]:
        """The buffers that this instantiation binds, in order."""
        return tuple(a for a in self.record.arguments if not a.when or getattr(self, a.when))

    def dtype_of(self, argument: Argument) -> str:
        """The dtype of a buffer's elements."""
        result = "float32" if self.of_additional else self.dtype
        return {"T": self.dtype, "R": result, "float": "float32", "int": "int32", "long": "int64"}[argument.kind]

    @property
    def stride_params(self) -> dict[str, str]:
        """Argument -> the stride block that it fills; contiguous arguments have none."""
        blocks = {a.name: (self.of_additional and a.additional_stride) or a.stride for a in self.arguments}
        return {name: block for name, block in blocks.items() if block}

    @property
    def strided(self) -> tuple[str, ...]:
        """The inputs that may have any strides: the user's own tensors. All others are contiguous."""
        return tuple(a.name for a in self.arguments if a.kind == "T" and not a.output and a.stride)

    @property
    def products(self) -> int:
        """Products of a brick over 8 channels; none where logits' gradients are read, not computed."""
        return 0 if self.slots else self.record.products(self.dim // 8, self.dim_v // 8)

    @property
    def in_rows(self) -> bool:
        """Whether products read columns where they lie: then channels must lie side by side, and the step from one
        token along x to the next must fit 32 bits.
        """
        return self.record.mpp and self.record.walks and not self.flat

    @property
    def registers(self) -> int:
        """32-bit registers of a lane for what its patch holds all along: fragments of its rows, and sums (twice where
        these are taken in parts). Only of templates that a team may share.
        """
        rows = self.dim if self.team > 1 else self.dim + self.dim_v
        sums = self.record.sums(self.dim, self.dim_v) // self.team * (1 if self.part == 0 else 2)
        # Of an 8x8 fragment a lane holds two elements.
        return rows // 8 * 2 * ITEM_SIZES[self.dtype] // 4 + sums // 8 * 2

    @property
    def threads(self) -> int:
        """Threads of a threadgroup."""
        return 32 * self.simdgroups * self.team

    @property
    def board_bytes(self) -> int:
        """Threadgroup memory through which a team exchanges products: two sides of S and dP, in float."""
        return 4 * 64 * 4 * self.bricks if self.team > 1 else 0

    @property
    def threadgroup_bytes(self) -> int:
        """Threadgroup memory: two staged tensors of chunk + 8 tokens, 16 bytes of padding each; or a team's board. On
        matrix units each simdgroup has its own (``shared_bytes``).
        """
        if self.record.mpp:
            return self.shared_bytes * self.simdgroups
        if self.record.tables:
            return 4 * self.table * self.simdgroups
        if not self.record.walks or not self.stage:
            return self.board_bytes
        size = ITEM_SIZES[self.dtype]
        return (self.chunk + 8) * ((self.dim + self.dim_v) * size + 32)

    @property
    def shared_bytes(self) -> int:
        """Threadgroup memory of a simdgroup on matrix units (kernels/mpp_walk.h): weights of a brick and a value for
        each row, in float; the rows' channels; the columns of a brick, if they are gathered.
        """
        side, size = self.record.side, ITEM_SIZES[self.dtype]
        both = self.record.reads_dim and "out_grad" in {a.name for a in self.arguments}
        channels = self.dim + (self.dim_v if both else 0) + (max(self.dim, self.dim_v) if self.flat else 0)
        return 4 * (side * side + side) + side * channels * size


OPENING = "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n"
MPP_INCLUDES = "#include <metal_tensor>\n#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>\n"
# How kernels read a parameter where the host passes all strides in the parameter array.
PARAMS_STRUCT = """namespace na {
struct Params {
  const device long* values;
  METAL_FUNC long operator[](int at) const thread { return values[at]; }
  METAL_FUNC long channel(int block) const thread { return 1; }
};
}  // namespace na
"""


@cached("kernel headers", 4)
def headers(params: str = PARAMS_STRUCT) -> str:
    """The kernel headers as one text without includes, pragmas once or comments at line starts.

    params: the host's ``na::Params``; it may use the names of ``params.h``.
    """
    parts = []
    for name in HEADERS:
        parts += _code(name)
        if name == "params.h":
            parts.append(params)
    return "\n".join(parts) + "\n"


def _code(name: str) -> list[str]:
    """The lines of a header without its pragma and without comments at line starts."""
    lines = (KERNELS / name).read_text(encoding="ascii").splitlines()
    return [line for line in lines if line.strip() != "#pragma once" and not line.lstrip().startswith("//")]


@cached("kernel headers of matrix units", 2)
def mpp_headers(check: bool) -> str:
    """What follows :func:`headers` where a template is on matrix units. check: whether it is their self-test."""
    names = (*MPP_HEADERS, CHECK_HEADER) if check else MPP_HEADERS
    return "\n".join(line for name in names for line in _code(name)) + "\n"


def opening(instances: tuple[Instance, ...], params: str = PARAMS_STRUCT) -> str:
    """What the entry points of ``instances`` need. On matrix units that is more, which older systems do not have."""
    if any(instance.record.mpp for instance in instances):
        check = any(instance.record is MPP_CHECK for instance in instances)
        return OPENING.replace("using", MPP_INCLUDES + "using") + headers(params) + mpp_headers(check)
    return OPENING + headers(params)


def config(instance: Instance) -> str:
    """The config struct ``C_<name>`` of an instantiation."""
    i = instance
    pz, py, px = i.patch
    ints = {
        "RANK": i.rank,
        "DA": i.dim,
        "DB": i.dim_v,
        "PZ": pz,
        "PY": py,
        "PX": px,
        "HR": i.heads,
        "NSG": i.simdgroups,
        "TEAM": i.team,
        "CHUNK": i.chunk,
        "NB": i.bricks,
        "PART": i.part,
        "TABLE": i.table,
    }
    bools = {
        "STAGE": i.stage,
        "WIDE": i.wide,
        "RPB": i.rpb,
        "MASKED": i.masked,
        "ADDITIONAL": i.additional,
        "OF_ADDITIONAL": i.of_additional,
        "LSE_GRAD": i.lse_grad,
        "TRANSPOSED": i.record.transposed,
        "EMPTY_ZERO": i.empty_zero,
        "SLOTS": i.record.slotted or i.slots,
        "FLAT": i.flat,
    }
    if i.record.mpp:
        ints["SHARED"] = i.shared_bytes
    result = "float" if i.of_additional else METAL_TYPES[i.dtype]
    members = [f"typedef {METAL_TYPES[i.dtype]} T;", f"typedef {result} R;"]
    members += [f"static constexpr constant int {name} = {value};" for name, value in ints.items()]
    members += [f"static constexpr constant bool {name} = {str(value).lower()};" for name, value in bools.items()]
    return f"struct C_{i.name} {{\n  " + "\n  ".join(members) + "\n};\n"


def _metal_type(argument: Argument, instance: Instance) -> str:
    if argument.kind == "R":
        return "float" if instance.of_additional else METAL_TYPES[instance.dtype]
    return {"T": METAL_TYPES[instance.dtype]}.get(argument.kind, argument.kind)


def call(instance: Instance, params: str = "prm", position: tuple[str, str, str] = ("tgid", "sg", "lane")) -> str:
    """The statements of an entry point: staging memory, and the call of the template.

    params: what initialises ``na::Params``. position: the names of the threadgroup's position in the grid, of the
    simdgroup's index in the threadgroup, and of the thread's in the simdgroup.
    """
    bound = {a.name for a in instance.arguments}
    passed = []
    for a in instance.record.arguments:
        # A buffer that this instantiation does not have is never read: any pointer of its type will do.
        passed.append(a.name if a.name in bound else f"(const device {_metal_type(a, instance)}*)prm")
    passed = ["params" if name == "prm" else name for name in passed]
    lines = [f"const na::Params params = {{{params}}};"]
    if instance.record.mpp:
        lines.append(f"threadgroup uint4 shared[{instance.threadgroup_bytes // 16}];")
        passed.append("shared")
    elif instance.record.walks:
        metal, size = METAL_TYPES[instance.dtype], ITEM_SIZES[instance.dtype]
        for which, dim in (("a", instance.dim), ("b", instance.dim_v)):
            board = instance.board_bytes if which == "a" else 0
            bytes_ = (instance.chunk + 8) * (dim * size + 16) if instance.stage else max(16, board)
            lines.append(f"threadgroup uint4 staged_{which}[{bytes_ // 16}];")
            passed.append(f"(threadgroup {metal}*)staged_{which}")
    if instance.record.tables:
        lines.append(f"threadgroup float tables[{instance.table * instance.simdgroups}];")
        passed.append("tables")
    passed += position
    return "\n".join(
        f"  {line}" for line in [*lines, f"na::{instance.template}<C_{instance.name}>({', '.join(passed)});"]
    )


def entry_point(instance: Instance) -> str:
    """The kernel function of an instantiation, for hosts that compile a whole library."""
    parameters = []
    for index, a in enumerate(instance.arguments):
        const = "" if a.output else "const "
        parameters.append(f"{const}device {_metal_type(a, instance)}* {a.name} [[buffer({index})]]")
    parameters += [
        "uint3 tgid [[threadgroup_position_in_grid]]",
        "uint sg [[simdgroup_index_in_threadgroup]]",
        "uint lane [[thread_index_in_simdgroup]]",
    ]
    joined = ",\n    ".join(parameters)
    return f"{config(instance)}[[kernel]] void {instance.name}(\n    {joined}) {{\n{call(instance)}\n}}\n"


def library(instances: tuple[Instance, ...]) -> str:
    """One flattened source that holds an entry point for each of ``instances``."""
    return opening(instances) + "\n".join(entry_point(instance) for instance in instances)


def _mlx_params(instance: Instance) -> str:
    """``na::Params`` where strides of inputs are known only inside the kernel, as MLX's ``<input>_strides``.

    Indices are constants once loops are unrolled, so choosing between the arrays costs nothing.
    """
    members, reads, channels = [], [], []
    for name in instance.strided:
        block = instance.stride_params[name]
        # Axes of the tensor's tokens: additional keys and values lie along one.
        axes = 1 if block in ("kAdditionalKeyStride", "kAdditionalValueStride") else instance.rank
        members.append(f"  const constant long* {name};")
        reads.append(f"    if (at >= {block} && at < {block} + 5) return stride({name}, at - {block}, {axes});")
        channels.append(f"    if (block == {block}) return {name}[{axes + 2}];")
    return "\n".join(
        [
            "namespace na {",
            "struct Params {",
            "  const device long* values;",
            *members,
            "  METAL_FUNC long operator[](int at) const thread {",
            *reads,
            "    return values[at];",
            "  }",
            "  METAL_FUNC long channel(int block) const thread {",
            *channels,
            "    return 1;",
            "  }",
            "  static METAL_FUNC long stride(const constant long* of, int i, int axes) {",
            "    return of[i == 0 ? 0 : (i == 1 ? axes + 1 : i - 1)];",
            "  }",
            "};",
            "}  // namespace na",
            "",
        ]
    )


def mlx_header(instance: Instance) -> str:
    """What ``mx.fast.metal_kernel`` takes as its header: the kernels, and the instantiation's config."""
    return opening((instance,), _mlx_params(instance)) + config(instance)


def mlx_body(instance: Instance) -> str:
    """What ``mx.fast.metal_kernel`` takes as its source: the body of the kernel function.

    MLX binds what the body names: a thread's position, and ``<input>_strides``.
    """
    params = ", ".join(["prm", *(f"{name}_strides" for name in instance.strided)])
    position = ("threadgroup_position_in_grid", "simdgroup_index_in_threadgroup", "thread_index_in_simdgroup")
    return call(instance, params, position) + "\n"
