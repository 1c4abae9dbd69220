"""What names stand for: declarations, operands and their rewrites."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnc.grammar.tree import ConstDecl, IndexDecl, Let, Name, Section, SizeDecl, Subscript, TensorDecl
from attnc.ir.construct import axis, const, load, mul, size
from attnc.ir.node import Axes, Node
from attnc.ir.walk import substitute
from attnc.lowering import checks
from attnc.lowering.access import Subject, read
from attnc.lowering.defaults import default_axes, default_of, kind_of
from attnc.lowering.functions import is_callable
from attnc.lowering.masks import allowed
from attnc.lowering.names import INDEX_EXTENTS, NUMBERS, OPERANDS, REWRITES, SIZES, STAGES
from attnc.lowering.reductions import resolve_axis
from attnc.lowering.report import did_you_mean
from attnc.lowering.stages import STAGE_AXES, stage
from attnc.lowering.state import Dim, Lowering, is_plane
from attnc.lowering.value import POISON, Mode, Scope, Value

OPERAND_AXES = {"q": "bhid", "k": "bgjd", "v": "bgje"}


def named(state: Lowering, name: Name, scope: Scope) -> Value:
    """The value of a bare name."""
    if name.id in scope.params:
        return scope.params[name.id]
    if name.id in scope.axes:
        return state.index(scope.axes[name.id], scope.mode)
    if name.id in NUMBERS:
        return Value(const(NUMBERS[name.id]))
    if scope.prelude:
        return _unknown(state, name, scope)
    if name.id in state.names.refused:
        return POISON
    declared = state.names.values.get(name.id)
    state.names.used.add(name.id)
    match declared:
        case ConstDecl():
            return Value(const(state.consts[name.id])) if name.id in state.consts else POISON
        case SizeDecl():
            return Value(size(name.id))
        case IndexDecl():
            return state.index(name.id, scope.mode) if name.id in state.names.extents else POISON
        case TensorDecl() | Let():
            return _whole(state, name, scope)
        case None:
            return _given(state, name, scope)


def _given(state: Lowering, name: Name, scope: Scope) -> Value:
    """The value of a name the language provides."""
    if name.id in SIZES:
        return Value(size(name.id))
    if name.id in INDEX_EXTENTS:
        return state.index(name.id, scope.mode)
    if name.id in OPERANDS or name.id in STAGES:
        return _whole(state, name, scope)
    return _unknown(state, name, scope)


def _unknown(state: Lowering, name: Name, scope: Scope) -> Value:
    if is_callable(state, name.id):
        message = f"`{name.id}` is a function, and a value is wanted here"
        return state.error("E101", scope, name.span, message, f"call it: `{name.id}(…)`")
    remedy = did_you_mean(name.id, state.names.visible)
    if remedy is None:
        remedy = f"define it: `const {name.id} = …`, `let {name.id} = …` or `tensor {name.id}: f32[…]`"
    return state.error("E101", scope, name.span, f"there is nothing named `{name.id}`", remedy)


def _whole(state: Lowering, name: Name, scope: Scope) -> Value:
    """Something with subscripts, written without any."""
    let = state.names.let(name.id)
    if let is not None and let.indices is None:
        return _let(state, let, name, scope)
    if let is None and name.id not in state.names.values and name.id in STAGES:
        return stage(state, name, scope)
    subject = subject_of(state, name, scope)
    return POISON if subject is None else read(state, subject, (), name.span, scope)


def subject_of(state: Lowering, name: Name, scope: Scope) -> Subject | None:
    """What `name[...]` subscripts; None when the thing itself is wrong."""
    state.names.used.add(name.id)
    tensor, let = state.names.tensor(name.id), state.names.let(name.id)
    if tensor is not None:
        dims = state.dims.get(name.id)
        return None if dims is None else Subject(name.id, dims, _tensor_reader(state, tensor, name))
    if let is not None:
        return _let_subject(state, let, name, scope)
    if name.id in OPERANDS:
        return _operand(state, name, scope)
    value = stage(state, name, scope)
    if value.poisoned:
        return None
    return _by_substitution(state, name.id, STAGE_AXES[name.id], value, scope)


def _tensor_reader(state: Lowering, tensor: TensorDecl, name: Name) -> Callable[[Sequence[Node], Axes], Value]:
    kind = kind_of(tensor.dtype.id if tensor.dtype else "q")

    def build(nodes: Sequence[Node], axes: Axes) -> Value:
        if tensor.default is not None and state.provided is not None and tensor.name.id not in state.provided:
            default = default_of(state, tensor)
            if default.poisoned:
                return POISON
            places = dict(zip(default_axes(state, tensor.name.id), nodes, strict=True))
            return Value(substitute(default.node, places), axes)
        node = load(tensor.name.id, nodes, kind)
        state.note_load(node, tensor.name.id, name.span)
        return Value(node, axes)

    return build


def subscript(state: Lowering, tree: Subscript, scope: Scope) -> Value:
    """``base[index, ...]``."""
    subject = _subject(state, tree.base, scope)
    if subject is None:
        return POISON
    return read(state, subject, tree.index, tree.span, scope)


def _subject(state: Lowering, name: Name, scope: Scope) -> Subject | None:
    names = state.names
    if name.id not in scope.params:
        known = names.tensor(name.id) or names.let(name.id) or name.id in OPERANDS or name.id in STAGES
        if known and not scope.prelude:
            return subject_of(state, name, scope)
    if name.id in scope.params or name.id in names.visible:
        message = f"`{name.id}` takes no subscripts"
        remedy = "only tensors, q, k, v, stage values and `let`s with indices do"
        if is_callable(state, name.id):
            remedy = f"to call the function, write `{name.id}(…)`"
        state.error("E123", scope, name.span, message, remedy)
    elif is_callable(state, name.id):
        state.error("E123", scope, name.span, f"`{name.id}` is a function", f"add what it works on: `{name.id}[j](…)`")
    else:
        remedy = did_you_mean(name.id, names.visible) or f"declare it: `tensor {name.id}: f32[…]`"
        state.error("E101", scope, name.span, f"there is nothing named `{name.id}`", remedy)
    return None


# ------------------------------------------------------------------------------------------------------------- lets


def _let(state: Lowering, let: Let, name: Name, scope: Scope) -> Value:
    return state.once("let", let.name.id, scope.mode, name.span, scope, lambda: _let_value(state, let, scope.mode))


def _let_value(state: Lowering, let: Let, mode: Mode) -> Value:
    scope = state.scope(mode)
    value = state.expression(let.value, scope)
    if value.poisoned:
        return POISON
    if let.indices is not None:
        stated = _stated(state, let, scope)
        if stated is None:
            return POISON
        left = sorted(value.axes - set(stated) - set("bhg"))
        if left:
            message = f"the index `{left[0]}` is left over in `{let.name.id}`"
            remedy = f"sum over it, or state it: `let {let.name.id}[{', '.join((*stated, left[0]))}] = …`"
            return state.error("E110", scope, let.value.span, message, remedy)
        value = Value(value.node, value.axes | set(stated))
    state.note(value.node, let.name.id, let.name.span)
    return value


def _stated(state: Lowering, let: Let, scope: Scope) -> tuple[str, ...] | None:
    assert let.indices is not None
    found = [resolve_axis(state, name, scope) for name in let.indices]
    return None if None in found else tuple(a for a in found if a is not None)


def _let_subject(state: Lowering, let: Let, name: Name, scope: Scope) -> Subject | None:
    value = _let(state, let, name, scope)
    if value.poisoned:
        return None
    if let.indices is None:
        message = f"`{let.name.id}` has no stated indices to subscript"
        state.error("E123", scope, name.span, message, f"state them: `let {let.name.id}[i, j] = …`")
        return None
    stated = tuple(n.id for n in let.indices)
    hidden = tuple(a for a in "bh" if a in value.axes and a not in stated)
    return _by_substitution(state, let.name.id, (*hidden, *stated), value, scope, len(hidden))


def _by_substitution(
    state: Lowering, name: str, axes: Sequence[str], value: Value, scope: Scope, hidden: int = 0
) -> Subject:
    """Something with an expression of its own, read elsewhere by substituting its indices."""
    dims = tuple(Dim(state.names.extents[a], a) for a in axes)

    def build(nodes: Sequence[Node], read_axes: Axes) -> Value:
        places = {a: n for a, n in zip(axes, nodes, strict=True) if n is not axis(a)}
        if not places:
            return value
        moved = value
        if is_plane(value.axes) and ({"i", "j"} & places.keys()):
            moved = Value(mul(value.node, allowed(state, scope.mode)), value.axes)
        unmoved = (value.axes - set(axes)) | {a for a in axes if a not in places and a in value.axes}
        return Value(substitute(moved.node, places), read_axes | unmoved)

    return Subject(name, dims, build, hidden)


# --------------------------------------------------------------------------------------------------------- operands


def _operand(state: Lowering, name: Name, scope: Scope) -> Subject | None:
    """q, k or v: rewritten by its section, unless the section itself is being lowered."""
    letters = OPERAND_AXES[name.id]
    dims = tuple(Dim(size(extent), letter) for extent, letter in zip(OPERANDS[name.id], letters, strict=True))
    section = state.names.sections.get(REWRITES[name.id])
    if section is None or scope.mode.raw:

        def build(nodes: Sequence[Node], axes: Axes) -> Value:
            node = load(name.id, nodes)
            state.note_load(node, name.id, name.span)
            return Value(node, axes)

        return Subject(name.id, dims, build)
    value = rewritten(state, name.id, section, scope)
    if value.poisoned:
        return None

    def rewritten_at(nodes: Sequence[Node], axes: Axes) -> Value:
        places = dict(zip(letters, nodes, strict=True))
        extra = value.axes - set(letters)
        node = substitute(value.node, places)
        state.note(node, section.keyword, section.span)
        return Value(node, axes | extra)

    return Subject(name.id, dims, rewritten_at)


def rewritten(state: Lowering, operand: str, section: Section, asked: Scope) -> Value:
    """The `query`, `key` or `value` section, over the operand's indices; g is an index of its own there."""
    mode = Mode(raw=True, masked=False, head=operand == "q")
    scope = state.scope(mode)

    def build() -> Value:
        value = state.expression(section.value, scope)
        if not checks.want_number(state, value, section.value, scope):
            return POISON
        indices = frozenset(OPERAND_AXES[operand]) | {"h"}
        return checks.no_leftover(state, value, indices, section.keyword, section.value, scope)

    return state.once("section", section.keyword, mode, section.span, asked, build)
