"""Small changes of the kernels on matrix units: rules as in :mod:`.mutants`, and the instances that run them."""

from __future__ import annotations

from natten_mps._metal.metal.source import MPP_HEADERS

# Where M5 keeps the element of a slot, as frameworks' own kernels assume: right in a quarter of the drawn layouts.
LANE = "metal_emulator::lane()"
OF_M5 = (
    f"const int at[2] = {{int(({LANE} >> 2 & 2) | ({LANE} & 1)) * 4 + slot % 4, "
    f"int(({LANE} >> 2 & 4) | ({LANE} >> 1 & 3)) + slot % 8 / 4 * 8}};"
)
FWD, DQ, DKV = ("na_fwd_mpp.h",), ("na_bwd_dq_mpp.h",), ("na_bwd_dkv_mpp.h",)
MPP, WALK = ("mpp.h",), ("mpp_walk.h",)

# name -> (pattern, replacement, files that it applies to).
MPP_RULES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "wide: no simdgroup barrier": (r"simdgroup_barrier\([^;]*\);", ";", MPP_HEADERS),
    "wide: the layout of M5 is assumed": (r"const auto at = s\.get_multidimensional_index\(slot\);", OF_M5, MPP),
    "wide: slots without an element have a place": (r"valid = s\.is_valid_element\(slot\)", "valid = true", MPP),
    "wide: slots without an element count": (r"s\.is_valid_element\(i\) \? (1u << i) : 0u", r"\1", MPP),
    "wide: rows are columns": (r"at\[1\] : 0\), ushort\(valid \? at\[0\]", "at[0] : 0), ushort(valid ? at[1]", MPP),
    "wide: a conversion is not asked for": (r"if \(op\.template is_comp[^{]*\{", "if (true) {", MPP),
    "wide: sums are not added to": (r"mode::multiply_accumulate", "mode::multiply", MPP),
    "wide: products are added to": (r"mode::multiply>?\)", "mode::multiply_accumulate)", MPP),
    "wide: the mask of the lane's own row": (r"simd_shuffle\(seen, at\.row\) >>", "seen >>", MPP),
    "wide: masks of slots without an element": (r"return bits & elements;", "return bits;", MPP),
    "wide: every element publishes": (r" && at\.column == 0", "", MPP),
    "wide: slots without an element publish": (r"\(elements >> i & 1u\) != 0u && ", "", MPP),
    "wide: a factor for all rows": (r"simd_shuffle\(factor, place\.row\)", "factor", MPP),
    "wide: rows that do not exist are written": (r" && exists && ", " && ", MPP),
    "wide: channels beyond D are written": (r" && place\.column < dim\b", "", MPP),
    "wide: slots without an element are written": (r"o\.is_valid_element\(i\) && ", "", MPP),
    "wide: static depth beyond D": (r"C::WIDE \|\| C::FLAT \? DP : 0;", "DP;", WALK),
    "wide: tokens that do not exist are copied": (r"if \(simd_shuffle\(uint\(exists\)[^{]*\{", "if (true) {", WALK),
    "wide: simdgroups share memory": (r" \+ sg \* C::SHARED", "", WALK),
    "wide: boxes without rows are divided by": (r"if \(rows == 0\) return 0;", "", WALK),
    "wide: boxes without rows run on": (r"all\.n_rows == 0 \|\| ", "", WALK),
    "wide: rows have a negative number of bricks": (r"max\(0, (\(patch\.x\.high[^;]*)\);", r"\1;", WALK),
    "wide: bricks before the first column": (r"max\(t\.axis\[X\]\.columns\.low, (min\([^;]*)\);", r"\1;", WALK),
    "wide: bricks behind the last column": (r"min\(due, patch\.x\.high - kSide\)", "due", WALK),
    "wide: columns behind the box": (r"min\(lane % kSide, patch\.x\.high - 1 - first\)", "lane % kSide", WALK),
    "wide: bricks of a row are all whole": (r"min\(int\(kSide\), patch\.x\.high - first\)", "int(kSide)", WALK),
    "wide: rows that see nothing of a row": (r"sees \? (bits_between\([^;]*) : 0u;", r"\1;", WALK),
    "wide: columns of two bricks count twice": (r"max\(patch\.seen\[X\]\.low, due\)", "patch.seen[X].low", WALK),
    "wide: row mask: > for >=, low": (r"p >= patch\.seen\[a\]\.low", "p > patch.seen[a].low", WALK),
    "wide: row mask: <= for <, high": (r"p < patch\.seen\[a\]\.high", "p <= patch.seen[a].high", WALK),
    "wide: bits above a brick": (r"clamp\(high, 0, kSide\)", "high", WALK),
    "wide: bits below a brick": (r"clamp\(low, 0, kSide\)", "low", WALK),
    "wide: rows of bricks run on": (r"\+\+next\.x == next\.high", "++next.x > next.high", WALK),
    "wide: bricks stay in their row": (r"next\.row\.advance\(t\);", "", WALK),
    "wide: the same 32 columns again": (r"if \(next\.brick % 2 == 0\)", "if (next.brick == 0)", WALK),
    "wide: the second 32 columns come first": (r"if \(next\.brick != 0\) ", "", WALK),
    "wide: only the first half of 32 columns": (r"next\.brick % 2 \* kSide", "0", WALK),
    "wide: bricks are all whole": (r"min\(int\(kSide\), next\.columns - [^;]*\);", "int(kSide);", WALK),
    "wide: one additional brick more": (r"number < extra", "number <= extra", WALK),
    "wide: values of slots without a row": (r"if \(top\.is_valid_element\(j\)\) ", "", FWD),
    "wide: the last brick's maximum": (r"max\(top\[j\], now\[j\]\)", "now[j]", FWD),
    "wide: sums keep their old scale": (r"sum\[j\] \* decay\[j\]", "sum[j]", FWD),
    "wide: outputs keep their old scale": (r"return simd_any\(moved\);", "return false;", FWD),
    "wide: lanes disagree about the scale": (r"return simd_any\(moved\);", "return moved;", FWD),
    "wide: outputs never shrink": (r"if \((soften\([^;{]*\))\) \{", r"\1; if (false) {", FWD),
    "wide: a negative scale is taken for positive": (r"s\[i\] \* sign", "s[i]", FWD),
    "wide: unseen columns are not masked": (r"\? s\[i\] \* sign : kMasked", "? s[i] * sign : s[i] * sign", FWD),
    "wide: unseen columns have a weight": (r"(\? exp2\(([^;]*)\)) : 0\.0f;", r"\1 : exp2(\2);", FWD),
    "wide: lse of rows that do not exist": (r"patch\.store && (int\(lane\) < kSide)", r"\1", (*FWD, *DQ)),
    "wide: two lanes write lse": (r"(if \(patch\.store) && int\(lane\) < kSide", r"\1", (*FWD, *DQ)),
    "wide: lse in base 2": (r"(\(own_top \+ log2\(total\)\)) \* kLn2", r"\1", FWD),
    "wide: tiles beyond a group run": (r"if \(!(find_tile<C>\([^;]*\))\) return false;", r"\1;", WALK),
    "wide: idle simdgroups walk": (r"return patch\.active;", "return true;", WALK),
    "wide: callers run without rows": (r"if \(!(\w[\w.]*\.find\([^;]*\))\) return;", r"\1;", (*FWD, *DQ, *DKV)),
    "wide: a loop runs once more": (r"(?<!NA_UNROLL )(for \([^;]*; \w+) < ([^;]+;)", r"\1 <= \2", MPP_HEADERS),
    "wide: lse and delta of the lane's own row": (r"simd_shuffle\((lse|delta), at\.row\)", r"\1", DQ),
    "wide: stats of a row, not of a column": (r"at\.column\)", "at.row)", DKV),
    "wide: unseen columns have a gradient": (r"seen \? (ten_bits\([^;]*) : 0\.0f;", r"\1;", (*DQ, *DKV)),
    "wide: head of the wrong group": (r"kv_head \* group_heads \+ h\b", "kv_head * group_heads", DKV),
}
_NO_WEIGHT = "their weight is 0 already; the check keeps NaN from rows that do not see it"
MPP_HARMLESS: dict[tuple[str, str, int], str] = {
    ("mpp.h", "wide: masks of slots without an element", 0): "no product and no row reads such a slot",
    ("mpp_walk.h", "wide: boxes without rows are divided by", 0): "no brick follows that would use what comes out",
    ("mpp_walk.h", "wide: rows have a negative number of bricks", 0): "a loop up to it never runs",
    ("na_fwd_mpp.h", "wide: unseen columns have a weight", 0): (
        "it is 0 unless the row has seen nothing yet, and then what it sees first erases it"
    ),
    ("na_bwd_dkv_mpp.h", "wide: stats of a row, not of a column", 1): "the factor is 1 but for rounding",
    ("na_fwd_mpp.h", "wide: values of slots without a row", 0): "no element has its row's value there",
    ("na_fwd_mpp.h", "wide: values of slots without a row", 1): "no element has its row's value there",
    ("na_bwd_dq_mpp.h", "wide: unseen columns have a gradient", 0): _NO_WEIGHT,
    ("na_bwd_dkv_mpp.h", "wide: unseen columns have a gradient", 0): _NO_WEIGHT,
}
# Guards that no mutant changes: (file, text) -> why.
MPP_UNRULED = {
    (file, "if (s.get_capacity() > kMostSlots)"): "no drawn layout has so many slots"
    for file in ("na_fwd_mpp.h", "na_bwd_dq_mpp.h", "na_bwd_dkv_mpp.h")
}
MPP_TRIED_ON: dict[str, dict[str, tuple[str, ...]]] = {
    "mpp.h": {"img-mpp-flat": ("na_fwd_mpp",), "seq-mpp": ("na_bwd_dq_mpp",)},
    "mpp_walk.h": {
        "img-mpp-grouped": ("na_fwd_mpp",),
        "seq-mpp-gathered": ("na_fwd_mpp", "na_bwd_dkv_mpp"),
        "vol-mpp": ("na_bwd_dkv_mpp",),
        "vol-mpp-flat": ("na_bwd_dkv_mpp",),
        "img-mpp-flat": ("na_fwd_mpp",),
    },
    "na_fwd_mpp.h": {"img-mpp": ("na_fwd_mpp",), "seq-mpp-gathered": ("na_fwd_mpp",)},
    "na_bwd_dq_mpp.h": {"img-mpp-grouped": ("na_bwd_dq_mpp",), "vol-mpp": ("na_bwd_dq_mpp",)},
    "na_bwd_dkv_mpp.h": {"img-mpp-grouped": ("na_bwd_dkv_mpp",), "img-mpp-flat": ("na_bwd_dkv_mpp",)},
}
