"""Small changes of the kernels' text.

A rule is a pattern and its replacement; every match in a kernel header is a separate mutant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from natten_mps._metal.metal.source import HEADERS, KERNELS, MPP_HEADERS

from .mpp_mutants import MPP_HARMLESS, MPP_RULES

# name -> (pattern, replacement, files that it applies to).
RULES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no threadgroup barrier": (r"threadgroup_barrier\([^;]*\);", ";", HEADERS),
    "no simdgroup barrier": (r"simdgroup_barrier\([^;]*\);", ";", HEADERS),
    "stores rows that are not there": (r"if \(!patch\.store\) return;", "", HEADERS),
    "fills slots of rows that are not there": (r"if \(patch\.store\) ", "", HEADERS),
    "no check of store": (r" && store\b", "", HEADERS),
    "rows of a patch all exist": (r"patch\.store = patch\.store && p <= end;", "", HEADERS),
    "rows of a patch: < for <=": (r"patch\.store && p <= end", "patch.store && p < end", HEADERS),
    "additional rows all exist": (r"patch\.store = first \+ fragment_row < rows;", "patch.store = true;", HEADERS),
    "idle simdgroups store": (r"patch\.store = patch\.active;", "patch.store = true;", HEADERS),
    "idle simdgroups walk": (r"if \(!patch\.active\) continue;", "", HEADERS),
    "all simdgroups are active": (r"patch\.active = (?:t|first)\b[^;]*;", "patch.active = true;", HEADERS),
    "tiles beyond a group run": (r"inside = inside && [^;]*;", ";", HEADERS),
    "one end of x twice": (r"nth % 2 \* \(along_x - 1\)", "0", HEADERS),
    "an end of x for a tile between": (r"line\.rest \+ 1;", "line.rest;", HEADERS),
    "mask: > for >=, low": (r"column >= seen\.low", "column > seen.low", HEADERS),
    "mask: <= for <, high": (r"column < seen\.high", "column <= seen.high", HEADERS),
    "mask: no row": (r"return row\[j\] && ", "return ", HEADERS),
    "row mask: > for >=, low": (r"p >= patch\.seen\[a\]\.low", "p > patch.seen[a].low", HEADERS),
    "row mask: <= for <, high": (r"p < patch\.seen\[a\]\.high", "p <= patch.seen[a].high", HEADERS),
    "full: low one less": (r">= patch\.common\[(\w)\]\.low", r">= patch.common[\1].low - 1", HEADERS),
    "full: low one more": (r">= patch\.common\[(\w)\]\.low", r"> patch.common[\1].low", HEADERS),
    "full: <= for <, high": (r"p < patch\.common\[a\]\.high", "p <= patch.common[a].high", HEADERS),
    "full: high one more": (r"\+ 8 <= patch\.common\[X\]\.high", "+ 7 <= patch.common[X].high", HEADERS),
    "common: ends swapped, low": (r"(common\[a\] = \{)of_last\.low", r"\1of_first.low", HEADERS),
    "common: ends swapped, high": (r"(common\[a\] = \{of_last\.low, )of_first\.high", r"\1of_last.high", HEADERS),
    "patch box: ends swapped, low": (r"(patch\.x = \{)of_first\.low", r"\1of_last.low", HEADERS),
    "patch box: ends swapped, high": (r"(patch\.x = \{of_first\.low, )of_last\.high", r"\1of_first.high", HEADERS),
    "divisions leave everything": (r"a - quotient \* b", "a", HEADERS),
    "dilation groups are as long as the axis": (r"d == 1 \? full : group_length\(full, group, d\)", "full", HEADERS),
    "aligned rows that do not exist are loaded": (r"if \(dim != 0\) r = ", "r = ", HEADERS),
    "float rows lose their last pair": (r"EACH && d \+ fc >= (\w+) \?", r"EACH && d + fc >= \1 - 2 ?", HEADERS),
    "window: one more": (r"(span\.(?:low|high) = )([^;]+);", r"\1(\2) + 1;", ("window.h",)),
    "window: one less": (r"(span\.(?:low|high) = )([^;]+);", r"\1(\2) - 1;", ("window.h",)),
    "box: no row clamped": (r"patch\.row\[a\] = min\(p, end\);", "patch.row[a] = p;", HEADERS),
    "columns not bounded": (r"span\.high = min\(span\.high, a\.columns\.high\);", "", HEADERS),
    "columns before those at hand": (r"if \(TRANSPOSED\) span\.low = max[^;]*;", "", HEADERS),
    "everything at hand begins at 0": (r"if \(start != 0\) span\.low = [^;]*;", "", HEADERS),
    "everything at hand ends with the axis": (r"if \(start \+ length != full\) span\.high = [^;]*;", "", HEADERS),
    "the whole axis is at hand": (r"int\(prm\[kFullShape \+ a\]\)", "int(prm[kQueryShape + a])", HEADERS),
    "tiles begin at position 0": (r"t\.axis\[a\]\.rows\.low \+ of_tile", "of_tile", HEADERS),
    "tensors begin with the axis": (r"(_origin\[a\] = group) - \w+;", r"\1;", HEADERS),
    "queries begin where keys do": (r"\bkQueryStart\b(?! =)", "kKeyStart", HEADERS),
    "keys begin where queries do": (r"\bkKeyStart\b(?! =)", "kQueryStart", HEADERS),
    "no zeros behind a chunk": (r"for \(; key < piece\.tail;", "for (; false && key < piece.tail;", HEADERS),
    "one zero less behind a chunk": (r"key < piece\.tail;", "key < piece.tail - 1;", HEADERS),
    "threads left over start anew": (r"key -= piece\.length;", "key = thread_id / Copy::LANES;", HEADERS),
    "staging stays in its row": (r"(?m)^    row\.advance\(t\);", "", ("stage.h",)),
    "bricks stay in their row": (r"next\.row\.advance\(t\);", "", HEADERS),
    "pieces one column short": (r"C::CHUNK \+ 7", "C::CHUNK + 6", HEADERS),
    "chunks hold a column more": (r"C::CHUNK \+ 1\b", "C::CHUNK + 2", HEADERS),
    "chunks hold a column less": (r"C::CHUNK \+ 1\b", "C::CHUNK", HEADERS),
    "channels beyond D are copied": (r"c < dim \? (src\[c \* channel\]) : T\(0\)", r"\1", HEADERS),
    "channels beyond D are loaded": (r"if \(d(?: \+ 1)? < dim\) (r\[)", r"\1", HEADERS),
    "channels beyond D are written": (r"if \(d(?: \+ 1)? < dim\) (to\[)", r"\1", HEADERS),
    "direct reads leave the box": (r"min\((c|c \+ 1|r), last\)", r"(\1)", HEADERS),
    "direct channels beyond D": (r"if \(!WIDE && d >= dim\) return[^;]*;", "", HEADERS),
    "direct odd channel beyond D": (r"d \+ 1 < dim \? (tokens\[i \+ channel\]) : T\(0\)", r"\1", HEADERS),
    "unused bricks count": (r"if \(j < count\) (\{|take_brick)", r"\1", HEADERS),
    "unused bricks count in a check": (r"j < count && ", "", HEADERS),
    "unused bricks are full": (r"(?m)^( +full\[j\] = row\[j\]) = false;", r"\1 = true;", HEADERS),
    "sums keep their old scale": (r"l \*= decay;", "", HEADERS),
    "outputs keep their old scale": (r"out\.part\[d\] \*= decay;", "", HEADERS),
    "earlier parts are forgotten": (r"total\[n\] \* decay \+ part\[n\]", "part[n]", HEADERS),
    "earlier parts are left out": (r"part\[n\] \+= total\[n\] \* decay;", ";", HEADERS),
    "parts keep their old scale": (r"total\[n\] \* decay", "total[n]", HEADERS),
    "parts count twice": (r"(decay \+ part\[n\];\n) *part\[n\] = Pair<float>\(0\.0f\);", r"\1", HEADERS),
    "row sums of parts keep their old scale": (r"l_total \* since", "l_total", HEADERS),
    "row sums of parts count twice": (r"\b(?:l|weights) = 0\.0f;\n", "\n", HEADERS),
    "parts have the first maximum": (r"\n +m_total = m;", "", HEADERS),
    "weights of earlier parts are left out": (r"body\.weights \+= body\.weights_total;", "", HEADERS),
    "row maximum of half a row": (r"return max\(x, simd_shuffle_xor\(x, ushort\(8\)\)\);", "return x;", HEADERS),
    "row sum of half a row": (r"return x \+ simd_shuffle_xor\(x, ushort\(8\)\);", "return x;", HEADERS),
    "masked is minus infinity": (r"kMasked = -1\.7014117e38f", "kMasked = -__builtin_inff()", HEADERS),
    "additional keys have a bias": (r"body\.biased = false;", "body.biased = true;", HEADERS),
    "empty slots are not filled": (r"if \(!holds\) logits", "if (false) logits", HEADERS),
    "bias of the wrong head": (r"slice\.head \* rpb_entries", "slice.kv_head * rpb_entries", HEADERS),
    "head of the wrong group": (r"kv_head \* group_heads \+ h;", "kv_head * group_heads;", HEADERS),
    "lse in base 2": (r"(\(body\.m \* body\.unit \+ log2\(total\)\)) \* kLn2", r"\1", HEADERS),
    "the maximum is scaled already": (r"(body\.m) \* body\.unit", r"\1", HEADERS),
    "a negative scale is taken for positive": (r"sign \* load_channels", "load_channels", HEADERS),
    "stats: every lane writes": (r" && body\.fc == 0(\) \(\(device Stats)", r"\1", HEADERS),
    "stats: both members write": (r"body\.team\.leads\(\) && ", "", HEADERS),
    "members have the same share": (r"odd \? channels : 0", "0", HEADERS),
    "members show on the same side": (r"odd \? C::NB \* 64 : 0", "0", HEADERS),
    "a board has one side": (r"turn = 1 - turn;", "", HEADERS),
    "members have a patch each": (r"int\(sg\) / C::TEAM", "int(sg)", HEADERS),
    "members have the same rows": (r"if \(SHARED && team\.odd\)", "if (false)", HEADERS),
    "members have the same sides": (r"body\.arrange\(sides\);", "", HEADERS),
    "the even member writes keys' gradients": (r"if \(C::TEAM > 1 && !team\.odd\)", "if (false)", HEADERS),
    "members read the same columns": (r"return odd \? of_odd : of_even;", "return of_even;", HEADERS),
    "the odd member adds weights": (r"team\.odd \? ds : ", "", HEADERS),
    "stats of unseen columns are read": (r"if \(sees\) (query = )", r"\1", HEADERS),
    "no dLSE": (r" - \(C::LSE_GRAD \? lse_grad\[row\] : 0\.0f\)", "", HEADERS),
    "parts overlap": (r"\* \(part \+ 1\) / parts", "* (part + 1) / parts + 1", HEADERS),
    "tables of one simdgroup": (r"g < C::NSG; \+\+g", "g < 1; ++g", HEADERS),
    "tables are not cleared": (r"body\.sums\[e\] = 0\.0f;", ";", HEADERS),
    "tiles run past the end": (r"min\((t\.corner\[a\] \+ extent), t\.axis\[a\]\.rows\.high\)", r"(\1)", HEADERS),
    "patches run past the end": (r"min\((first \+ patch_extent<C>\(a\) - 1), end\)", r"(\1)", HEADERS),
    "callers run tiles beyond a group": (r"if \(!(find_tile<C>\([^;]*\))\) (?:return|continue);", r"\1;", HEADERS),
    "ends of x: one or two tiles": (r"if \(along_x <= 2\) return nth;", "", HEADERS),
    "ends of x are not first": (r"if \(nth < 2 \* lines\) return [^;]*;", "", HEADERS),
    "rows of no columns are divided by": (r"max\(box_x, 1\)", "box_x", HEADERS),
    "patches begin past the end": (r"first = min\(([^;]*), end\);", r"first = \1;", HEADERS),
    "boxes have negative extents": (r"max\((t\.box\[a\]\.high - t\.box\[a\]\.low), 0\)", r"\1", HEADERS),
    "boxes have no chunks": (r"max\(chunks, 1\)", "chunks", HEADERS),
    "rows have a negative number of bricks": (r"max\(0, (high - low)\)", r"\1", HEADERS),
    "bricks end after their last column": (r"min\(7, (patch\.x\.high - 1 - b\.x\[j\])\);", r"\1;", HEADERS),
    "bricks all lie inside": (r"min\(7, patch\.x\.high - 1 - b\.x\[j\]\);", "7;", HEADERS),
    "chunks run past the last row": (r"min\(cut\.per, cut\.rows - row0\)", "cut.per", HEADERS),
    "pieces run past the row": (r"min\(cut\.length, box_x - x0\)", "cut.length", HEADERS),
    "always seven zeros": (r"min\(7, C::CHUNK \+ 8 - n_rows \* length\)", "7", HEADERS),
    "bricks before the patch": (r"max\(0, (\(chunk\.x0 - chunk\.rel \+ 7\) / 8)\)", r"\1", HEADERS),
    "bricks behind the patch": (r"min\(\(patch\.x\.high - patch\.x\.low \+ 7\) / 8, ([^;]*)\);", r"\1;", HEADERS),
    "bricks of the next chunk": (r"min\((\(patch\.x\.high - patch\.x\.low \+ 7\) / 8), [^;]*;", r"\1;", HEADERS),
    "more bricks than are left": (r"min\(int\(C::NB\), total - done\)", "int(C::NB)", HEADERS),
    "additional rows past the last": (r"min\(first \+ fragment_row, rows - 1\)", "first + fragment_row", HEADERS),
    "delta past the last row": (r"min\(own, prm\[kRowCount\] - 1\)", "own", HEADERS),
    "delta: lanes without a row write": (r" && own == row\b", "", HEADERS),
    "delta: every lane writes": (r"lane % 8 == 0 && ", "", HEADERS),
    "lse: every lane writes": (r"if \(body\.fc == 0\) \{", "{", HEADERS),
    "sums past the last element": (r"if \(at >= prm\[kRowCount\]\) return;", "", HEADERS),
    "unseen columns are taken": (r"\bsees \? ((?:[^:;]|::)+) : (?:0\.0f|T\(0\));", r"\1;", HEADERS),
    "unseen columns have a bias": (r"C::RPB && (biased && )?sees\b", r"C::RPB && \1true", HEADERS),
    "unseen columns are not masked": (r"sees \? logit : kMasked", "logit", HEADERS),
    "unseen columns count": (r" && b\.sees\(j, fc, e, seen\)", "", HEADERS),
    "all rows of a table at once": (r"r == fr && ", "", HEADERS),
    "row maximum without a neighbour": (r"x = max\(x, simd_shuffle_xor\(x, ushort\(1\)\)\);", "", HEADERS),
    "row maximum of the last column": (r"top = max\(top, (sees[^;]*)\);", r"top = \1;", HEADERS),
    "rows that do not exist are loaded": (r"store \? dim : 0", "dim", HEADERS),
    "windows are whole on every axis": (r"whole = whole && [^;]*;", ";", HEADERS),
    "planes of a box run on": (r"(\+\+pos\[RANK - 2\]) == (t\.box\[RANK - 2\]\.high)", r"\1 > \2", HEADERS),
    "rows of bricks run on": (r"\+\+next\.x == next\.high", "++next.x > next.high", HEADERS),
    "additional keys have a bias, where it is added": (r" && biased\b", "", HEADERS),
    "direct even channel beyond D": (r"\bd < dim \? (tokens\[i\]) : T\(0\)", r"\1", HEADERS),
    "masked keys are seen": (r"sees && b\.allows\(j, fc \+ e\);", "sees;", HEADERS),
    "values of masked keys are read": (r"C::MASKED && !b\.allows\(j, fr\)", "false", HEADERS),
    "columns outside a brick's box are allowed": (r"x \+ lane < end && ", "", HEADERS),
    "one mask for all batch items": (r"key_mask \+ batch \* words", "key_mask", HEADERS),
    "the first item's mask for all": (r"(key_mask_of<R>\(key_mask, prm, )[\w.]*batch\)", r"\g<1>0)", HEADERS),
    "lines of a mask have no padding": (
        r"\(prm\[kKeyShape \+ RANK - 1\] \+ 31\) / 32",
        "prm[kKeyShape + RANK - 1] / 32",
        HEADERS,
    ),
    "masked rows are loaded": (r"hidden \? 0 : ", "", HEADERS),
    "hidden columns count": (r"if \(hidden\) own\[n\] = [^;]*;", "", HEADERS),
    "masked rows keep their sums": (r"if \(hidden\) \{", "if (false) {", HEADERS),
    "no column for a patch": (r"if \(wide <= 0\) return 0;", "", ("flat.h",)),
    "columns that do not exist are seen": (r"exists \? (Field<RANK>::word[^:]*::TOPS) : ~0u", r"\1", ("flat.h",)),
    "columns that do not exist are read": (r"exists \? (next\.place\[a\]) : 0", r"\1", ("flat.h",)),
    "the mask of columns that do not exist is read": (r"exists && (sides\.mask)", r"\1", ("flat.h",)),
    "one column more": (r"next\.own < next\.columns", "next.own <= next.columns", ("flat.h",)),
    "one column less": (r"next\.own < next\.columns", "next.own + 1 < next.columns", ("flat.h",)),
    "the second 32 columns come first": (r"if \(next\.brick != 0\) ", "", ("flat.h",)),
    "the same 32 columns again": (r"if \(next\.brick % 4 == 0\)", "if (next.brick == 0)", ("flat.h",)),
    "nothing is carried": (r"carry = place\[a\] >= length \? 1 : 0;", "carry = 0;", ("flat.h",)),
    "carried too late": (r"place\[a\] >= length \? 1", "place[a] > length ? 1", ("flat.h",)),
    "positions: no low end": (r"\(word\[j\]\[e\] - low\) & ", "", ("flat.h",)),
    "positions: no high end": (r"~\(word\[j\]\[e\] - high\) & ", "", ("flat.h",)),
    "positions: one field less": (r"0x80008000u : 0x20080200u", "0x80000000u : 0x20080000u", ("flat.h",)),
    "positions: ends outside their fields": (r"clamp\(from_low\[a\], 0, MOST\)", "from_low[a]", ("flat.h",)),
    "positions: narrow fields": (r"\? 16 : 10", "? 5 : 4", ("flat.h",)),
    "rows of a box without planes": (r"at\[0\] = plane\.quotient;", "", ("flat.h",)),
    "steps of boxes of more than 64 columns only": (r"columns > 32", "columns > 64", ("flat.h",)),
    "rows of a plane run on": (r"= plane\.rest;", "= line.quotient;", ("flat.h",)),
    "unused bricks lie at the low end": (r"word\[j\]\[e\] = ~0u;", "word[j][e] = Field<RANK>::TOPS;", ("flat.h",)),
    "the last brick is left out": (r"\(columns \+ 7\) / 8", "columns / 8", ("flat.h",)),
    "columns of one row only": (r"chunk\.n_rows \* wide", "wide", ("flat.h",)),
    "the next column is the next lane's": (r"own \+= 32;", "own += 1;", ("flat.h",)),
    "carries are not passed on": (r"step\[a\] \+ carry;", "step[a];", ("flat.h",)),
    "places run past their axis": (r"place\[a\] -= carry \* length;", "", ("flat.h",)),
    "places along x count from the patch": (r"patch\.x\.low - t\.box\[X\]\.low", "0", ("flat.h",)),
    "positions along x count from the tile": (
        r"a == RANK - 1 \? patch\.x\.low : (t\.box\[a\]\.low)",
        r"\1",
        ("flat.h",),
    ),
    "keys of a mask lie side by side": (r"p \* t\.step\[a\] \+", "p +", ("flat.h",)),
    "offsets of 32 bits": (r"ulong\(high\) << 32 \| ", "", ("flat.h",)),
    "the upper half of an offset is the lower": (r"ulong\(value\) >> 32", "ulong(value)", ("flat.h",)),
    "windows of queries begin at their box": (
        r"C::TRANSPOSED && C::SLOTS \? window[^:]*: (place\[a\];)",
        r"\1",
        ("flat.h",),
    ),
    "keys of the first brick for all": (r"next\.keys >> first", "next.keys", ("flat.h",)),
    "columns of the first brick for all": (r"next\.brick % 4 \* 8", "0", ("flat.h",)),
    "numbers of a row: the other sign": (r"C::TRANSPOSED \? (row : -row)\)", r"!C::TRANSPOSED ? \1)", ("flat.h",)),
    "numbers of a column: the other sign": (
        r"C::TRANSPOSED \? (-column : column)",
        r"!C::TRANSPOSED ? \1",
        ("flat.h",),
    ),
    "slots: row and column swapped": (
        r"C::TRANSPOSED \? (number_of<false>\(t, slot\) - column)",
        r"!C::TRANSPOSED ? \1",
        ("flat.h",),
    ),
    "addresses of some reads stay 0": (r"if \(READ & k\w+\)", "if (false)", ("flat.h",)),
    "a read of a body has no address": (r"\bk(?:Across|Along)[AB] \| ", "", HEADERS),
    "the last read of a body has no address": (r"( \| |READ = )k(?:Across|Along)[AB];", r"\g<1>0;", HEADERS),
    "loads serve several products, staged": (r"C::STAGE \|\| !C::WIDE", "!C::WIDE", ("stage.h",)),
    "loads serve several products, not aligned": (r"(C::STAGE) \|\| !C::WIDE", r"\1", ("stage.h",)),
    "loads serve several products of float": (r" \|\| sizeof\(typename C::T\) != 2", "", ("stage.h",)),
    "loads serve four products of two": (r"DP / 8 % 4 == 0 \? 4 : 2", "4", ("stage.h",)),
    "loads serve two products of four": (r"DP / 8 % 4 == 0 \? 4 : 2", "2", ("stage.h",)),
    "channels along: lanes overlap": (r"\+ c \* N \+", "+ c +", ("stage.h",)),
    "channels along: the first load's": (r"i / N \* 8 \* N \+", "", ("stage.h",)),
    "channels along: the load's first": (r" \+ i % N \* 2;", ";", ("stage.h",)),
    "pairs of a load in reverse": (r"W::at\(words, n\)", "W::at(words, N - 1 - n)", ("stage.h",)),
    # Unrolled loops have constant bounds and run over registers, so they are left alone.
    "a loop runs once more": (r"(?<!NA_UNROLL )(for \([^;]*; \w+) < ([^;]+;)", r"\1 <= \2", HEADERS),
    "a loop goes on below 0": (r"(?<!NA_UNROLL )(for \([^;]*; \w+) >= 0;", r"\1 >= -1;", HEADERS),
    **MPP_RULES,
}
# Mutants that change no result, by file, rule and number of the match; and why.
_UNUSED = "a brick that is not used is seen by no row"
_NO_WEIGHT = "their weight is 0 already; the check keeps NaN from rows that do not see it"
HARMLESS: dict[tuple[str, str, int], str] = {
    ("walk.h", "no simdgroup barrier", 0): "mem_none: it keeps the compiler from loading ahead, and orders no memory",
    ("coord.h", "patches begin past the end", 0): "only idle ones do, and their rows are clamped to the last one",
    ("run.h", "rows have a negative number of bricks", 0): "a loop up to it never runs, as one up to 0 never does",
    ("run.h", "bricks end after their last column", 0): "it is compared with columns 0 to 7 only",
    ("walk.h", "a loop runs once more", 2): "a group without bricks: everything in it is unused",
    ("na_bwd_dkv.h", "additional rows past the last", 0): "rows that do not exist are neither loaded nor stored",
    ("na_split.h", "a loop runs once more", 0): "the slot after the last counts as slot 0, which always holds a key",
    ("na_rpb.h", "a loop runs once more", 0): "no lane has a ninth row",
    ("na_rpb.h", "a loop runs once more", 1): "the table has room for one entry more, which nothing reads",
    (
        "flat.h",
        "positions: ends outside their fields",
        0,
    ): "only in a box of the greatest length, for rows that see nothing",
    ("stage.h", "loads serve two products of four", 0): "two loads instead of one",
    ("stage.h", "threads left over start anew", 0): "the same tokens, distributed less evenly among the threads",
    ("na_split.h", "unused bricks count in a check", 0): _UNUSED,
    ("na_rpb.h", "unused bricks count in a check", 0): _UNUSED,
    ("na_rpb.h", "unused bricks count", 0): _UNUSED,
    ("na_bwd_dkv.h", "unseen columns are taken", 1): _NO_WEIGHT,
    **MPP_HARMLESS,
}
# Mutants that are stopped neither by an assertion nor by the emulator, by the same keys: how they end, and why that
# counts as found.
OTHERWISE: dict[tuple[str, str, int], tuple[str, str]] = {}


@dataclass(frozen=True)
class Mutant:
    """One change: the ``number``-th match of a rule in a header."""

    file: str
    rule: str
    number: int
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.rule}"

    @property
    def key(self) -> tuple[str, str, int]:
        return self.file, self.rule, self.number


def stripped(file: str) -> str:
    """A header as it occurs in the flattened source."""
    lines = (KERNELS / file).read_text(encoding="ascii").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("//", "#pragma once")))


def unchanged(file: str) -> Mutant:
    """The header without a change."""
    return Mutant(file, "unchanged", 0, 0, stripped(file))


def mutants() -> Iterator[Mutant]:
    """All of them, header by header."""
    for file in (*HEADERS, *MPP_HEADERS):
        text, original = stripped(file), (KERNELS / file).read_text(encoding="ascii").splitlines()
        for rule, (pattern, replacement, files) in RULES.items():
            if file not in files:
                continue
            for number, match in enumerate(re.finditer(pattern, text)):
                changed = text[: match.start()] + match.expand(replacement) + text[match.end() :]
                around = text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0]
                yield Mutant(file, rule, number, original.index(around) + 1, changed)
