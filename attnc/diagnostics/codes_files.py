"""E3xx: no spec can be had from what was named. Raised by `attnc.grammar.load` and `attnc.driver`."""

from __future__ import annotations

from attnc.diagnostics.entry import Entry, listed

ENTRIES = listed(
    Entry(
        "E301",
        "a file that is not there",
        "The path does not lead to anything. If a spec of a similar name lies in the same directory, the "
        "message names it. Relative paths start from the directory you are in.",
        "attnc check exmaples/alibi.attn",
        "attnc check examples/alibi.attn",
    ),
    Entry(
        "E302",
        "a directory instead of a file",
        "The path leads to a directory that holds no spec, or to a directory where a single file is needed.",
        "attnc run examples",
        "attnc run examples/alibi.attn",
    ),
    Entry(
        "E303",
        "a file that is not UTF-8",
        "Specs are text in UTF-8, of which ASCII is a part. Some editors save as UTF-16 or in an older "
        "encoding; choose UTF-8 when saving, or convert the file.",
        "attnc check saved_as_utf16.attn",
        "iconv -f UTF-16 -t UTF-8 saved_as_utf16.attn > spec.attn\nattnc check spec.attn",
    ),
    Entry(
        "E304",
        "a file that cannot be read",
        "The path leads to something that is no ordinary file, such as a device or a pipe, or to a file you "
        "may not read. A spec on the standard input is read with `-`.",
        "attnc check /dev/null",
        "attnc check - < spec.attn",
    ),
    Entry(
        "E310",
        "a definition that the file does not hold",
        "A file may hold several definitions, and one of them is asked for by a name that none of them has.",
        'attnc.compile("window.attn", name="widow")',
        'attnc.compile("window.attn", name="window")',
    ),
    Entry(
        "E311",
        "a file with several definitions, and none chosen",
        "Compiling makes one op. When a file holds more than one definition, say which is meant.",
        'attnc.compile("two.attn")',
        'attnc.compile("two.attn", name="first")',
    ),
    Entry(
        "E320",
        "a rewrite that does not exist",
        "Rewrites of the optimiser can be turned off by name, to see what they are worth or to find out which one a "
        "difference comes from. `attnc explain --help` lists the names.",
        'attnc.compile("alibi.attn", disable="onlin")',
        'attnc.compile("alibi.attn", disable="online")',
    ),
    Entry(
        "E330",
        "a way to compute a bias that does not exist",
        'A bias is computed in registers, as a product of factors, or loaded as a dense tensor; bias="auto" leaves the '
        "choice to the compiler.",
        'attnc.compile("spatial.attn", bias="factor")',
        'attnc.compile("spatial.attn", bias="factors")',
    ),
    Entry(
        "E331",
        "a form that the bias of a spec does not have",
        "Factors exist where the bias, the part of the score that reads neither q nor k but depends on both positions, "
        "is a sum of products of one position each. A learned table has factors of a stated rank when they are asked "
        "for with rank=.",
        '# bias = table[h, clamp(i - j, -R, R) + R]\nattnc.compile("relative_table.attn", bias="factors")',
        'attnc.compile("relative_table.attn", rank="auto", rtol=1e-3)',
    ),
    Entry(
        "E332",
        "a rank or tolerance that cannot be asked for",
        'Factors that stand for a table have rank channels, a number of at least 1; with rank="auto" there are as many '
        "as the relative error rtol, between 0 and 1, takes.",
        'attnc.compile("relative_table.attn", rank=0)',
        'attnc.compile("relative_table.attn", rank=16)',
    ),
)
