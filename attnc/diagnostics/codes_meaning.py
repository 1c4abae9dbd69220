"""E1xx: what a spec that parses cannot or hardly can mean. Raised by `attnc.lowering`."""

from __future__ import annotations

from attnc.diagnostics.entry import Entry, listed

ENTRIES: dict[str, Entry] = listed(
    Entry(
        "E101",
        "a name nobody defined",
        "A value, size or tensor is used that the spec does not define and the language does not provide. "
        "Provided are the indices b, h, g, i, j, d, e, the sizes B, H, G, M, N, D, E, the operands q, k, v, "
        "the stage values s, p, w, o, and `inf` and `pi`. A size of your own needs a line `size L`.",
        "attention alibi\ntensor slope: f32[H]\nbias = -slop[h] * (i - j)",
        "attention alibi\ntensor slope: f32[H]\nbias = -slope[h] * (i - j)",
    ),
    Entry(
        "E102",
        "a function nobody defined",
        "A call names no pointwise function, no reduction, no `def` of the spec and nothing in the prelude. "
        "Subscripts are written in square brackets, calls in round ones.",
        "attention capped\nscore = cap(dot(q, k))",
        "attention capped\ndef cap(x) = 50 * tanh(x / 50)\nscore = cap(dot(q, k))",
    ),
    Entry(
        "E103",
        "arguments that do not fit a function",
        "Too many or too few values, an argument name the function does not have, or arguments by name where "
        "none are taken. `max` and `min` take two values or more, or one value and an index: `max[j](x)`.",
        "attention capped\nscore = tanh(dot(q, k), 2)",
        "attention capped\nscore = tanh(dot(q, k) / 2)",
    ),
    Entry(
        "E104",
        "the wrong number of subscripts",
        "A tensor takes one subscript per dimension. A subscript can be left out where the dimension has an "
        "index of its own: b for B, h for H, g for G, i for M, j for N, d for D, e for E, and a declared "
        "index for its size. A dimension of any other size must be written.",
        "attention table\ntensor table: f32[H, 9]\nbias = table[h]",
        "attention table\ntensor table: f32[H, 9]\nbias = table[h, clamp(i - j, 0, 8)]",
    ),
    Entry(
        "E105",
        "a subscript that can leave its tensor",
        "No spec may read outside its tensors. A subscript must be shown to lie between 0 and the size of its "
        "dimension less 1, from the sizes, the consts and the mask, or come down to a relation between sizes "
        "that every call is then checked for (`doc[b, i]` needs M + q_start <= N). A relation that caps the "
        "length of every sequence by a number is not accepted. Values read from an integer tensor can be "
        "anything.\n\n"
        "Put `clamp(x, 0, L - 1)` or `x % L` around the subscript, mask the pairs for which it leaves, or "
        "make the dimension wider.",
        "attention table\nsize L\ntensor table: f32[H, L]\nbias = table[h, i - j]",
        "attention table\nsize L\ntensor table: f32[H, L]\nbias = table[h, clamp(i - j, 0, L - 1)]",
    ),
    Entry(
        "E106",
        "a mask that is not a truth value",
        "A mask says for every pair whether it may attend, true or false. A number that is added to the score "
        "belongs in `bias`; an integer tensor becomes a mask by comparing it.",
        "attention padded\ntensor valid: i32[B, N]\nmask = valid[b, j]",
        "attention padded\ntensor valid: i32[B, N]\nmask = valid[b, j] != 0",
    ),
    Entry(
        "E107",
        "a size that is never bound",
        "A declared size gets its value from the shape of a tensor that has it alone as a dimension. Within "
        "`2 * L + 1` it cannot be read off, and a size no tensor mentions has no value at all.",
        "attention table\nsize L\ntensor table: f32[H, 2 * L + 1]\nbias = table[h, clamp(i - j, -L, L) + L]",
        "attention table\nconst R = 8\ntensor table: f32[H, 2 * R + 1]\nbias = table[h, clamp(i - j, -R, R) + R]",
    ),
    Entry(
        "E109",
        "a name that is taken",
        "Two definitions share a name, or one uses a name the language needs: the indices, the sizes, q, k, "
        "v, `inf`, `pi`, or a function. `g` and the stage values s, p, w, o may be redefined; the new meaning "
        "then holds everywhere.",
        "attention far\nlet d = abs(i - j)\nbias = -d",
        "attention far\nlet far = abs(i - j)\nbias = -far",
    ),
    Entry(
        "E110",
        "an index that is left over",
        "Each section has its indices: a score, bias, mask or weight b, h, i, j; an output or gate b, h, i, "
        "e; a query b, h, i, d; a key b, g, j, d; a value b, g, j, e. Any other index in its expression must "
        "be summed over, maximised over, or fixed by a subscript.",
        "attention product\nscore = q * k",
        "attention product\nscore = dot(q, k)",
    ),
    Entry(
        "E111",
        "a truth value where a number is wanted",
        "Comparisons, `and`, `or`, `not` and `bool` tensors give truth values. Arithmetic wants numbers: `1 "
        "if c else 0` counts, `x if c else 0` selects.",
        "attention recent\nbias = 2 * (i - j < 5)",
        "attention recent\nbias = 2 if i - j < 5 else 0",
    ),
    Entry(
        "E112",
        "a number where a truth value is wanted",
        "`and`, `or`, `not` and the condition of `if` want truth values. Numbers are not true or false: compare them.",
        "attention odd\nmask = (i - j) % 2 or j == 0",
        "attention odd\nmask = (i - j) % 2 == 1 or j == 0",
    ),
    Entry(
        "E113",
        "a real number where an integer is wanted",
        "Subscripts, dimensions and extents are integers. `/` always gives a real number, also for integers; "
        "`//` rounds down, and `floor(x)` makes an integer of a real number.",
        "attention pairs\ntensor t: f32[N]\nbias = t[j / 2]",
        "attention pairs\ntensor t: f32[N]\nbias = t[j // 2]",
    ),
    Entry(
        "E114",
        "a value that depends on itself",
        "Values are equations, in any order, but without circles. The score s is computed before the weights "
        "p, these before w, and w before the output o; a section can use only what comes before it.",
        "attention circle\nbias = p",
        "attention circle\nweight = p * p",
    ),
    Entry(
        "E115",
        "a function that calls itself",
        "A `def` is expanded where it is called, so it cannot call itself, directly or through others. To "
        "apply a function a fixed number of times, write `repeat(n, f, x)`.",
        "attention again\ndef f(x) = f(x / 2)\nscore = f(dot(q, k))",
        "attention again\ndef f(x) = tanh(x / 2)\nscore = repeat(3, f, dot(q, k))",
    ),
    Entry(
        "E116",
        "a const that cannot be set like this",
        "A caller may give other values for the consts of a spec, by their names. An integer const stays an "
        "integer, since it may be a size or a subscript.",
        "const window = 128 in the spec, and attnc.compile(spec, window=99.5)",
        "const window = 128 in the spec, and attnc.compile(spec, window=99)",
    ),
    Entry(
        "E117",
        "a const that is not known when the spec is compiled",
        "The value of a `const` and the number of repetitions in `repeat` are numbers, or made of numbers and "
        "earlier consts. What depends on sizes, indices or data is a `let`.",
        "attention half\nconst middle = N // 2\nmask = j < middle",
        "attention half\nlet middle = N // 2\nmask = j < middle",
    ),
    Entry(
        "E118",
        "an index that is missing or unknown",
        "A reduction says over which index it runs, in square brackets: `sum[j](x)`, `max[i](x)`, "
        "`softmax[a](x)`. The names there are b, h, i, j, d, e or indices declared with `index`.",
        "attention renormalised\nweight = p / sum(p)",
        "attention renormalised\nweight = p / sum[j](p)",
    ),
    Entry(
        "E119",
        "an unknown dtype",
        "The dtypes are f64, f32, f16, bf16, i64, i32, i16, i8, u8 and bool. A tensor without a dtype has that of q.",
        "attention alibi\ntensor slope: float[H]\nbias = -slope[h] * (i - j)",
        "attention alibi\ntensor slope: f32[H]\nbias = -slope[h] * (i - j)",
    ),
    Entry(
        "E120",
        "an unknown normaliser",
        "The `normaliser` section names one of the prelude or of the spec, with arguments where it has any, "
        "or is written out: `normaliser(s) = softplus(s) / sum[j](softplus(s))`.",
        "attention soft\nnormaliser = sofmax",
        "attention soft\nnormaliser = softmax",
    ),
    Entry(
        "E121",
        "a division by zero",
        "A divisor is 0, or whole division by it could meet 0: of `//` and `%` the divisor must be positive "
        "for every pair of positions. A divisor made of sizes is checked at each call instead.",
        "attention steps\nmask = j % (i - j) == 0",
        "attention steps\nmask = j % max(i - j, 1) == 0",
    ),
    Entry(
        "E122",
        "a default that cannot be computed",
        "The default of an optional tensor is made of numbers, consts, sizes and the indices of the tensor's "
        "own dimensions, so that it can be filled in before the call. It reads no data.",
        "attention alibi\ntensor slope: f32[H] = 1 / (j + 1)\nbias = -slope[h] * (i - j)",
        "attention alibi\ntensor slope: f32[H] = 1 / (h + 1)\nbias = -slope[h] * (i - j)",
    ),
    Entry(
        "E123",
        "subscripts on something that takes none",
        "Tensors, q, k, v, the stage values, and `let`s whose indices are stated take subscripts. State the "
        "indices of a `let` to read it elsewhere: `let u[j] = …`.",
        "attention lookup\nlet far = j ** 2\nbias = far[N - 1 - j]",
        "attention lookup\nlet far[j] = j ** 2\nbias = far[N - 1 - j]",
    ),
    Entry(
        "E124",
        "subscripts that could belong to several dimensions",
        "Some subscripts were left out, and the rest could go with more than one choice of dimensions. Write "
        "all of them.",
        "attention corner\nbias = q[0]",
        "attention corner\nbias = sum[d](q[b, h, i, d])",
    ),
    Entry(
        "E125",
        "a size that is not a size",
        "Dimensions of tensors and extents of indices are integers from 1, made of numbers, consts and sizes. "
        "They must be known before the first kernel starts.",
        "attention colours\nindex c: 0\nbias = sum[c](c)",
        "attention colours\nindex c: 3\nbias = sum[c](c)",
    ),
    Entry(
        "E126",
        "arithmetic without a result",
        "An expression of numbers overflows, divides by zero or has no real value.",
        "attention large\nscore = dot(q, k) / 10 ** 400",
        "attention large\nscore = dot(q, k) / 10 ** 4",
    ),
    Entry(
        "E127",
        "an expression that grows too large",
        "Functions and `let`s are written out when the spec is compiled. Doubling thirty times over gives a "
        "billion terms, which no kernel can hold.",
        "attention huge\ndef a(x) = x * x * x * x\ndef b(x) = a(a(a(x)))\nscore = b(b(dot(q, k)))",
        "attention huge\nscore = dot(q, k) ** 4",
    ),
    Entry(
        "E128",
        "three sequence axes in one reduction",
        "Kernels loop over planes: blocks of one sequence against blocks of another. A reduction whose terms depend on "
        "three positions at once would be a loop over a volume. Often one of the axes can be reduced first, into a "
        "`let` of its own.",
        "attention volume\nsize A\nindex a: A\ntensor t: [B, H, A, D]\n"
        "weight = sum[a](exp(dot(q, t[b, h, a]) * dot(k, t[b, h, a])))",
        "attention pooled\nsize A\nindex a: A\ntensor t: [B, H, A, D]\n"
        "let pooled[d] = sum[a](t[b, h, a, d])\nscore = dot(q, k) + sum[d](q[i, d] * pooled[d])",
    ),
    Entry(
        "E130",
        "a shift or logarithm outside its range",
        "`x << n` and `x >> n` take n from 0 to 62, and `floor_log2(x)` takes x from 1. The compiler must be able to "
        "prove that from sizes, consts and the conditions around it.",
        "attention bits\ntensor n: i32[N]\nmask = (i >> n[j]) % 2 == 1",
        "attention bits\ntensor n: i32[N]\nmask = (i >> clamp(n[j], 0, 31)) % 2 == 1",
    ),
    Entry(
        "E131",
        "what happens to masked pairs is not clear",
        "A masked pair contributes nothing. `mask_value = x` lets it take part with the score x instead, and "
        "`empty_rows = uniform` lets all pairs of a row take part where every one is masked. One excludes the other.",
        "attention filled\nmask = j < i\nempty_rows = mean",
        "attention filled\nmask = j < i\nempty_rows = uniform",
    ),
    Entry(
        "E132",
        "blocks that no kernel holds",
        "`sum[j by 64](x)` sums within blocks of 64 keys. A kernel holds a block whole, so its length is a number "
        "known when compiling: 16, 32, 64, 128 or 256. All blocks of one index have the same length, and queries "
        "have none: their positions begin where the call says.",
        "attention blocks\nnormaliser(s) = softmax[j by 48](s)",
        "attention blocks\nnormaliser(s) = softmax[j by 64](s)",
    ),
    Entry(
        "E191",
        "a name that is never used",
        "Something is defined and nothing depends on it. A tensor must still be given in every call.",
        "attention alibi\ntensor slope: f32[H]\nmask = j <= i",
        "attention alibi\ntensor slope: f32[H]\nbias = -slope[h] * (i - j)\nmask = j <= i",
    ),
    Entry(
        "E192",
        "a section without effect",
        "The output is computed without this section. An `output` that does not contain w, p or s depends on "
        "no score, bias, normaliser or weight, and a mask restricts only reductions of values that have both "
        "i and j.",
        "attention mean\nmask = j <= i\noutput = mean[j](v[j])",
        "attention mean\nscore = 0\nmask = j <= i",
    ),
    Entry(
        "E193",
        "an exclusive or that looks like a power",
        "`^` is the bitwise exclusive or of two integers. A power is written `**`.",
        "attention squared\nbias = -((i - j) ^ 2)",
        "attention squared\nbias = -((i - j) ** 2)",
    ),
)
