"""E0xx: the text does not follow the grammar. Raised by `attnc.grammar`."""

from __future__ import annotations

from attnc.diagnostics.entry import Entry, listed

ENTRIES = listed(
    Entry(
        "E001",
        "a word or sign that cannot stand here",
        "A statement begins as it should and then goes on in a way the language has no meaning for. The "
        "message says what could stand there instead. Common causes are `=` where `==` compares, a product "
        "without `*`, a subscript with a slice, and an expression that stops half way. A newline ends a "
        "statement, except inside brackets.",
        "attention causal\nmask = j = i",
        "attention causal\nmask = j == i",
    ),
    Entry(
        "E002",
        "a character that does not belong in a spec",
        "Specs are written in plain ASCII, so that what looks alike is alike. Text copied from a paper or a "
        "chat often holds a minus sign that is not `-`, curly quotes, `≤` for `<=`, or spaces that are not "
        "spaces; the message names the character and what to write for it. In comments and docstrings any "
        "letter is welcome, but no control character and no mark that reverses the direction of text.\n\n"
        "When very many kinds of characters are out of place, the file is probably not a spec at all.",
        "attention causal\nmask = i − j ≥ 0",
        "attention causal\nmask = i - j >= 0",
    ),
    Entry(
        "E003",
        "brackets that do not match",
        "A `(` or `[` is never closed, is closed by the other kind, or a closing one has no partner. Since an "
        "open bracket carries a statement over line ends, the place where it was opened is shown.",
        "attention scaled\nscore = dot(q, k / sqrt(D)",
        "attention scaled\nscore = dot(q, k) / sqrt(D)",
    ),
    Entry(
        "E004",
        "an unknown statement",
        "Each line begins with the word that says what it is: `const`, `size`, `index`, `tensor`, `let`, "
        "`def`, one of the sections `query key value score bias mask normaliser weight output gate`, or "
        "`observe`. A value of your own is named by `let`.",
        "attention capped\nscaled = dot(q, k) / sqrt(D)\nscore = tanh(scaled)",
        "attention capped\nlet scaled = dot(q, k) / sqrt(D)\nscore = tanh(scaled)",
    ),
    Entry(
        "E005",
        "a statement outside any definition",
        "A file holds definitions, and each begins with a line `attention NAME`. Only comments may stand "
        "above the first.",
        "mask = j <= i",
        "attention causal\nmask = j <= i",
    ),
    Entry(
        "E006",
        "something given twice",
        "A definition has at most one of each section, and a file at most one definition of each name. To "
        "combine two masks join them with `and`; to combine two biases add them.",
        "attention window\nmask = j <= i\nmask = i - j < 128",
        "attention window\nmask = j <= i and i - j < 128",
    ),
    Entry(
        "E007",
        "an empty spec",
        "There is no definition in the file. The shortest spec is one line and means softmax attention.",
        "# nothing yet",
        "attention plain",
    ),
    Entry(
        "E008",
        "too large",
        "A spec may have a million characters, a statement 20,000, brackets nest 64 deep and operations 150 "
        "deep. Specs that people write are a hundred times smaller; these limits keep a file given by mistake "
        "from taking long.",
        "attention deep\nbias = " + "(" * 65 + "1" + ")" * 65,
        "attention deep\nlet part = (1 + N) / 2\nbias = part * part",
    ),
    Entry(
        "E009",
        "a number out of range",
        "Integers are 64-bit and reals are double precision. Infinity is written `inf`.",
        "attention far\nbias = -1e999",
        "attention far\nbias = -1e30",
    ),
    Entry(
        "E010",
        "text in the wrong place",
        "The only text in a spec is the docstring: one line in double quotes right after `attention NAME`. "
        "Other remarks are comments and begin with `#`.",
        'attention causal\nmask = j <= i\n"Each query sees the past."',
        'attention causal\n"Each query sees the past."\nmask = j <= i',
    ),
    Entry(
        "E011",
        "an axis that is not an index name",
        "Brackets between a function's name and its arguments hold the axes it runs over, and an axis is the "
        "bare name of an index: `sum[j](p)` sums over the keys. To sum at a shifted position, shift the "
        "subscripts in the argument.",
        "attention shifted\noutput = sum[j + 1](w * v[j])",
        "attention shifted\noutput = sum[j](w * v[j])",
    ),
    Entry(
        "E012",
        "repeated names or arguments out of order",
        "A name occurs once among parameters, indices, axes and keyword arguments; and as in Python, "
        "arguments by position come before arguments by keyword.",
        "attention cap\ndef cap(x, x) = x * tanh(x)\nscore = cap(dot(q, k), 2)",
        "attention cap\ndef cap(x, c) = c * tanh(x / c)\nscore = cap(dot(q, k), 2)",
    ),
)
