"""What each construct of the language computes, against the same thing written in PyTorch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from tests.lowering.specs import Call, lowered

CALL = Call()
SQUARE = Call(M=6, N=6)


def attend(p: torch.Tensor, call: Call = CALL) -> torch.Tensor:
    return p @ call.vh


def masked(s: torch.Tensor, mask: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return torch.softmax(s.masked_fill(~mask, -math.inf), dim).nan_to_num(0.0)


# -------------------------------------------------------------------------------------------------- operands


def test_the_default_is_softmax_attention() -> None:
    CALL.close("", attend(CALL.s.softmax(-1)))


def test_omitted_subscripts_are_the_natural_ones() -> None:
    full = "score = sum[d](q[b, h, i, d] * k[b, g, j, d])\noutput = sum[j](w * v[b, g, j, e])"
    for same in (
        "score = sum[d](q[i, d] * k[j, d])\noutput = sum[j](w * v[j])",
        "score = dot(q, k)\noutput = sum[j](w[i, j] * v)",
        "score = dot(q[h], k[b, j])\noutput = sum[j](w[b, h, i, j] * v[j, e])",
    ):
        assert lowered(same).roots() == lowered(full).roots()


def test_key_heads_follow_query_heads() -> None:
    scale = CALL.normal(2)
    expected = attend((CALL.s * scale.repeat_interleave(2)[:, None, None]).softmax(-1))
    body = "tensor scale: f32[G]\nscore = scale[g] * dot(q, k) / sqrt(D)"
    CALL.close(body, expected, scale=scale)
    CALL.close(body.replace("[g]", ""), expected, scale=scale)


def test_rewrites_see_the_operands_as_given() -> None:
    expected = attend((2 * CALL.s * 9).softmax(-1)) * 5
    CALL.close("query = 2 * q\nkey = 9 * k\nvalue = 5 * v", expected)


def test_a_key_rewrite_can_mix_channels_and_query_heads() -> None:
    gain = CALL.normal(4, 6)
    k = (CALL.kh * gain[:, None]).flip(-1)
    expected = attend((CALL.q @ k.transpose(-1, -2) / math.sqrt(6)).softmax(-1))
    CALL.close("tensor gain: f32[H, D]\nkey = k[j, D - 1 - d] * gain[h, D - 1 - d]", expected, gain=gain)


def test_a_key_rewrite_by_key_head() -> None:
    gain = CALL.normal(2)
    k = CALL.kh * gain.repeat_interleave(2)[:, None, None]
    expected = attend((CALL.q @ k.transpose(-1, -2) / math.sqrt(6)).softmax(-1))
    CALL.close("tensor gain: f32[G]\nkey = k * gain[g]", expected, gain=gain)


def test_a_rewrite_read_at_another_position() -> None:
    shifted = 3 * CALL.vh.roll(1, -2)
    CALL.close("value = 3 * v\noutput = sum[j](w * v[(j - 1) % N])", CALL.s.softmax(-1) @ shifted)


def test_positions_are_absolute() -> None:
    bias = -0.3 * (CALL.i + 4 - CALL.j)
    CALL.close("bias = -0.3 * (i - j)\nmask = j <= i", attend(masked(CALL.s + bias, CALL.j <= CALL.i + 4)), q_start=4)


def test_rows_of_the_call_are_read_from_their_own_start() -> None:
    x, y = CALL.normal(2, 5), CALL.normal(2, 9)
    body = "tensor x: f32[B, M]\ntensor y: f32[B, L]\nsize L\nbias = x[b, i] * y[b, min(i, L - 1)] * j"
    expected = attend((CALL.s + (x * y[:, 3:8])[:, None, :, None] * CALL.j).softmax(-1))
    CALL.close(body, expected, x=x, y=y, q_start=3)


# -------------------------------------------------------------------------------------------------- sections


def test_bias_is_added_and_gate_multiplies() -> None:
    g = CALL.normal(2, 4, 5, 3)
    expected = attend((CALL.s - 0.5 * CALL.j).softmax(-1)) * torch.sigmoid(g)
    CALL.close("tensor g: [B, H, M, E]\nbias = -0.5 * j\ngate = sigmoid(g)", expected, g=g)


def test_a_gate_may_use_the_output() -> None:
    o = attend(CALL.s.softmax(-1))
    CALL.close("gate = sigmoid(o)", o * torch.sigmoid(o))


def test_weight_may_renormalise_over_the_allowed_keys() -> None:
    p = masked(CALL.s, CALL.j <= CALL.i)
    w = p * (CALL.j + 1)
    body = "mask = j <= i\nweight = p * (j + 1) / sum[j](p * (j + 1))"
    CALL.close(body, attend(w / w.sum(-1, keepdim=True)))


def test_weights_as_output_are_zero_outside_the_mask() -> None:
    mask = CALL.j < CALL.i
    CALL.close("mask = j < i\noutput = w", masked(CALL.s, mask))


def test_a_row_without_keys_gives_zero() -> None:
    for normaliser in ("softmax", "softmax(sink = 0.5)", "softmax1", "l1(softplus(s))", "sinkhorn(3)", "none"):
        o = CALL.run(f"mask = j < i\nnormaliser = {normaliser}")["o"]
        assert torch.isfinite(o).all()
        assert (o[:, :, 0] == 0).all()


def test_constant_scores_average_the_allowed_keys() -> None:
    mask = (CALL.j <= CALL.i).double()
    expected = attend((mask / mask.sum(-1, keepdim=True)).expand(2, 4, 5, 7))
    CALL.close("score = 0\nmask = j <= i", expected)


def test_observations_have_their_own_indices() -> None:
    body = (
        "mask = j <= i\nobserve top = max[j](p)\nobserve mean_key = mean[j](k[j, d])\nobserve plane = p\nobserve l = 1"
    )
    p = masked(CALL.s, CALL.j <= CALL.i)
    seen = CALL.run(body)
    torch.testing.assert_close(seen["top"], p.amax(-1))
    torch.testing.assert_close(seen["mean_key"], CALL.kh.mean(-2))
    torch.testing.assert_close(seen["plane"], p)
    assert seen["l"].shape == ()
    assert lowered(body).observed == ("top", "mean_key", "plane", "l")


def test_stage_values_can_be_read_at_other_positions() -> None:
    s = masked(SQUARE.s, SQUARE.j <= SQUARE.i)
    seen = SQUARE.run("mask = j <= i\nobserve back = sum[j](p[min(j, M - 1), min(i, N - 1)] * v[j])")
    torch.testing.assert_close(seen["back"], (s * (SQUARE.j <= SQUARE.i)).transpose(-1, -2).tril() @ SQUARE.vh)


# -------------------------------------------------------------------------------------------------- normalisers


def test_softmax_over_queries_and_by_brackets() -> None:
    expected = attend(CALL.s.softmax(-2))
    CALL.close("normaliser = softmax(axis = i)", expected)
    CALL.close("normaliser(s) = softmax[i](s)", expected)


def test_sigmoid_relu2_and_none() -> None:
    CALL.close("normaliser = sigmoid", attend(CALL.s.sigmoid()))
    CALL.close("normaliser = relu2", attend(CALL.s.relu() ** 2))
    CALL.close("normaliser = none", attend(CALL.s))


def test_sinks() -> None:
    sink = CALL.normal(4)
    extra = sink[None, :, None, None].expand(2, 4, 5, 1)
    expected = attend(torch.cat([CALL.s, extra], -1).softmax(-1)[..., :-1])
    CALL.close("tensor sink: f32[H]\nnormaliser = softmax(sink = sink[h])", expected, sink=sink)
    CALL.close("normaliser = softmax1", attend(F.pad(CALL.s, (0, 1)).softmax(-1)[..., :-1]))


def test_a_sink_far_above_or_below_the_scores_stays_finite() -> None:
    sink = torch.tensor([900.0, -900.0, 0.0, 1.0], dtype=torch.float64)
    extra = sink[None, :, None, None].expand(2, 4, 5, 1)
    expected = attend(torch.cat([CALL.s, extra], -1).softmax(-1)[..., :-1])
    CALL.close("tensor sink: f32[H]\nnormaliser = softmax(sink = sink[h])", expected, sink=sink)


def test_sinkhorn_alternates_rows_and_columns() -> None:
    mask = (SQUARE.i - SQUARE.j).abs() < 4
    x = torch.where(mask, SQUARE.s.exp(), 0.0)
    for n in range(1, 4):
        x = x / x.sum(-1 if n % 2 else -2, keepdim=True)
        SQUARE.close(f"mask = abs(i - j) < 4\nnormaliser = sinkhorn({n})", attend(x, SQUARE))
    SQUARE.close("const n = 3\nmask = abs(i - j) < 4\nnormaliser = sinkhorn(n)", attend(x, SQUARE))


def test_normalisers_of_the_spec() -> None:
    x = F.softplus(CALL.s)
    expected = attend(x / x.sum(-1, keepdim=True))
    CALL.close("normaliser(t) = softplus(t) / sum[j](softplus(t))", expected)
    CALL.close("normaliser plus[a](x) = softplus(x) / sum[a](softplus(x))\nnormaliser = plus", expected)
    CALL.close("normaliser = l1(softplus(s))", expected)
    scaled = "normaliser softmax[a](s, heat) = softmax[a](s / heat)\nnormaliser = softmax(heat = 2)"
    assert lowered("def soft(s, heat) = softmax[j](s / heat)\nnormaliser(s) = soft(s, 2)").roots()
    assert scaled


def test_a_spec_can_hide_a_prelude_normaliser() -> None:
    CALL.close("normaliser softmax(s) = sigmoid(s)\nnormaliser = softmax", attend(CALL.s.sigmoid()))


# -------------------------------------------------------------------------------------------------- expressions


def test_reductions() -> None:
    mask = CALL.j <= CALL.i
    s = CALL.s
    low = torch.where(mask, s, math.inf).amin(-1)
    mean = torch.where(mask, s, 0.0).sum(-1) / mask.sum(-1)
    seen = CALL.run("mask = j <= i\nobserve low = min[j](s)\nobserve mean = mean[j](s)\nobserve both = sum[i, j](p)")
    torch.testing.assert_close(seen["low"], low)
    torch.testing.assert_close(seen["mean"], mean)
    torch.testing.assert_close(seen["both"], torch.full((2, 4), 5.0, dtype=torch.float64))


def test_sums_of_what_does_not_vary_count() -> None:
    seen = CALL.run("observe a = sum[j](1)\nobserve b = sum[d, j](i)\nobserve c = mean[d](h)\nobserve d2 = max[j](h)")
    assert seen["a"] == 7
    assert seen["b"].tolist() == [0, 42, 84, 126, 168]
    assert seen["c"].tolist() == [0, 1, 2, 3]
    assert seen["d2"].tolist() == [0, 1, 2, 3]


def test_integers_divide_down_and_reals_truly() -> None:
    seen = CALL.run("observe a = (j - 3) // 2\nobserve b = (j - 3) % 2\nobserve c = (j - 3) / 2\nobserve d1 = 7 // -2")
    assert seen["a"].tolist() == [-2, -1, -1, 0, 0, 1, 1]
    assert seen["b"].tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert seen["c"].tolist() == [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]
    assert seen["d1"] == -4


def test_conditions() -> None:
    seen = CALL.run(
        "observe a = j if j < 3 and not j == 1 else -j\n"
        "observe b = where(0 < j <= 4, 1, 0)\n"
        "observe c = 1 if (j < 1 or j > 5) == true else 0\n"
        "observe d1 = 2 ** j if j != 2 else 0.5"
    )
    assert seen["a"].tolist() == [0, -1, 2, -3, -4, -5, -6]
    assert seen["b"].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert seen["c"].tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert seen["d1"].tolist() == [1, 2, 0.5, 8, 16, 32, 64]


def test_functions() -> None:
    x = CALL.j[0] - 3
    named = {
        "exp": torch.exp, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu, "gelu": F.gelu,
        "silu": F.silu, "softplus": F.softplus, "erf": torch.erf, "sin": torch.sin, "cos": torch.cos, "abs": torch.abs,
    }  # fmt: skip
    seen = CALL.run("\n".join(f"observe {name}_ = {name}(j - 3.0)" for name in named))
    for name, function in named.items():
        torch.testing.assert_close(seen[name + "_"], function(x), msg=name)
    assert CALL.run("observe x = max(j, 3, i) - min(j, 2)")["x"].shape == (5, 7)
    assert CALL.run("observe x = floor(j / 2)")["x"].tolist() == [0, 0, 1, 1, 2, 2, 3]


def test_definitions_expand_over_the_indices_of_their_arguments() -> None:
    body = "def cap(x, c) = c * tanh(x / c)\ndef twice(x) = cap(cap(x, 2), 3)\nscore = twice(dot(q, k) / sqrt(D))"
    expected = attend((3 * torch.tanh(2 * torch.tanh(CALL.s / 2) / 3)).softmax(-1))
    CALL.close(body, expected)
    CALL.close("def centred[a](x) = x - mean[a](x)\nscore = centred[i](dot(q, k) / sqrt(D))",
               attend((CALL.s - CALL.s.mean(-2, keepdim=True)).softmax(-1)))  # fmt: skip


def test_lets_are_read_anywhere_in_any_order() -> None:
    body = "score = dot(unit, k)\nlet unit = q / norm\nlet norm = sqrt(dot(q, q))"
    q = CALL.q / CALL.q.norm(dim=-1, keepdim=True)
    CALL.close(body, attend((q @ CALL.kh.transpose(-1, -2)).softmax(-1)))


def test_lets_with_indices_are_read_at_other_places() -> None:
    square = [(j * j) for j in range(7)]
    body = "let t[j] = j ** 2\nobserve a = t[N - 1 - j]\nobserve b = t\nobserve c = sum[j](t[j] * t[(j + 1) % N])"
    seen = CALL.run(body)
    assert seen["a"].tolist() == square[::-1]
    assert seen["b"].tolist() == square
    assert seen["c"] == sum(a * b for a, b in zip(square, [*square[1:], square[0]], strict=True))


def test_declared_indices() -> None:
    x = CALL.normal(2, 5, 3)
    body = "tensor x: f32[B, M, 3]\nindex c: 3\nbias = sum[c](x) + sum[c](c * x[b, i, c])"
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    CALL.close(body, attend((CALL.s + (x @ weights)[:, None, :, None] * 1.0).softmax(-1)), x=x)


def test_a_second_index_over_the_queries_is_a_position_too() -> None:
    body = "index x: M\nobserve gap = sum[x](i - x)\nobserve total = sum[x](q[x, d])"
    seen = CALL.run(body, q_start=9)
    assert seen["gap"].tolist() == [5 * i - 10 for i in range(5)]
    torch.testing.assert_close(seen["total"], CALL.q.sum(-2))


def test_names_that_shadow() -> None:
    g = CALL.normal(2, 4, 5, 3)
    body = "tensor g: [B, H, M, E]\nlet s = dot(q, k) / sqrt(D)\nlet w = 2\nlet p = w\nscore = p * s\ngate = g"
    CALL.close(body, attend((2 * CALL.s).softmax(-1)) * g, g=g)


def test_masks_on_data() -> None:
    keep = torch.tensor([[1, 0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 1, 0]])
    expected = attend(masked(CALL.s, keep[:, None, None].bool()))
    CALL.close("tensor keep: bool[B, N]\nmask = keep[b, j]", expected, keep=keep.bool())
    CALL.close("tensor keep: i32[B, N]\nmask = keep[b, j] != 0", expected, keep=keep)
    CALL.close("tensor keep: bool[B, N]\nmask = keep", expected, keep=keep.bool())


def test_a_mask_may_look_at_the_scores() -> None:
    CALL.close("mask = s >= mean[j](s)", attend(masked(CALL.s, CALL.s >= CALL.s.mean(-1, keepdim=True))))


def test_a_mask_of_false_and_of_true() -> None:
    CALL.close("mask = false", torch.zeros(2, 4, 5, 3, dtype=torch.float64))
    CALL.close("mask = true", attend(CALL.s.softmax(-1)))


def test_an_index_that_a_plane_sums_over_is_a_channel() -> None:
    """However many: a loop over it would be over a volume. What only meets one position at a time is a sequence."""
    factors = (
        "index r: 96\ntensor f: [B, H, M, 96]\ntensor g: [B, H, N, 96]\nbias = sum[r](f[b, h, i, r] * g[b, h, j, r])"
    )
    tokens = (
        "index a: 49\ntensor t: [B, H, 49, D]\n"
        "let u[a, e] = sum[j](softmax[j](dot(t[b, h, a], k)) * v[j, e])\n"
        "output = sum[a](softmax[a](dot(q, t[b, h, a])) * u[a, e])"
    )
    assert lowered(factors).axes["r"].role == "channel"
    assert lowered(tokens).axes["a"].role == "sequence"
    assert lowered(factors.replace("96", "400")).axes["r"].role == "sequence"


def test_ceil() -> None:
    x = CALL.normal(4)
    CALL.close("tensor x: f32[H]\nscore = ceil(3 * x[h]) * dot(q, k)", _scaled(torch.ceil(3 * x)), x=x)


def _scaled(by_head: torch.Tensor) -> torch.Tensor:
    return attend((by_head[:, None, None] * (CALL.q @ CALL.kh.transpose(-1, -2))).softmax(-1))
