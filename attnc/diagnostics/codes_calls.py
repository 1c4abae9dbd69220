"""E2xx: a compiled op was called with arguments that do not fit. Raised by `attnc.runtime`."""

from __future__ import annotations

from attnc.diagnostics.entry import Entry, listed

ENTRIES = listed(
    Entry(
        "E200",
        "a call that does not fit its spec",
        "The arguments were refused and no more exact reason was found. Compare their shapes, dtypes and "
        "devices with what the spec declares.",
        "o = op(q, k[..., ::2], v)",
        "o = op(q, k, v)",
    ),
    Entry(
        "E201",
        "a tensor with the wrong number of dimensions",
        "q, k and v have four dimensions, [batch, heads, length, channels], as in PyTorch's "
        "scaled_dot_product_attention. Other tensors have as many as the spec declares; a dimension of extent "
        "1 broadcasts, a missing one does not.",
        "q = torch.randn(128, 64)                     # [M, D]\no = op(q, k, v)",
        "q = torch.randn(1, 8, 128, 64)               # [B, H, M, D]\no = op(q, k, v)",
    ),
    Entry(
        "E202",
        "a tensor of the wrong dtype",
        "q decides: k, v and every tensor declared without a dtype have its dtype, which is float16, "
        "bfloat16, float32, on the CPU float64, or on CUDA devices float8_e4m3fn. A tensor declared with a dtype "
        "has that one; nothing is converted silently.",
        "# tensor slope: f32[H]\no = op(q, k, v, slope=torch.arange(8))",
        "# tensor slope: f32[H]\no = op(q, k, v, slope=torch.arange(8, dtype=torch.float32))",
    ),
    Entry(
        "E203",
        "tensors on different or unsupported devices",
        "All tensors of a call live on the device of q, the CPU or a CUDA device. float64 runs on the CPU "
        "only, where it is the reference for the other dtypes.",
        "o = op(q.cuda(), k.cuda(), v.cuda(), slope=slope)",
        "o = op(q.cuda(), k.cuda(), v.cuda(), slope=slope.cuda())",
    ),
    Entry(
        "E204",
        "query heads that do not divide among key heads",
        "With grouped heads, key head g serves H / G query heads, so that H must be a multiple of G. The spec "
        "needs nothing for it; the head counts of q and k decide.",
        "q = torch.randn(1, 6, 128, 64)\nk = v = torch.randn(1, 4, 128, 64)",
        "q = torch.randn(1, 8, 128, 64)\nk = v = torch.randn(1, 4, 128, 64)",
    ),
    Entry(
        "E205",
        "a missing tensor",
        "A tensor that the spec declares without a default is given by keyword at each call.",
        "# tensor slope: f32[H]\no = op(q, k, v)",
        "# tensor slope: f32[H]\no = op(q, k, v, slope=slope)",
    ),
    Entry(
        "E206",
        "a tensor the spec does not know",
        "Keywords of a call are tensors that the spec declares. Constants are set when the spec is compiled, "
        "not when the op is called.",
        "o = op(q, k, v, window=512)",
        'op = attnc.compile("sliding_window.attn", window=512)\no = op(q, k, v)',
    ),
    Entry(
        "E207",
        "a tensor of the wrong shape",
        "The sizes B, H, M, D come from q, G and N from k, E from v, and declared sizes from the first tensor "
        "that mentions them. Every further dimension must agree; outside q, k and v an extent of 1 "
        "broadcasts.",
        "# tensor slope: f32[H], and q has 8 heads\no = op(q, k, v, slope=torch.ones(4))",
        "# tensor slope: f32[H], and q has 8 heads\no = op(q, k, v, slope=torch.ones(8))",
    ),
    Entry(
        "E208",
        "a start that is no position",
        "q_start is the position of the first query among the keys, an integer of at least 0: the number of "
        "keys in the cache before this call's own. Without it queries and keys both start at 0.",
        "o = op(q, k, v, q_start=-1)",
        "o = op(q, k, v, q_start=k.shape[2] - q.shape[2])",
    ),
    Entry(
        "E209",
        "an empty tensor",
        "Every dimension has an extent of at least 1. A batch without sequences needs no call.",
        "k = v = torch.randn(1, 8, 0, 64)\no = op(q, k, v)",
        "k = v = torch.randn(1, 8, 1, 64)\no = op(q, k, v)",
    ),
    Entry(
        "E210",
        "an argument that is not a strided tensor",
        "Arguments are torch tensors in memory with strides; any strides will do. Lists and NumPy arrays are "
        "converted with torch.as_tensor, sparse tensors with to_dense.",
        "o = op(q, k, v, slope=[0.5, 0.25])",
        "o = op(q, k, v, slope=torch.tensor([0.5, 0.25]))",
    ),
    Entry(
        "E211",
        "sizes that the spec does not allow together",
        "Some subscripts are safe only if sizes relate in a certain way: a tensor of N document numbers read "
        "at query position i needs M + q_start <= N. Such relations are found when the spec is compiled and "
        "checked at each call, so that no kernel reads outside its tensors.",
        "# mask = doc[b, i] == doc[b, j], with doc: i32[B, N]\n"
        "q = torch.randn(1, 8, 200, 64)\nk = v = torch.randn(1, 8, 100, 64)",
        "# mask = doc[b, i] == doc[b, j], with doc: i32[B, N]\n"
        "q = torch.randn(1, 8, 100, 64)\nk = v = torch.randn(1, 8, 100, 64)",
    ),
    Entry(
        "E212",
        "a derivative of too high an order",
        "Kernels are derived for the gradient and for the gradient of the gradient. For anything higher use "
        "op.reference, the dense float64 evaluator, which PyTorch differentiates any number of times.",
        "g3 = grad(grad(grad(op(q, k, v))))",
        "g3 = grad(grad(grad(op.reference(q, k, v))))",
    ),
    Entry(
        "E213",
        "a spec that cannot be streamed",
        "A call with `state` sees earlier keys through a state of fixed size. That takes a causal mask and weights "
        "that separate into factors of the query and of the key, as in linear attention, retention and gated "
        "linear attention, or scores that depend on the key alone. Softmax over products of queries and keys "
        "needs every key: pass them all, with q_start.",
        'op = attnc.compile("causal.attn")\no, state = op(q, k, v, return_state=True)',
        'op = attnc.compile("retention.attn")\no, state = op(q, k, v, return_state=True)',
    ),
    Entry(
        "E214",
        "a state that does not fit",
        "`state` is what a call of the same op returned with `return_state=True`. It holds the position it ends at, so "
        "q_start is left out.",
        "o, state = retention(q, k, v, return_state=True)\no = lightning(q, k, v, state=state)",
        "o, state = retention(q, k, v, return_state=True)\no = retention(q, k, v, state=state)",
    ),
    Entry(
        "E215",
        "gradients of inputs of eight bits",
        "Inputs in float8_e4m3fn have a forward only: outputs are bfloat16, and there is no gradient. Call under "
        "torch.no_grad, or train on what the inputs were rounded from.",
        "o = op(q.to(torch.float8_e4m3fn).requires_grad_(), k8, v8)\no.sum().backward()",
        "o = op(q, k, v)  # bfloat16\no.sum().backward()",
    ),
    Entry(
        "E220",
        "an unknown backend",
        "Backends are cpp (C++ for the CPU), triton (CUDA devices), tiled (PyTorch, block by block) and dense "
        "(the float64 reference). The default, auto, chooses by the device of the tensors.",
        'op = attnc.compile("alibi.attn", backend="c++")',
        'op = attnc.compile("alibi.attn", backend="cpp")',
    ),
    Entry(
        "E221",
        "an unknown dtype",
        "Kernels and decisions for queries of one dtype are asked for by its short name: f16, bf16, f32, f64 or f8.",
        'op.source("cpp", dtype="float32")',
        'op.source("cpp", dtype="f32")',
    ),
    Entry(
        "E222",
        "an environment variable that cannot be understood",
        "ATTNC_THREADS is a number of threads from 0 upward, where 0 stands for as many as PyTorch uses. ATTNC_PAIRS "
        "is auto, always or never. A variable that is empty counts as unset.",
        "ATTNC_THREADS=all python train.py",
        "ATTNC_THREADS=0 python train.py",
    ),
    Entry(
        "E230",
        "a size beyond what kernels address",
        "Kernels on the CPU count positions in 32 bits (addresses have 64), so a length or another size must not "
        "exceed 2**26. Split the call along the batch or the sequence.",
        "op(q, k, v)  # N = 2**27 keys",
        "op(q, k[:, :, :N // 2], v[:, :, :N // 2])  # a part of the keys a call",
    ),
    Entry(
        "E240",
        "inputs from which no factors can be fitted",
        "A fitted factorisation needs the bias as a finite tensor that ends in queries and keys, features of every "
        "query and of every key with the same leading dimensions, and a rank of at least 1.",
        "attnc.fit_bias_factors(bias, coordinates.T, coordinates, rank=8)    # [2, M] where [M, 2] is meant",
        "attnc.fit_bias_factors(bias, coordinates, coordinates, rank=8)",
    ),
)
